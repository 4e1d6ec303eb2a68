"""Readers of weight files, one module a format; none executes what a file holds."""
