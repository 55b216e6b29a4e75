"""Runs the model over one flattened batch. Owns the KV tensors; knows nothing of scheduling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from swaa_runtime.attention.backend import AttentionBackend, ChunkView, PagedContext, StepContext
from swaa_runtime.attention.interruptible import InterruptibleContext
from swaa_runtime.attention.prefix import PrefixAttention, make_prefix_attention
from swaa_runtime.attention.reference import ReferenceBackend
from swaa_runtime.attention.windowed import WindowedBackend
from swaa_runtime.batch import Batch
from swaa_runtime.config import AttentionBackendName, EngineConfig
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.kv_cache.storage import KVStorage, StateMemory
from swaa_runtime.layer_pacer import EventPacer, HostPacer, LayerPacer
from swaa_runtime.model.decoder import Decoder, TransformersDecoder, gpu_decoder
from swaa_runtime.model.loader import LoadedModel, torch_dtype
from swaa_runtime.shape import ModelShape
from swaa_runtime.step_timer import CudaTimer, HostTimer, StepTimer
from swaa_runtime.upload import upload

ContextFactory = Callable[[Sequence[ChunkView], torch.Tensor], StepContext]


class DecodeSteps(Protocol):
    """A faster way to run batches that only decode. See `DecodeGraphs`."""

    def takes(self, batch: Batch) -> bool: ...

    def run(self, batch: Batch) -> torch.Tensor: ...

    def run_next(self, batch: Batch, token_ids: torch.Tensor) -> torch.Tensor: ...

    def capture_all(self) -> None: ...


class ModelRunner:
    """One model, its KV memory and its attention on one device; `attention_name` says in words which attention.

    With the "triton" backend the decoder is ours where it can be, and then decoding runs as CUDA graphs.

    Attributes:
        shape: of the whole model.
        part: KV memory of what this process computes of it.
        storage: KV memory as states are copied out of and into it: all heads.
        is_interruptible: whether `run` calls back between layers.
        query_multiple: long prompts are computed fastest in chunks that end at multiples of so many positions.
    """

    is_interruptible = True
    query_multiple = 1

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self.shape = loaded.shape
        self.device: torch.device = loaded.model.device
        shape = loaded.part_shape
        self.part = KVStorage(
            config.num_blocks,
            config.block_size_tokens,
            shape.num_kv_heads,
            shape.head_dim,
            torch_dtype(shape.dtype),
            self.device,
            config.kv_dtype,
        )
        self.storage: StateMemory = self.part
        self.adapters = loaded.adapters
        self._lm_head: Any = loaded.model.get_output_embeddings()
        self._contexts: ContextFactory
        self._decode_steps: DecodeSteps | None = None
        self._warm_up_kernels: Callable[[], None] | None = None
        self.attention_name: str = config.attention_backend
        if config.attention_backend == "triton":
            prefix = make_prefix_attention(config.dense_attention, shape, self.device)
            self.attention_name = f"triton (dense: {prefix.name})"
            self.query_multiple = prefix.query_multiple
            parts = _on_triton(self.part, loaded, config, prefix)
            self._decoder, self._contexts, self._decode_steps, self._warm_up_kernels = parts
        else:
            self._decoder = TransformersDecoder(loaded.model)
            self._contexts = partial(PagedContext, self.part, make_backend(config.attention_backend))

    @property
    def decoder_name(self) -> str:
        """Whose code runs the decoder's layers: "fused" (ours) or "transformers"."""
        return self._decoder.name

    @torch.inference_mode()
    def run(self, batch: Batch, between_layers: Callable[[], None] | None = None) -> torch.Tensor:
        """Float32 logits [n, vocab_size] of the rows that are sampled; K and V of all are in `storage` afterwards.

        Args:
            between_layers: see `forward`. Steps that only decode may be too short for it.
        """
        if self._decode_steps is not None and self._decode_steps.takes(batch):
            return self._decode_steps.run(batch)
        return self.logits(self.forward(batch, upload(batch.sampled_rows, self.device), between_layers))

    def runs_ahead_of(self, batch: Batch) -> bool:
        """Whether `run_next` may be called after this batch. Only of batches that only decode."""
        return self._decode_steps is not None and self._decode_steps.takes(batch)

    @torch.inference_mode()
    def run_next(self, batch: Batch, token_ids: torch.Tensor) -> torch.Tensor:
        """Ask for the step after `batch`, which ran last, if it gives each request the token that was drawn after it.

        Should it be another, running that one puts right what this one stores: K and V of the tokens after `batch`.

        Args:
            token_ids: int64 [n] on the device, of `batch.sampled`. The block tables have room for them.

        Returns:
            What `run` would.
        """
        assert self._decode_steps is not None  # noqa: S101 - see `runs_ahead_of`
        return self._decode_steps.run_next(batch, token_ids)

    @torch.inference_mode()
    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """Hidden states of all T tokens, [T, hidden_size], or of int64 rows [n] alone; K and V of all are stored.

        Args:
            between_layers: called once for each layer but the first, when the layers before have been asked for and at
                most about one of them is still to be computed. It may run batches of other requests.
        """
        token_ids, positions = (upload(array, self.device) for array in (batch.token_ids, batch.positions))
        slots = batch.slots(self.storage.block_size_tokens, self.device)
        if batch.num_layers < self.shape.num_layers:
            # A later chunk's first queries, which nobody needs either, read some of it beside what others need.
            self.part.clear(slots[batch.num_layers :].flatten())
        with self.adapters.active.during(batch.adapter_rows(self.device)):
            context = self._interruptible(self._contexts(batch.chunks, slots), between_layers)
            return self._decoder.forward(token_ids, positions, context, rows, batch.num_layers)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [n, vocab_size] of hidden states [n, hidden_size]."""
        logits: torch.Tensor = self._lm_head(hidden)
        return logits.float()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Do once what requests would wait for: on a GPU, compile and prepare kernels, and capture decoding's graphs.

        Where Triton has to compile it takes 10 to 20 s (an H100's host), else a few seconds. Call it on the thread that
        runs batches: some of it is a thread's own (see `PrefixAttention.warm_up`). KV memory stays as it is.
        """
        if self.device.type != "cuda":
            return
        if self._warm_up_kernels is not None:
            self._warm_up_kernels()
        if self._decode_steps is not None:
            self._decode_steps.capture_all()

    def check(self) -> None:
        """Raise EngineFailed if what was computed last cannot be trusted, as somebody who took part has ended.

        Any thread may call it.
        """

    def _interruptible(self, context: StepContext, between_layers: Callable[[], None] | None) -> StepContext:
        """The step's context, which calls back (see `forward`) as if no forward was running."""
        if between_layers is None:
            return context

        def outside() -> None:
            with self.adapters.active.during(()):
                between_layers()

        pacer: LayerPacer = EventPacer(torch.cuda.Event) if self.device.type == "cuda" else HostPacer()
        return InterruptibleContext(context, pacer, outside)

    def timer(self) -> StepTimer:
        """Started now."""
        return CudaTimer() if self.device.type == "cuda" else HostTimer()


