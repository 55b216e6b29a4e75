"""What became of one request of a load; a line of the results file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OK = "OK"
REFUSED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class Result:
    """Figures as the client saw them; a figure that there is none of is 0.

    Attributes:
        arrival_ms, sent_ms: when the trace wanted it sent, and when it was, from the start of the load.
        status: "OK", or the name of the gRPC status; detail: its message.
        retry_after_ms: what a refusal said of when to come back; None if it said nothing.
        recipe, quality, predicted_*: what the server said when it accepted.
        met: the objective was met, its quality by the server's table; met_latency: leaving quality aside.
    """

    index: int
    arrival_ms: float
    sent_ms: float
    sla_class: str
    session: str
    status: str
    detail: str = ""
    retry_after_ms: float | None = None
    recipe: str = ""
    prompt_tokens: int = 0
    history_tokens: int = 0
    generated_tokens: int = 0
    predicted_ttft_ms: float = 0.0
    predicted_tpot_ms: float = 0.0
    predicted_to_meet: bool = False
    quality: float = 0.0
    objective_ttft_ms: float = 0.0
    objective_tpot_ms: float = 0.0
    min_quality: float = 0.0
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    total_ms: float = 0.0
    met: bool = False
    met_latency: bool = False

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.status == OK

    @property
    def refused(self) -> bool:
        """Whether the server refused it instead of being late."""
        return self.status == REFUSED


def write_results(path: Path, results: Sequence[Result]) -> None:
    """One JSON object a line, in the trace's order."""
    path.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), encoding="utf-8")
