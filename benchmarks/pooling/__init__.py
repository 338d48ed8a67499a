"""What pooling costs and gives: speed, quality, options."""
