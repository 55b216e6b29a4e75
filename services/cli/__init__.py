"""The `swaa` command."""
