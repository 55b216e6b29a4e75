"""What is asked of a model: samples of long prompts with known answers, after RULER (arXiv 2404.06654)."""
