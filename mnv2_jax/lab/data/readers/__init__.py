"""Readers of data sets as they lie on disk, one module a layout."""
