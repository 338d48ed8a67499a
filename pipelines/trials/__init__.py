"""Training jobs on Ray: each a Tune trial that runs Ray Train, watched and started again."""
