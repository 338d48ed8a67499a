"""What a search found: points and their front, as table, files, picture and page."""
