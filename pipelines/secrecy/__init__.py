"""What is secret, and how texts leave this program without it."""
