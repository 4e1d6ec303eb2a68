"""One configuration a file; `imagenet.py` is the base that defines every key."""
