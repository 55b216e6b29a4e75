"""Our own layer loop over the weights of a transformers decoder: fewer and larger operations, for a GPU.

x ──▶ norm ──▶ [q k v] ──▶ norms, RoPE, store ──▶ attend ──▶ o ──▶ + ──▶ norm ──▶ [gate up] ──▶ silu · ──▶ down ──▶ +
                                                              Σ                                                Σ

q, k, v and gate, up are one matmul each: their weights become rows of one tensor, of which the model's own parameters
are views from then on, so nothing is held twice and transformers' forward computes what it did. The twin of all this is
that forward.

Where several ranks share out the heads (Σ), all that lies between attention and attention is row by row: a long step's
rows are cut into pieces, so that the sum of one piece over the ranks is under way while the next piece is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from swaa_runtime.attention.backend import StoredContext
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.group import Group
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.adapters import AdaptedLinear
from swaa_runtime.model.quantized import described, is_plain

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SILU = ("silu", "swish")

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class DecoderOps(Protocol):
    """The modules `swaa_runtime.kernels.elementwise` (Triton) and its twin `elementwise_reference` (torch)."""

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor: ...

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def silu_and_mul(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor: ...

    def norm_rope_and_store(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Projection:
    """Linear modules of one input as one matmul.

    Attributes:
        weight: [all their outputs, inputs]; bias: [all their outputs], or None.
        adapted: those that adapters may change, each with its columns of the output.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    adapted: tuple[tuple[slice, AdaptedLinear], ...]

    def __call__(self, x: torch.Tensor, linear: Linear, out: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, inputs] -> [T, all outputs]; of many rows also to memory that is given."""
        if out is None:
            out = linear(x, self.weight, self.bias)
        elif self.bias is None:
            torch.mm(x, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, x, self.weight.T, out=out)
        for columns, module in self.adapted:
            module.add_updates(x, out[:, columns])
        return out


@dataclass(frozen=True, slots=True)
class Norm:
    """Weight and epsilon of an RMS norm."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, with what follows it.

    Attributes:
        next_norm: the next layer's, or the model's last.
        next_qkv: the next layer's; None after the last.
    """

    q_norm: Norm | None
    k_norm: Norm | None
    scale: float
    o: Projection
    mlp_norm: Norm
    gate_up: Projection
    down: Projection
    next_norm: Norm
    next_qkv: Projection | None


@dataclass(frozen=True, slots=True)
class _NoContext:
    """See StoredContext: nothing is stored, and queries are what they attend to."""

    storage: KVStorage
    slots: torch.Tensor

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        return query.contiguous()


class FusedDecoder:
    """A dense transformers decoder, from token ids to the hidden states after the last norm.

    Built once the model is on its device in its dtype, with its adapters beside it: moving it later undoes the sharing.
    """

    name = "fused"

    def __init__(
        self,
        model: Any,
        ops: DecoderOps,
        linear: Linear = functional.linear,
        gated_linear: Linear | None = None,
        group: Group | None = None,
    ) -> None:
        """Fuse a causal LM as `load_model` gives it, or the part of it that `shard_model` leaves.

        Args:
            linear: multiplies, as torch's own does.
            gated_linear: gate and up projection with their activation in one; without, that is two operations.
            group: whose members have the other parts.

        Raises:
            ModelNotSupported: for a decoder that this loop does not compute, with the reason.
        """
        check_fusable(model)
        decoder = model.base_model
        self._ops = ops
        self._linear = linear
        self._gated_linear = gated_linear
        self._group = group
        self._embedding: torch.Tensor = decoder.embed_tokens.weight
        self._rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]] = decoder.rotary_emb
        norms = [*(_norm(layer.input_layernorm) for layer in decoder.layers), _norm(decoder.norm)]
        qkvs = [_qkv(layer) for layer in decoder.layers]
        self._first_norm, self._first_qkv = norms[0], qkvs[0]
        following = zip(decoder.layers, norms[1:], [*qkvs[1:], None], strict=True)
        self._layers = [_layer(layer, norm, qkv) for layer, norm, qkv in following]
        # All of a model's adapters are active or none: the first module tells.
        self._adapted = [module for module in decoder.modules() if isinstance(module, AdaptedLinear)][:1]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: StoredContext,
        rows: torch.Tensor | None = None,
        num_layers: int | None = None,
    ) -> torch.Tensor:
        """Hidden states of int64 token ids and positions [T]: [T, hidden_size], or of some rows alone.

        Without active adapters it may be captured in a CUDA graph, if the context's `attend_stored` may.

        Args:
            rows: int64 [n], whose hidden states are wanted. The last layer does no more for the others than to store
                their keys and values: most of a prompt needs no more of it, and of no rows it computes no attention.
            num_layers: if no rows are wanted, so many layers are enough, from the first.
        """
        if rows is not None and rows.numel() and self.adapters_are_active:  # they name rows of all T
            return self.forward(token_ids, positions, context)[rows]
        residual, cos, sin = self.embed(token_ids, positions)

        def before_attention(layer: int, attended: torch.Tensor | None) -> torch.Tensor:
            qkv = self.first_qkv(residual) if attended is None else self.mix(layer - 1, attended, residual)
            return self.store(layer, qkv, cos, sin, context.slots[layer], context.storage)

        return self.run_layers(before_attention, residual, context, rows, num_layers)

    def run_layers(
        self,
        before_attention: Callable[[int, torch.Tensor | None], torch.Tensor],
        residual: torch.Tensor,
        context: StoredContext,
        rows: torch.Tensor | None,
        num_layers: int | None,
    ) -> torch.Tensor:
        """The layers of a forward, whoever computes what lies between attention and attention.

        Args:
            before_attention: of a layer's index and what the layer before attended to [T, num_heads * head_dim] (None:
                there is none), its queries [T, num_heads, head_dim], once its keys and values are stored.
            residual: what that adds to.
            context, rows, num_layers: see `forward`.
        """
        stored_only = rows is not None and rows.numel() == 0
        last = (num_layers if stored_only and num_layers is not None else len(self._layers)) - 1
        attended = None
        for layer in range(last):
            query = before_attention(layer, attended)
            attended = context.attend_stored(layer, query, self._layers[layer].scale).flatten(1)
        query = before_attention(last, attended)
        if stored_only:
            return residual[:0]
        attended = context.attend_stored(last, query, self._layers[last].scale).flatten(1)
        if rows is not None:
            attended, residual = attended[rows], residual[rows]
        return self.mix(last, attended, residual)

    def warm_up(self, storage: KVStorage, num_tokens: int) -> None:
        """Run steps of one token, of few and of `num_tokens`, which store nothing: what they compile is compiled.

        Of all ranks together. The longest one takes its time and memory; compiling a quarter of a second a kernel.
        """
        for size in (1, 2, num_tokens):
            positions = torch.zeros(size, dtype=torch.int64, device=storage.keys.device)
            slots = positions.new_full((len(self._layers), size), -1)
            self.forward(positions, positions, _NoContext(storage, slots))

    @property
    def hidden_size(self) -> int:
        """Elements of a row of the residual."""
        return self._embedding.shape[1]

    @property
    def query_row(self) -> int:
        """Elements from one query to the next, as `attend_stored` gets them: a view of queries, keys and values."""
        return len(self._first_qkv.weight)

    # What a forward consists of, between attention and attention.

    def embed(
        self, token_ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The residual [T, hidden_size] that the layers add to, and cos and sin [T, head_dim] of the positions."""
        residual = functional.embedding(token_ids, self._embedding)
        cos, sin = (angles[0] for angles in self._rotary(residual.unsqueeze(0), positions.unsqueeze(0)))
        return residual, cos, sin

    def first_qkv(self, residual: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The first layer's queries, keys and values [T, query_row]."""
        hidden = self._ops.rms_norm(residual, self._first_norm.weight, self._first_norm.eps)
        return self._first_qkv(hidden, self._linear, out)

    def store(
        self,
        index: int,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        storage: KVStorage,
    ) -> torch.Tensor:
        """Store the layer's keys and values in its slots, int64 [T].

        Returns:
            Its queries [T, num_heads, head_dim]: a view of `qkv`.
        """
        layer = self._layers[index]
        return self._ops.norm_rope_and_store(
            qkv,
            cos,
            sin,
            None if layer.q_norm is None else layer.q_norm.weight,
            None if layer.k_norm is None else layer.k_norm.weight,
            0.0 if layer.q_norm is None else layer.q_norm.eps,
            slots,
            storage.keys,
            storage.values,
            storage.scales,
        )

    def mix(
        self, index: int, attended: torch.Tensor, residual: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """All that follows attention: the next layer's queries, keys and values, or the hidden states after the last.

        The residual changes in place.

        Args:
            attended: [T, num_heads * head_dim].
            out: takes queries, keys and values of many rows, [T, query_row].
        """
        layer = self._layers[index]
        linear, add_rms_norm = self._linear, self._ops.add_rms_norm
        pieces = self._pieces(len(attended))
        sums = [self._start_sum(layer.o(attended[piece], linear)) for piece in pieces]
        for at, piece in enumerate(pieces):
            x = sums[at]()
            hidden, _ = add_rms_norm(x, residual[piece], layer.mlp_norm.weight, layer.mlp_norm.eps, x)
            sums[at] = self._start_sum(layer.down(self._gate(layer.gate_up, hidden), linear))
        normed = (
            add_rms_norm(x, residual[piece], layer.next_norm.weight, layer.next_norm.eps, x)[0]
            for piece, x in zip(pieces, (summed() for summed in sums), strict=True)
        )
        if layer.next_qkv is None:
            return _joined(list(normed))
        if len(pieces) == 1:
            return layer.next_qkv(next(normed), linear, out)
        qkv = attended.new_empty(len(attended), len(layer.next_qkv.weight)) if out is None else out
        for piece, x in zip(pieces, normed, strict=True):
            layer.next_qkv(x, linear, qkv[piece])
        return qkv

    def _pieces(self, num_rows: int) -> list[slice]:
        """What is computed at a time of what is row by row."""
        if self._group is None or self.adapters_are_active:  # they name rows of all
            return [slice(0, num_rows)]
        return self._group.pieces(num_rows)

    def _start_sum(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Add x up over the ranks, in place; the sum is that of the returned function."""
        if self._group is None:
            return lambda: x
        if len(x) < self._group.piece_rows:  # nothing to hide it behind, and a graph may be recorded
            self._group.sum(x)
            return lambda: x
        return self._group.start_sum(x)

    def _gate(self, gate_up: Projection, hidden: torch.Tensor) -> torch.Tensor:
        if self._gated_linear is None or gate_up.adapted:
            return self._ops.silu_and_mul(gate_up(hidden, self._linear))
        return self._gated_linear(hidden, gate_up.weight, gate_up.bias)

    @property
    def adapters_are_active(self) -> bool:
        """Whether rows of this step have their own updates."""
        return any(module.is_active for module in self._adapted)


def fused_decoder(model: Any, group: Group | None = None) -> FusedDecoder:
    """A FusedDecoder on Triton's kernels. Raises ModelNotSupported if triton is not installed, or as FusedDecoder."""
    try:
        from swaa_runtime.kernels import elementwise, skinny
    except ModuleNotFoundError as exc:
        raise ModelNotSupported("the fused decoder needs triton: pip install 'swaa[gpu]'") from exc
    return FusedDecoder(model, elementwise, skinny.linear, skinny.gated_linear, group)


def check_fusable(model: Any) -> None:
    """Raise ModelNotSupported unless FusedDecoder computes what the model's own forward does."""
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise ModelNotSupported(f"model_type is {config.model_type!r}: the fused decoder runs {', '.join(MODEL_TYPES)}")
    if config.hidden_act not in SILU:
        raise ModelNotSupported(f"activation is {config.hidden_act!r}: the fused decoder has 'silu'")
    decoder = model.base_model
    head_dim = decoder.layers[0].self_attn.head_dim
    if head_dim < 2 or head_dim & (head_dim - 1):
        raise ModelNotSupported(f"head_dim is {head_dim}: the fused decoder needs a power of two")
    if 2 * decoder.rotary_emb.inv_freq.numel() != head_dim:
        raise ModelNotSupported("only a part of each head is rotated, which the fused decoder does not do")
    for name, module in model.named_modules():
        if name.endswith(("_proj", "lm_head")):
            linear = _base(module)
            if not is_plain(linear) or linear.weight.dtype != model.dtype:
                raise ModelNotSupported(f"{name} is no plain linear module of {model.dtype}: {described(linear)}")


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _base(module: Any) -> Any:
    return module.base if isinstance(module, AdaptedLinear) else module


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _qkv(layer: Any) -> Projection:
    attention = layer.self_attn
    return _projection(attention.q_proj, attention.k_proj, attention.v_proj)


def _layer(layer: Any, next_norm: Norm, next_qkv: Projection | None) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    has_norms = hasattr(attention, "q_norm")
    return Layer(
        q_norm=_norm(attention.q_norm) if has_norms else None,
        k_norm=_norm(attention.k_norm) if has_norms else None,
        scale=attention.scaling,
        o=_projection(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_projection(mlp.gate_proj, mlp.up_proj),
        down=_projection(mlp.down_proj),
        next_norm=next_norm,
        next_qkv=next_qkv,
    )


def _projection(*modules: Any) -> Projection:
    adapted, start = [], 0
    for module in modules:
        stop = start + _base(module).out_features
        if isinstance(module, AdaptedLinear):
            adapted.append((slice(start, stop), module))
        start = stop
    linears = [_base(module) for module in modules]
    bias = None if linears[0].bias is None else _share([linear.bias for linear in linears])
    return Projection(_share([linear.weight for linear in linears]), bias, tuple(adapted))


def _share(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """One tensor of all their rows, of which they are views afterwards. If they are so already, that one."""
    first, rows = parameters[0], [parameter.shape[0] for parameter in parameters]
    if _are_adjacent(parameters):
        return first.data.as_strided((sum(rows), *first.shape[1:]), first.stride(), first.storage_offset())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(whole, rows), strict=True):
        parameter.data = part
    return whole


def _are_adjacent(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether each begins where the one before ends, in one storage."""
    storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    ends = (parameter.data_ptr() + parameter.nbytes for parameter in parameters)
    begins = (parameter.data_ptr() for parameter in parameters[1:])
    return len(storages) == 1 and all(begin == end for begin, end in zip(begins, ends, strict=False))
