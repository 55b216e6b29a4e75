"""Measuring tools: what a recipe costs, and what it keeps of the model's recall."""
