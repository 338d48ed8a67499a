"""Searches kept at an address: an object store, or any other pyarrow or fsspec file system."""
