"""The work: data, training jobs, the search and its tracking, and the command line."""
