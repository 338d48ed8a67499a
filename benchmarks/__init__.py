"""Speed, quality and search efficiency, measured; each module says how it is run."""
