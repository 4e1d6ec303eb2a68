"""Convolution and batch normalization in the form that is fast where they run."""
