"""Examples for tests of training and choosing layers."""

from __future__ import annotations

from services.quality.examples import Example
from tests.swaa_runtime.builders import random_tokens


def example(prompt: int, answer: int, *more: int, seed: int = 0) -> Example:
    """Turns of so many prompt and answer tokens; an odd number at the end is a prompt without an answer."""
    lengths = (prompt, answer, *more)
    labels = [bool(at % 2) for at, length in enumerate(lengths) for _ in range(length)]
    return Example.from_labels(random_tokens(len(labels), seed), labels)
