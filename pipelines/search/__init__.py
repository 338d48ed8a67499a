"""The search: its stages in order, its ledger, and the workers it drives."""
