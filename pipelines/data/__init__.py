"""Images in, betons out, and loaders over them."""
