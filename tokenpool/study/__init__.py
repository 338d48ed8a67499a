"""Models looked into: measurements, plots, PoWER-BERT's schedule search, pooled text encoders."""
