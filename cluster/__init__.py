"""Where a search runs: connecting to Ray, placement, checks of the machine."""
