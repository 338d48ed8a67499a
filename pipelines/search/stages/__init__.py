"""The stages of a search, each resumable: what the ledger says is done is not done again."""
