"""Models to take away: written in a format, checked on real images, described."""
