"""What the runtime's tests are built from: tiny models, requests, engines that record and poison, oracle logits."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.oracle import OracleContext
from swaa_runtime.batch import Batch, ScheduledChunk
from swaa_runtime.config import AttentionBackendName, EngineConfig, KVDtypeName, SchedulingPolicy
from swaa_runtime.engine import Engine
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import KVSlice, keeps_whole_history
from swaa_runtime.model.adapters import BASE_FINGERPRINT, CONFIG_FILE, WEIGHTS_FILE
from swaa_runtime.model.attention import ATTENTION_NAME, register_attention
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.outputs import Checkpoint, Finished, Output, StateSlices, TokenOutput
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.request import Request, SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.visibility import Turn

VOCAB_SIZE = 64
NAN = float("nan")
ADAPTED = ("q_proj", "v_proj")
"""What `write_adapter` adapts."""

FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "qwen3_moe": Qwen3MoeConfig,
}


def tiny_config(family: str, num_layers: int = 3, num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 8) -> Any:
    """A configuration small enough for thousands of forwards; its weights are large enough for sharp attention."""
    extra: dict[str, Any] = {}
    if family == "mistral":
        extra = {"sliding_window": None}
    if family == "qwen3_moe":
        extra = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    if family != "qwen2":
        extra["head_dim"] = head_dim
    return FAMILIES[family](
        vocab_size=VOCAB_SIZE,
        hidden_size=num_heads * head_dim,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=4096,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )


def build_transformer(config: Any, attention: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A transformers model with random weights. The configuration is copied: transformers writes to it."""
    register_attention()
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM.from_config
    model = make(copy.deepcopy(config), attn_implementation=attention, dtype=dtype)
    return model.eval().requires_grad_(False)