def make_backend(name: AttentionBackendName) -> AttentionBackend:
    """The attention backend of that name, of those that attend chunk by chunk."""
    return ReferenceBackend() if name == "reference" else WindowedBackend()


def fastest_backend(shape: ModelShape, device: torch.device, block_size_tokens: int) -> AttentionBackendName:
    """ "triton" on a GPU where its kernels take the model's shape, else "windowed"."""
    if device.type != "cuda":
        return "windowed"
    try:
        from swaa_runtime.attention.paged_triton import check_shape

        check_shape(shape, block_size_tokens)
    except (ModuleNotFoundError, ModelNotSupported):
        return "windowed"
    return "triton"


TritonParts = tuple[Decoder, ContextFactory, DecodeSteps | None, Callable[[], None]]


def _on_triton(storage: KVStorage, loaded: LoadedModel, config: EngineConfig, prefix: PrefixAttention) -> TritonParts:
    """Decoder, contexts and decoding steps on Triton's kernels, and what warms these up.

    They are imported only here: a CPU need not have them.

    Raises:
        ModelNotSupported: if triton is not installed, or the kernels do not take the model's shape.
    """
    try:
        from swaa_runtime.attention.paged_triton import TritonContext, check_kv_dtype, check_shape, warm_up
        from swaa_runtime.decode_graphs import DecodeGraphs
        from swaa_runtime.model.fused import FusedDecoder
        from swaa_runtime.model.layer_graphs import GraphedDecoder
    except ModuleNotFoundError as exc:
        raise ModelNotSupported("attention_backend 'triton' needs triton: pip install 'swaa[gpu]'") from exc
    shape = loaded.part_shape
    check_shape(shape, config.block_size_tokens)
    check_kv_dtype(config.kv_dtype, loaded.model.device)
    contexts = partial(TritonContext, storage, shape, prefix)
    decoder = gpu_decoder(loaded.model, loaded.group)
    # Sums over ranks are not recorded: a long one runs beside other work.
    graphed = None
    if isinstance(decoder, FusedDecoder) and loaded.group is None:
        graphed = GraphedDecoder(decoder, storage, shape, config.max_step_tokens)

    def warm_up_kernels() -> None:
        query_row = shape.num_heads * shape.head_dim
        if isinstance(decoder, FusedDecoder):
            decoder.warm_up(storage, config.max_step_tokens)
            query_row = decoder.query_row
        warm_up(storage, shape, prefix, query_row, config.max_step_tokens, config.max_model_tokens)
        if graphed is not None:
            graphed.capture_all()

    if not isinstance(decoder, FusedDecoder):
        return decoder, contexts, None, warm_up_kernels
    lm_head = loaded.model.get_output_embeddings()
    graphs = DecodeGraphs(decoder, lm_head, storage, shape, config.max_running, config.max_model_tokens)
    return graphed or decoder, contexts, graphs, warm_up_kernels
