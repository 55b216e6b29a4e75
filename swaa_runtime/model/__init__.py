"""Models: loading them, and the one attention function registered with transformers."""
