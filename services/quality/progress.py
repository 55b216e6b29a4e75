"""A progress bar on standard error: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 30
TERMINAL_INTERVAL_S, LOG_INTERVAL_S = 0.2, 20.0


class ProgressBar:
    """Counts to `total`."""

    def __init__(self, total: int, label: str, out: TextIO = sys.stderr) -> None:
        self._total, self._label, self._out = total, label, out
        self._done = 0
        self._start_s = time.monotonic()
        self._shown_s = float("-inf")

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        terminal = self._out.isatty()
        now = time.monotonic()
        interval = TERMINAL_INTERVAL_S if terminal else LOG_INTERVAL_S
        if now - self._shown_s < interval and self._done < self._total:
            return
        self._shown_s = now
        rate = self._done / max(now - self._start_s, 1e-9)
        left_s = (self._total - self._done) / rate
        filled = WIDTH * self._done // max(1, self._total)
        bar = "#" * filled + "-" * (WIDTH - filled)
        line = f"{self._label} [{bar}] {self._done}/{self._total}  {rate:.1f}/s  {left_s:.0f} s left"
        end = "\n" if not terminal or self._done == self._total else ""
        self._out.write(("\r" if terminal else "") + line + end)
        self._out.flush()
