"""Runs targets: so many inputs each, every failure kept once by where it happened, and the run goes on."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException, Unsatisfiable

from .target import Outcome, Target


class _TimeUp(KeyboardInterrupt):
    """Ends a target: of what comes out of a test, hypothesis lets interrupts through at once."""


def run(target: Target, num_inputs: int, random_seed: int, until_s: float = math.inf) -> Outcome:
    """So many inputs, or until then on the clock of time.monotonic; the same seed makes the same ones."""
    outcome, started_s = Outcome(target.name), time.monotonic()

    @seed(random_seed)
    @settings(
        max_examples=num_inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def each(given_input: Any) -> None:
        if time.monotonic() > until_s:
            raise _TimeUp
        outcome.num_inputs += 1
        try:
            target.run(given_input)
        except HypothesisException:
            raise
        except Exception as exc:
            outcome.failures.setdefault(_place(exc), repr(given_input)[:2000])

    with contextlib.suppress(Unsatisfiable, _TimeUp):
        each()
    outcome.took_s = time.monotonic() - started_s
    print(f"{outcome.name}: {outcome.num_inputs} inputs in {outcome.took_s:.0f} s", file=sys.stderr, flush=True)
    return outcome


def run_all(targets: Sequence[Target], num_inputs: int, random_seed: int, until_s: float = math.inf) -> list[Outcome]:
    """Inputs and time divided equally. What one target does not use of its share, those after it have."""
    outcomes: list[Outcome] = []
    for index, target in enumerate(targets):
        num_left, now_s = len(targets) - index, time.monotonic()
        inputs_left = num_inputs - sum(outcome.num_inputs for outcome in outcomes)
        own_until_s = now_s + (until_s - now_s) / num_left
        outcomes.append(run(target, max(1, inputs_left // num_left), random_seed + index, own_until_s))
    return outcomes


def _place(exc: Exception) -> str:
    frames = traceback.extract_tb(exc.__traceback__)
    last = frames[-1]
    return f"{type(exc).__name__}: {exc}"[:300] + f" at {last.filename.rpartition('/')[2]}:{last.lineno}"
