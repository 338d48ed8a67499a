"""Who may come in, and what texts may say: doors, secrets and what is known of both."""
