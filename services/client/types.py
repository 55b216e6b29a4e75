"""What the service answers, as plain frozen types. Names and meanings are the proto's.

`decode.read` fills each of them from the message of the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""The model's end of sequence or a stop string, or `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat prompt. `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a request attends. Layers are indices in this model; `window` 0 is full attention in every layer."""

    name: str
    description: str
    window: int
    sink_tokens: int
    full_layers: tuple[int, ...]
    lookback_layers: tuple[int, ...]
    full_decode: bool
    full_tail: int
    thinking: bool
    adapter: str


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request aims at: its SLA class with its own headers over it."""

    sla_class: str
    ttft_ms: float
    tpot_ms: float
    min_quality: float
    priority: int
    strict: bool


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """How the start of a turn's tokens gets its KV: `kind` none, hot, load, mix or recompute; why, in words."""

    kind: str
    source: str
    restored_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a recipe is expected to give.

    `quality`: recall relative to full attention at this length, 0..1. Of `ttft_ms`, `wait_ms` is spent on others;
    `work_ms` keeps the engine busy. `harmed_turns`: promised before, would miss what they aim at because of this one.
    """

    ttft_ms: float
    tpot_ms: float
    quality: float
    kv_bytes: int
    computed_tokens: int
    wait_ms: float
    work_ms: float
    harmed_turns: int
    restore: RestorePlan


@dataclass(frozen=True, slots=True)
class Accepted:
    """A turn is about to run: recipe, objective, prediction, and why. `session_id` is empty without a session."""

    request_id: str
    session_id: str
    recipe: Recipe
    objective: Objective
    prediction: Prediction
    predicted_to_meet: bool
    reason: str
    prompt_tokens: int
    history_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far history and prompt are, in tokens; `restored_tokens` of those done were not computed in this turn."""

    done_tokens: int
    total_tokens: int
    restored_tokens: int


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability of a token, and of the likeliest ones at its place."""

    logprob: float
    top_token_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, and the text that became certain with it (may be empty).

    Texts of all tokens make the answer's. Text that was held back to the end comes with a `token_id` of None.
    """

    token_id: int | None
    text: str
    logprob: Logprob | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a turn: computed_tokens = history_tokens + prompt_tokens - restored_tokens."""

    prompt_tokens: int
    history_tokens: int
    restored_tokens: int
    computed_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """What happened when; `ttft_ms` is from arrival at the gateway, `tpot_ms` the mean after the first token."""

    queue_ms: float
    restore_ms: float
    ttft_ms: float
    tpot_ms: float
    save_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class KvMemory:
    """KV memory held when the turn ended, at most during it, and by full attention for as many tokens."""

    resident_bytes: int
    peak_bytes: int
    full_attention_bytes: int


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What became of the session: its version, whether the turn was saved (else `error`), how its KV came back."""

    session_id: str
    version: int
    saved: bool
    error: str
    history: str
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A turn that ended well.

    Attributes:
        text, token_ids: what was generated; `tokens` piece by piece, with log-probabilities if asked for.
        accepted: how the service took the request: recipe, objective, prediction.
        sla_misses: what of the objective was missed, by how much; empty if `sla_met`.
        session: None without a session.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    accepted: Accepted
    reason: FinishReason
    usage: Usage
    timings: Timings
    kv_memory: KvMemory
    sla_met: bool
    sla_misses: tuple[str, ...]
    session: SessionResult | None

    @property
    def recipe(self) -> Recipe:
        """What it ran under."""
        return self.accepted.recipe

    @property
    def prediction(self) -> Prediction:
        """What was expected of it."""
        return self.accepted.prediction


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe that was weighed, and what of the objective it would miss."""

    recipe: Recipe
    prediction: Prediction
    meets: bool
    misses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which recipe would be picked, and why; all candidates, best quality first."""

    chosen: Candidate
    reason: str
    objective: Objective
    candidates: tuple[Candidate, ...]
    prompt_tokens: int
    history_tokens: int


@dataclass(frozen=True, slots=True)
class SlaClass:
    """A named objective."""

    name: str
    description: str
    ttft_ms: float
    tpot_ms: float
    min_quality: float
    priority: int


@dataclass(frozen=True, slots=True)
class QualityPoint:
    """Measured recall, 0..1, at a prompt length."""

    prompt_tokens: int
    recall: float


@dataclass(frozen=True, slots=True)
class MeasuredRecipe:
    """A recipe of the catalogue with its measured quality."""

    recipe: Recipe
    quality: tuple[QualityPoint, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """What is served: recipes, SLA classes, the model, and where the figures come from.

    `catalog_error`: why what is in the catalogue's file now is not used; empty if it is.
    """

    recipes: tuple[MeasuredRecipe, ...]
    sla_classes: tuple[SlaClass, ...]
    model: str
    num_layers: int
    max_model_tokens: int
    attention_backend: str
    quality_source: str
    cost_source: str
    device: str
    catalog_source: str
    catalog_error: str
    catalog_loaded_at_s: float


@dataclass(frozen=True, slots=True)
class Session:
    """A saved session. Times in seconds since the epoch."""

    session_id: str
    version: int
    num_tokens: int
    num_turns: int
    recipe_name: str
    kv_bytes: int
    created_at_s: float
    updated_at_s: float
    expires_at_s: float
