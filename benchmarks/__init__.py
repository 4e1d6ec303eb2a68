"""The speed of this project beside its peers; every script answers one question."""
