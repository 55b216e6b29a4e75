"""What recipes cost in quality: measuring it, choosing layers by it, and training for it."""
