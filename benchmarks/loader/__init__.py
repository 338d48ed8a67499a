"""How fast images are prepared and loaded, against peers and against the decoder's limit."""
