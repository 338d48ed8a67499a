"""`tokenpool bench search`: the search against its peers, on the same evaluations."""
