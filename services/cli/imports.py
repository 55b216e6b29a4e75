"""Imports of much code, such as torch, in less time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def imports_that_stay() -> Iterator[None]:
    """The body imports what the process keeps to its end.

    Garbage is not looked for meanwhile: a million objects come that are none, and going over them again and again
    takes a fifth of a start. Nor is it later among what is there now, which makes all later pauses shorter.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
