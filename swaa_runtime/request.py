"""One request as the engine sees it: tokens, recipe, sampling, and how far it has come.

`Request` is the one mutable object of the runtime. The scheduler moves `status`, the KV manager fills `block_tables`,
the engine advances `num_computed_tokens` and appends to `token_ids`; nobody else writes to it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field

from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.visibility import Turn

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
"""Of each: at every token the end of the text is compared with all their beginnings."""

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to pick the next token.

    Attributes:
        max_tokens: tokens to generate at most.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probabilities reach this sum.
        min_p: drop tokens less likely than this fraction of the likeliest.
        seed: makes sampling repeatable; None draws one from the system.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on past the model's end-of-sequence tokens.
        logprobs: number of most likely alternatives to report per token; None reports nothing, 0 the token's own.

    Raises:
        InvalidRequest: on construction, naming the field.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "must be at least 1")
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "must be in 0..100")
        _check("top_k", self.top_k, self.top_k >= 0, "must be at least 0")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "must be above 0 and at most 1")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "must be in 0..1")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "must be in 0..2**63-1")
        _check("stop", self.stop, len(self.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} stop strings")
        _check("stop", self.stop, all(self.stop), "stop strings must not be empty")
        longest = max(map(len, self.stop), default=0)
        bound = f"must be at most {MAX_STOP_CHARACTERS} characters each"
        _check("stop", f"{longest} characters", longest <= MAX_STOP_CHARACTERS, bound)
        logprobs_ok = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        _check("logprobs", self.logprobs, logprobs_ok, f"must be in 0..{MAX_LOGPROBS}")


def _check(name: str, value: object, ok: bool, bound: str) -> None:
    if not ok:
        raise InvalidRequest(name, value, bound)


class Status(enum.Enum):
    """Where a request stands with the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    LEAVING = "leaving"  # preempted; its state is being copied to host memory, then it waits
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    NOT_A_NUMBER = "not a number"  # what it attends to makes no logits: a saved state that somebody made up


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural) of the chosen token before any filtering, and of the likeliest alternatives."""

    logprob: float
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(slots=True)
class Request:
    """One turn: history and prompt, then what is generated for it.

    Attributes:
        token_ids: history, prompt, and generated tokens so far.
        turns: spans of history's turns, then the current turn (open).
        rules: the recipe in each layer.
        num_computed_tokens: leading tokens whose KV is in the pool or was dropped because nothing can see it any more.
        num_restored_tokens: of these, the ones whose KV came with the request.
        continues: whether another turn may follow, so that its state is to be exported.
        checkpoint_tokens: while the prompt is prefilled, its state is exported at multiples of this; 0: never.
        num_sent_tokens: tokens of this turn that were generated elsewhere and are computed like a prompt.
        forced_token_id: what the next sampled token is, whatever the logits say: the turn goes on from one cut off.
        compute_limit: tokens from here on may not be computed yet, because their state is on its way in, or the state
            up to here on its way out; None: all may.
        restoring: tokens [start, stop) whose KV is on its way in and will not be computed; None: none are.
        deadline_s: on the clock of time.monotonic, or None.
        ttft_due_s: when its first token is due, on the same clock; None: at no particular time.
        tpot_ms: time per token after it that is aimed at; None: none.
        queued_s: since when it waits for admission, on the same clock.
        num_preemptions: how often it was taken out for one more urgent.
        preempted_at_tokens: `num_computed_tokens` when that happened last; -1: it never has.
        block_tables: per layer the block id of each logical block; 0 where freed.
        num_held_blocks, peak_blocks: blocks it holds over all layers, now and at most.
        layers_by_rule: which layers have which of the rules.
    """

    request_id: str
    token_ids: list[int]
    turns: tuple[Turn, ...]
    recipe: Recipe
    rules: tuple[LayerRule, ...]
    sampling: SamplingParams
    continues: bool = False
    priority: int = 0
    deadline_s: float | None = None
    ttft_due_s: float | None = None
    tpot_ms: float | None = None
    checkpoint_tokens: int = 0
    num_sent_tokens: int = 0
    forced_token_id: int | None = None
    compute_limit: int | None = None
    restoring: tuple[int, int] | None = None
    num_restored_tokens: int = 0
    num_computed_tokens: int = 0
    status: Status = Status.WAITING
    paused: bool = False
    finish_reason: FinishReason | None = None
    block_tables: list[MutableSequence[int]] = field(default_factory=list)
    num_reserved_blocks: int = 0
    num_held_blocks: int = 0
    peak_blocks: int = 0
    num_preemptions: int = 0
    preempted_at_tokens: int = -1
    arrival_s: float = field(default_factory=time.monotonic)
    queued_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    layers_by_rule: tuple[tuple[LayerRule, tuple[int, ...]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layers: dict[LayerRule, list[int]] = {}
        for layer, rule in enumerate(self.rules):
            layers.setdefault(rule, []).append(layer)
        self.layers_by_rule = tuple((rule, tuple(which)) for rule, which in layers.items())

    @property
    def prompt_stop(self) -> int:
        """End of the current turn's prompt: positions from here on are generated."""
        return self.turns[-1].generated_start

    @property
    def num_generated_tokens(self) -> int:
        """Tokens generated in this turn."""
        return len(self.token_ids) - self.prompt_stop

    @property
    def num_left_tokens(self) -> int:
        """Tokens that it may generate yet in this turn."""
        return self.sampling.max_tokens - self.num_generated_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its first token is out: from then on one token is computed at a time."""
        return self.first_token_s is not None

    def next_token_due_s(self, tpot_share: float = 1.0) -> float | None:
        """When the next token is due so that this share of `tpot_ms` holds over all since the first; None: never."""
        if self.first_token_s is None or self.tpot_ms is None:
            return None
        num_tokens = self.num_generated_tokens - self.num_sent_tokens
        return self.first_token_s + num_tokens * self.tpot_ms * tpot_share / 1e3

    @property
    def num_remaining_tokens(self) -> int:
        """Known tokens that have not been computed yet: 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_ready_tokens(self) -> int:
        """Of the remaining tokens those that may be computed now: up to `compute_limit` and the next checkpoint."""
        stop = len(self.token_ids)
        if self.compute_limit is not None:
            stop = min(stop, self.compute_limit)
        if self.checkpoint_tokens:
            checkpoint = (self.num_computed_tokens // self.checkpoint_tokens + 1) * self.checkpoint_tokens
            if self.is_checkpoint(checkpoint):
                stop = min(stop, checkpoint)
        return max(0, stop - self.num_computed_tokens)

    def is_checkpoint(self, num_tokens: int) -> bool:
        """Whether the state after so many tokens is worth a checkpoint: another prompt may have the same start.

        Not once the tail has begun, which is where this prompt ends and another may go on. And not at the prompt's very
        end, so that no generated token waits for a copy.
        """
        if not self.checkpoint_tokens or num_tokens % self.checkpoint_tokens:
            return False
        return 0 < num_tokens <= self.prompt_stop - max(1, self.recipe.full_tail)

    @property
    def max_total_tokens(self) -> int:
        """Most tokens of KV the request can come to hold: the last generated token is never computed."""
        return self.prompt_stop + self.sampling.max_tokens - 1


def new_request(
    request_id: str,
    prompt_token_ids: Sequence[int],
    recipe: Recipe,
    num_layers: int,
    sampling: SamplingParams,
    *,
    history_token_ids: Sequence[int] = (),
    history_turns: Sequence[Turn] = (),
    continues: bool = False,
    priority: int = 0,
    deadline_s: float | None = None,
    ttft_due_s: float | None = None,
    tpot_ms: float | None = None,
    checkpoint_tokens: int = 0,
    sent_token_ids: Sequence[int] = (),
) -> Request:
    """A request that appends a prompt to a (possibly empty) history.

    Args:
        sent_token_ids: what has been generated for the prompt already, elsewhere. All but the last is computed like a
            prompt; the last is sampled again, so that whatever ends with it ends here too.

    Raises:
        InvalidRequest: for an empty prompt, or turns that do not cover the history.
        InvalidRecipe: for layers the model does not have.
    """
    if not prompt_token_ids:
        raise InvalidRequest("prompt", "", "must have at least one token")
    start = len(history_token_ids)
    covered = history_turns[-1].stop if history_turns else 0
    if covered != start:
        raise InvalidRequest("turns", covered, f"must cover the history of {start} tokens")
    turn = Turn(start, start + len(prompt_token_ids))
    return Request(
        request_id=request_id,
        token_ids=[*history_token_ids, *prompt_token_ids, *sent_token_ids[:-1]],
        turns=(*history_turns, turn),
        recipe=recipe,
        rules=recipe.resolve(num_layers),
        sampling=sampling,
        continues=continues,
        priority=priority,
        deadline_s=deadline_s,
        ttft_due_s=ttft_due_s,
        tpot_ms=tpot_ms,
        checkpoint_tokens=checkpoint_tokens,
        num_sent_tokens=len(sent_token_ids[:-1]),
        forced_token_id=sent_token_ids[-1] if sent_token_ids else None,
    )
