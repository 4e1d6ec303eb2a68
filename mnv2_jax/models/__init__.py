"""The networks of the paper; `spec` says what they are, the other modules compute them."""