@cache
def tiny_model(
    family: str = "llama",
    num_layers: int = 3,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """A loaded tiny model; built once per kind, as nothing writes to it."""
    config = tiny_config(family, num_layers, num_heads, num_kv_heads)
    return wrap_model(build_transformer(config, ATTENTION_NAME, dtype), fingerprint=f"{family}-{num_layers}")


@dataclass(slots=True)
class FakeClock:
    """A clock that moves when it is told to."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(slots=True)
class LinearCost:
    """Steps that take a fixed time and so much a token. Counts how often it is asked."""

    fixed_ms: float = 0.0
    token_ms: float = 1.0
    step_calls: int = 0
    prefill_calls: int = 0

    def step_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        self.step_calls += 1
        return self.fixed_ms + self.token_ms * sum(chunk.num_tokens for chunk in chunks)

    def prefill_ms(self, request: Request) -> float:
        self.prefill_calls += 1
        return self.fixed_ms + self.token_ms * request.num_remaining_tokens

    def chunk_ms(self, request: Request) -> float:
        return 0.0

    def answer_ms(self, request: Request) -> float:
        return self.token_ms

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        pass


@dataclass(slots=True)
class TwoBasesCost(LinearCost):
    """Steps with prompts take more besides than those with answers only, which take `fixed_ms`."""

    prompt_ms: float = 0.0

    def step_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        with_prompts = any(not chunk.request.is_decoding for chunk in chunks)
        return LinearCost.step_ms(self, chunks) + (self.prompt_ms if with_prompts else 0.0)


class LetterDecoder:
    """Every token is one character: decoding never depends on neighbours."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(ord("0") + token_id) for token_id in token_ids)


class RecordingRunner(ModelRunner):
    """A runner that keeps the logits of every position it computes, by request."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self._records: dict[int, list[tuple[int, torch.Tensor]]] = {}

    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        hidden = super().forward(batch, None, between_layers)
        logits = self.logits(hidden)
        for chunk in batch.chunks:
            self.record(chunk, logits[chunk.row : chunk.row + chunk.stop - chunk.start])
        return hidden if rows is None else hidden[rows]

    def record(self, chunk: ChunkView, logits: torch.Tensor) -> None:
        """Keep the logits of a chunk, in place of those of a step that was run ahead in vain."""
        # A request's turns are one tuple from beginning to end, and the test holds the request: its id names it.
        records = self._records.setdefault(id(chunk.turns), [])
        if records and records[-1][0] == chunk.start:
            records.pop()
        records.append((chunk.start, logits))

    def recorded(self, request: Request) -> torch.Tensor:
        """Logits of the positions that were computed, which are all but those restored: [n, vocab_size]."""
        return torch.cat([rows for _, rows in self._records[id(request.turns)]])

    def positions(self, request: Request) -> list[int]:
        """Which positions those are: each once, in order, with one gap at most where a state was restored."""
        records = self._records[id(request.turns)]
        found = [at for start, rows in records for at in range(start, start + rows.shape[0])]
        gaps = [high - low - 1 for low, high in pairwise([-1, *found]) if high != low + 1]
        assert gaps == ([request.num_restored_tokens] if request.num_restored_tokens else [])
        return found


@dataclass(frozen=True, slots=True)
class State:
    """A state as somebody keeps it between two requests: all its slices."""

    num_tokens: int
    slices: tuple[KVSlice, ...]

    def from_token(self, compute_stop: int, rules: Sequence[LayerRule]) -> tuple[KVSlice, ...]:
        """The slices that are still needed if tokens [0, compute_stop) are computed."""
        return tuple(
            part
            for part in self.slices
            if part.key.stop > compute_stop or not keeps_whole_history(rules[part.key.layers[0]])
        )


@dataclass(slots=True)
class Rig:
    """An engine under test. All its memory is NaN except what was written and is still held, and the null block."""

    engine: Engine
    runner: RecordingRunner
    requests: dict[str, Request] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)

    def add(
        self,
        request: Request,
        state: State | None = None,
        saved_keys: Iterable[Any] = (),
        compute_stop: int = 0,
        place: bool = True,
    ) -> Request:
        """Queue a request, and bring the state it restores at once unless `place` is off."""
        parts = () if state is None else state.from_token(compute_stop, request.rules)
        restore = None if state is None else Restore(state.num_tokens, [part.key for part in parts], compute_stop)
        self.engine.add(request, restore, frozenset(saved_keys))
        if place:
            self.engine.place(request.request_id, parts)
        self.requests[request.request_id] = request
        return request

    def resume(self, request: Request, parked_id: str, saved_keys: Iterable[Any] = ()) -> bool:
        """Go on from what a request left in the pool, if it is still there."""
        self.requests[request.request_id] = request
        return self.engine.resume(request, parked_id, frozenset(saved_keys))

    def exported(self, request_id: str) -> list[KVSlice]:
        """All slices that were exported of a request, checkpoints included."""
        mine = [out for out in self.outputs if isinstance(out, StateSlices) and out.request_id == request_id]
        return [part for out in mine for part in out.slices]

    def state(self, request_id: str, *saved: State) -> State:
        """A finished request's state, of what was exported now and saved before."""
        finished = self.finished(request_id)
        assert finished.state is not None
        parts = {part.key: part for state in saved for part in state.slices}
        parts |= {part.key: part for part in self.exported(request_id)}
        return State(finished.state.num_tokens, tuple(parts[key] for key in finished.state.keys))

    def checkpoints(self, request_id: str) -> list[State]:
        """The request's checkpoints as states."""
        parts = {part.key: part for part in self.exported(request_id)}
        mine = [out.state for out in self.outputs if isinstance(out, Checkpoint) and out.request_id == request_id]
        return [State(state.num_tokens, tuple(parts[key] for key in state.keys)) for state in mine]

    def step(self) -> list[Output]:
        """One step, with the invariants that hold after every step."""
        outputs = self.engine.step()
        self.engine.check_integrity()
        for request in self.requests.values():
            assert_next_token_has_room(request, self.engine.config.block_size_tokens)
        self.outputs += outputs
        return outputs

    def run(self, max_steps: int = 10_000) -> None:
        """Step until all requests have ended."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"still not done after {max_steps} steps")

    def finished(self, request_id: str) -> Finished:
        return next(out for out in self.outputs if isinstance(out, Finished) and out.request_id == request_id)

    def tokens(self, request_id: str) -> list[TokenOutput]:
        return [out for out in self.outputs if isinstance(out, TokenOutput) and out.request_id == request_id]

    def text(self, request_id: str) -> str:
        return "".join(out.text for out in self.tokens(request_id)) + self.finished(request_id).text


def assert_next_token_has_room(request: Request, block_size_tokens: int) -> None:
    """Where a table covers the next position already, that block is real: the null block would lose it."""
    index = request.num_computed_tokens // block_size_tokens
    assert all(table[index] != NULL_BLOCK for table in request.block_tables if index < len(table))


def engine_config(
    *,
    num_blocks: int = 2000,
    block_size_tokens: int = 8,
    max_step_tokens: int = 32,
    interrupt_tokens: int = 2048,
    max_running: int = 8,
    max_waiting: int = 8,
    max_model_tokens: int = 2048,
    max_state_bytes: int = 1 << 30,
    export_step_bytes: int = 1 << 20,
    attention_backend: AttentionBackendName = "windowed",
    kv_dtype: KVDtypeName = "model",
    max_queued_ms: float | None = None,
    max_swapped_bytes: int = 1 << 30,
    policy: SchedulingPolicy = "slack",
) -> EngineConfig:
    return EngineConfig(
        num_blocks=num_blocks,
        block_size_tokens=block_size_tokens,
        max_step_tokens=max_step_tokens,
        interrupt_tokens=interrupt_tokens,
        max_running=min(max_running, max_step_tokens),
        max_waiting=max_waiting,
        max_model_tokens=max_model_tokens,
        max_state_bytes=max_state_bytes,
        export_step_bytes=export_step_bytes,
        attention_backend=attention_backend,
        kv_dtype=kv_dtype,
        max_queued_ms=max_queued_ms,
        max_swapped_bytes=max_swapped_bytes,
        policy=policy,
    )


def build_rig(
    loaded: LoadedModel | None = None,
    config: EngineConfig | None = None,
    eos_token_ids: Sequence[int] = (),
    clock: Callable[[], float] = time.monotonic,
    make_runner: Callable[[LoadedModel, EngineConfig], RecordingRunner] = RecordingRunner,
) -> Rig:
    """An engine over a tiny model whose unwritten and freed memory is NaN: reading either shows in the logits."""
    config = config or engine_config()
    runner = make_runner(loaded or tiny_model(), config)
    storage = runner.storage
    storage.fill(range(1, config.num_blocks), NAN)
    engine = Engine(runner, config, LetterDecoder(), eos_token_ids, clock)
    engine.on_freed = lambda blocks: storage.fill(blocks, NAN)
    return Rig(engine, runner)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (count,), generator=generator).tolist()


def build_request(
    request_id: str = "r",
    prompt: int | Sequence[int] = 20,
    recipe: Recipe | None = None,
    num_layers: int = 3,
    sampling: SamplingParams | None = None,
    **options: Any,
) -> Request:
    """A request whose prompt is given, or so many random tokens."""
    tokens = random_tokens(prompt) if isinstance(prompt, int) else list(prompt)
    params = sampling or SamplingParams(max_tokens=4)
    return new_request(request_id, tokens, recipe or Recipe(), num_layers, params, **options)


def integer_request(rules: Sequence[LayerRule], turns: Sequence[Turn], max_tokens: int, continues: bool) -> Request:
    """A request with rules given layer by layer, for tests of memory and scheduling without a model."""
    tokens = [0] * turns[-1].generated_start
    sampling = SamplingParams(max_tokens=max_tokens)
    return Request("r", tokens, tuple(turns), Recipe(), tuple(rules), sampling, continues=continues)


def admitted(manager: KVCacheManager, request: Request) -> Request:
    """The same request, its memory reserved."""
    assert manager.reserve(request), "the pool of this test is too small"
    return request


@torch.no_grad()
def oracle_logits(loaded: LoadedModel, request: Request) -> torch.Tensor:
    """Logits of all positions by dense attention over the whole sequence in one forward: [tokens, vocab_size]."""
    ids = torch.tensor([request.token_ids], device=loaded.model.device)
    context = OracleContext(request.rules, request.turns)
    logits: torch.Tensor = loaded.model(input_ids=ids, use_cache=False, swaa_context=context).logits[0]
    return logits.float()


def assert_equals_oracle(rig: Rig, loaded: LoadedModel, request: Request, tolerance: float = 1e-5) -> None:
    """Every position that was computed has the oracle's logits."""
    got = rig.runner.recorded(request)
    positions = rig.runner.positions(request)
    want = oracle_logits(loaded, request)[positions]
    assert len(positions) == len(request.token_ids) - 1 - request.num_restored_tokens
    assert got.isfinite().all(), "memory that was freed or never written was read"
    assert (got - want).abs().max().item() <= tolerance


def next_turn(
    request_id: str, previous: Request, prompt: Sequence[int], max_tokens: int = 4, **options: Any
) -> Request:
    """A request that goes on where a finished one ended, under the same recipe."""
    *closed, last = previous.turns
    stop = len(previous.token_ids)
    return new_request(
        request_id,
        prompt,
        previous.recipe,
        len(previous.rules),
        SamplingParams(max_tokens=max_tokens),
        history_token_ids=previous.token_ids,
        history_turns=(*closed, Turn(last.start, last.generated_start, stop)),
        **options,
    )


def write_adapter(folder: Path, seed: int, rank: int = 4, base: str | None = None, **config: Any) -> Path:
    """A peft folder with random weights for the tiny model's query and value projections."""
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(ADAPTED):
            for kind, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                tensors[f"base_model.model.{name}.lora_{kind}.weight"] = torch.randn(shape, generator=generator) * 0.2
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS_FILE, None if base is None else {BASE_FINGERPRINT: base})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": list(ADAPTED), "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(settings | config), encoding="utf-8")
    return folder
