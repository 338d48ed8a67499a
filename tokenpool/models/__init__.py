"""Models as they are built, narrowed, described, saved and read again."""
