"""One configuration a file: what differs from `mnv2_jax/lab/train/defaults.py`."""
