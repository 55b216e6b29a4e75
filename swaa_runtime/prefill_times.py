"""How long it is until requests' first tokens, in ms. Remembered, as the scheduler asks for all of them every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from swaa_runtime.request import Request
from swaa_runtime.step_cost import StepCost

REFRESH_S = 1.0
"""A prediction is made anew after so long: what steps cost is corrected by what they took."""


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """What a request's prompt takes yet.

    Attributes:
        ms: until its first new token if it had the engine for itself; what is restored is not computed.
        chunk_ms, answer_ms: see `StepCost`.
    """

    ms: float
    chunk_ms: float
    answer_ms: float


@dataclass(frozen=True, slots=True)
class _Prediction:
    made_s: float
    num_computed_tokens: int
    restoring: tuple[int, int] | None
    time: PrefillTime


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

    def of(self, request: Request) -> PrefillTime:
        """What it takes from now on."""
        now_s, known = self._clock(), self._predictions.get(request.request_id)
        if (
            known is None
            or known.num_computed_tokens != request.num_computed_tokens
            or known.restoring != request.restoring
            or now_s - known.made_s > REFRESH_S
        ):
            time = PrefillTime(self._ms(request), self._cost.chunk_ms(request), self._cost.answer_ms(request))
            known = _Prediction(now_s, request.num_computed_tokens, request.restoring, time)
            self._predictions[request.request_id] = known
        return known.time

    def ms(self, request: Request) -> float:
        """Time until the first new token."""
        return self.of(request).ms

    def _ms(self, request: Request) -> float:
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
