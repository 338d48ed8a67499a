"""Where images come from: each source lists units of work that any process can read."""
