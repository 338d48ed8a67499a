"""The subcommands of `tokenpool`, one file each."""
