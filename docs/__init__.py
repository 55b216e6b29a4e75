"""Documentation, and what of it is generated."""
