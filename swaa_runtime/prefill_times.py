"""How long it is until requests' first tokens, in ms. Remembered, as the scheduler asks for all of them every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from swaa_runtime.request import Request
from swaa_runtime.step_cost import StepCost

REFRESH_S = 1.0
"""A prediction is made anew after so long: what steps cost is corrected by what they took."""


@dataclass(frozen=True, slots=True)
class _Prediction:
    made_s: float
    num_computed_tokens: int
    restoring: tuple[int, int] | None
    ms: float


class PrefillTimes:
    """Predicted remaining prefill of requests, each made anew when the request has moved on, or after a while.

    Args:
        cost: what steps are expected to take.
        clock: in seconds, as `time.monotonic`.
    """

    def __init__(self, cost: StepCost, clock: Callable[[], float]) -> None:
        self._cost = cost
        self._clock = clock
        self._predictions: dict[str, _Prediction] = {}

    def ms(self, request: Request) -> float:
        """Time until the first new token if the request had the engine for itself. What is restored is not computed."""
        now_s, known = self._clock(), self._predictions.get(request.request_id)
        if (
            known is None
            or known.num_computed_tokens != request.num_computed_tokens
            or known.restoring != request.restoring
            or now_s - known.made_s > REFRESH_S
        ):
            ms = self._predict(request)
            known = _Prediction(now_s, request.num_computed_tokens, request.restoring, ms)
            self._predictions[request.request_id] = known
        return known.ms

    def _predict(self, request: Request) -> float:
        ms = self._cost.prefill_ms(request)
        if request.restoring is not None:
            start, stop = (
                self._cost.prefill_ms(replace(request, num_computed_tokens=max(at, request.num_computed_tokens)))
                for at in request.restoring
            )
            ms -= start - stop
        return max(0.0, ms)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._predictions.pop(request_id, None)
