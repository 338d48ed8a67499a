"""Searches kept at an address: S3, Google Cloud Storage or Azure."""
