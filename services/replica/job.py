"""What goes into a replica and what comes out of it: one turn, and its events."""

from __future__ import annotations

from dataclasses import dataclass

from services.restore_plan import RestorePlan
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class SessionUse:
    """The session a turn belongs to.

    `version` is what the gateway planned with, 0 for a new session. `idempotency_key` is saved with the turn.
    `quota_bytes` is what the tenant may store; None: what the store bounds every tenant to.
    """

    tenant: str
    session_id: str
    version: int
    idempotency_key: str = ""
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One turn to run.

    Attributes:
        deadline_s: on the clock of time.monotonic.
        ttft_due_s: when the first token is due, on the same clock; None: at no particular time.
        tpot_ms: time per token after it that is aimed at.
        restore: how its history gets its KV back.
        sent_token_ids: tokens of the turn that the client has already, as it was cut off elsewhere. The turn goes on
            after them; the last of them comes out once more, as the first token.
        trace_headers: `traceparent` and `tracestate` of whoever asks; empty without a trace.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    recipe_name: str
    recipe: Recipe
    sampling: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    ttft_due_s: float | None = None
    tpot_ms: float | None = None
    session: SessionUse | None = None
    restore: RestorePlan | None = None
    sent_token_ids: tuple[int, ...] = ()
    trace_headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """What became of the session: its new version, whether it was saved (if not, why), and how its state came back."""

    version: int
    saved: bool
    error: str
    history: str
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a turn. Times in ms; bytes of KV memory held at the end, at most, and by full attention.

    Attributes:
        prefill_ms: from admission to the first token here; 0 if it came from elsewhere, or there was none.
    """

    reason: FinishReason
    text: str
    num_generated_tokens: int
    num_restored_tokens: int
    queue_ms: float
    prefill_ms: float
    restore_ms: float
    save_ms: float
    resident_bytes: int
    peak_bytes: int
    full_attention_bytes: int
    session: SessionOutcome | None


Event = PrefillProgress | TokenOutput | Done
