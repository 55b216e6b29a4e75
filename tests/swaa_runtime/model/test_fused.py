"""The fused decoder computes what transformers' own forward does, over the same weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swaa_runtime.attention.backend import PagedContext
from swaa_runtime.attention.windowed import WindowedBackend
from swaa_runtime.batch import Batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.kernels import elementwise, elementwise_reference, skinny
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.adapters import AdapterRows, weights_fingerprint
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.fused import DecoderOps, FusedDecoder, Linear, check_fusable, fused_decoder
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.runner import ModelRunner
from tests.swaa_runtime.builders import (
    RecordingRunner,
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    engine_config,
    random_tokens,
    tiny_config,
    write_adapter,
)

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where kernels run: in the interpreter only where there is no CUDA."""

DENSE = ("llama", "mistral", "qwen2", "qwen3")


class FusedRunner(ModelRunner):
    """A runner of the fused decoder with torch's own operations."""

    ops: DecoderOps = elementwise_reference
    linear: Linear = staticmethod(torch.nn.functional.linear)
    gated_linear: Linear | None = None

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self._fused = FusedDecoder(loaded.model, self.ops, self.linear, self.gated_linear)

    @torch.inference_mode()
    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        slots = batch.slots(self.storage.block_size_tokens, torch.device("cpu"))
        paged = PagedContext(self.part, WindowedBackend(), batch.chunks, slots)
        context = self._interruptible(paged, between_layers)
        token_ids, positions = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.positions)
        with self.adapters.active.during(batch.adapter_rows(self.device)):
            return self._fused.forward(token_ids, positions, context, rows)


class RecordingFusedRunner(RecordingRunner, FusedRunner):
    """And one that records."""


class RecordingKernelRunner(RecordingFusedRunner):
    """The same on Triton's kernels."""

    ops = elementwise
    linear = staticmethod(skinny.linear)
    gated_linear = staticmethod(skinny.gated_linear)


def fresh_model(family: str, folders: dict[str, Path] | None = None, **sizes: int) -> LoadedModel:
    """Not the cached one, as fusing writes to it."""
    return wrap_model(build_transformer(tiny_config(family, **sizes), ATTENTION_NAME), "fused", folders)


def fused_rig(loaded: LoadedModel, max_step_tokens: int = 21) -> Rig:
    return build_rig(loaded, engine_config(max_step_tokens=max_step_tokens), make_runner=RecordingFusedRunner)


# What it computes. The oracle goes through transformers' forward over the same weights, after they were fused.


@pytest.mark.parametrize("family", DENSE)
def test_mixed_batches_in_chunks_equal_the_oracle(family: str) -> None:
    loaded = fresh_model(family)
    rig = fused_rig(loaded)
    recipes = [Recipe(window=8, sink_tokens=2, full_tail=3, full_layers="1::2"), Recipe(), Recipe(window=5)]
    requests = [rig.add(build_request(f"r{at}", 40 - 7 * at, recipe)) for at, recipe in enumerate(recipes)]
    rig.run()
    for request in requests:
        assert_equals_oracle(rig, loaded, request)


def test_warming_up_runs_steps_of_all_kinds_and_stores_nothing() -> None:
    loaded = fresh_model("qwen3", num_layers=2, num_heads=2, num_kv_heads=1)
    loaded.model.to(DEVICE)
    storage = KVStorage(2, 8, 1, 8, torch.float32, DEVICE)
    storage.fill([0, 1], float("nan"))
    sizes: list[int] = []

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(x))
        return skinny.linear(x, weight, bias)

    FusedDecoder(loaded.model, elementwise, linear, skinny.gated_linear).warm_up(storage, 70)
    assert set(sizes) == {1, 2, 70}
    assert storage.keys.isnan().all()
    assert storage.values.isnan().all()


@pytest.mark.parametrize("family", DENSE)
def test_the_kernels_give_the_same(family: str) -> None:
    """A few tokens: each takes a tenth of a second in the interpreter."""
    loaded = fresh_model(family, num_layers=2, num_heads=2, num_kv_heads=1)
    loaded.model.to(DEVICE)
    config = engine_config(max_step_tokens=18)  # more rows than skinny matmuls take, and fewer
    rig = build_rig(loaded, config, make_runner=RecordingKernelRunner)
    requests = [
        rig.add(build_request(f"r{at}", count, Recipe(window=4, sink_tokens=1), num_layers=2))
        for at, count in enumerate((19, 3))
    ]
    rig.run()
    for request in requests:
        assert_equals_oracle(rig, loaded, request)


def test_biases_of_all_projections() -> None:
    config = tiny_config("llama")
    config.attention_bias = config.mlp_bias = True
    model = build_transformer(config, ATTENTION_NAME)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    loaded = wrap_model(model, "biased")
    rig = fused_rig(loaded)
    request = rig.add(build_request("r", 30))
    rig.run()
    assert_equals_oracle(rig, loaded, request)


def test_each_request_has_its_own_adapter(tmp_path: Path) -> None:
    """As transformers' forward with the same adapters gives it, in the same mixed batches."""
    folders = {"one": write_adapter(tmp_path / "one", 1), "two": write_adapter(tmp_path / "two", 2, rank=2)}
    rigs = [fused_rig(fresh_model("llama", folders)), build_rig(fresh_model("llama", folders))]
    for rig in rigs:
        for at, name in enumerate(["one", None, "two", "one"]):
            recipe = Recipe(window=8, sink_tokens=2, full_decode=True, adapter=name)
            pinned = rig.runner.adapters.pin(recipe)
            rig.add(build_request(f"r{at}", random_tokens(20 + at, at), pinned))
        rig.run()
    fused, plain = rigs
    for name, request in fused.requests.items():
        got, want = fused.runner.recorded(request), plain.runner.recorded(plain.requests[name])
        assert request.token_ids == plain.requests[name].token_ids
        assert (got - want).abs().max().item() <= 1e-5


class OwnAttention:
    """A context in which each token sees itself alone, that counts."""

    def __init__(self, num_layers: int, num_tokens: int, device: torch.device = CPU) -> None:
        self.storage = KVStorage(num_tokens, 1, 2, 8, torch.float32, device)
        self.slots = torch.arange(num_tokens, device=device).expand(num_layers, -1)
        self.attended: list[int] = []

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        self.attended.append(layer)
        return self.storage.values.squeeze(1).repeat_interleave(2, dim=1)


@pytest.mark.parametrize("rows", [[], [4], [0, 2, 4]])
@torch.inference_mode()
def test_only_the_rows_that_are_wanted(rows: list[int]) -> None:
    decoder = FusedDecoder(fresh_model("qwen3").model, elementwise_reference)
    token_ids, positions, wanted = torch.tensor([3, 1, 4, 1, 5]), torch.arange(5), torch.tensor(rows, dtype=torch.int64)
    whole, part = OwnAttention(3, 5), OwnAttention(3, 5)
    want = decoder.forward(token_ids, positions, whole)[wanted]
    got = decoder.forward(token_ids, positions, part, wanted)
    assert got.shape == want.shape
    assert (got - want).abs().sum().item() <= 1e-5
    assert torch.equal(part.storage.keys, whole.storage.keys)
    assert part.attended == ([0, 1, 2] if rows else [0, 1]), "of no rows the last layer needs no attention"


@torch.inference_mode()
def test_wanted_rows_with_adapters(tmp_path: Path) -> None:
    loaded = fresh_model("llama", {"one": write_adapter(tmp_path / "one", 1)})
    decoder = FusedDecoder(loaded.model, elementwise_reference)
    token_ids, positions, wanted = torch.tensor([3, 1, 4, 1, 5]), torch.arange(5), torch.tensor([4])
    plain = decoder.forward(token_ids, positions, OwnAttention(3, 5), wanted)
    with loaded.adapters.active.during([AdapterRows(loaded.adapters.ids["one"], slice(2, 5))]):
        want = decoder.forward(token_ids, positions, OwnAttention(3, 5))[wanted]
        got = decoder.forward(token_ids, positions, OwnAttention(3, 5), wanted)
    assert torch.equal(got, want)
    assert (plain - want).abs().max().item() > 0.01


@pytest.mark.gpu
@torch.inference_mode()
def test_a_step_in_a_graph_takes_what_is_in_its_buffers() -> None:
    decoder = fused_decoder(fresh_model("qwen3").model.to(DEVICE))
    token_ids, positions = torch.tensor([3, 1, 4], device=DEVICE), torch.arange(3, device=DEVICE)
    context = OwnAttention(3, 3, DEVICE)
    decoder.forward(token_ids, positions, context)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decoder.forward(token_ids, positions, context)
    for ids in ([3, 1, 4], [9, 2, 6]):
        token_ids.copy_(torch.tensor(ids))
        positions += 5
        graph.replay()
        assert torch.equal(out, decoder.forward(token_ids, positions, OwnAttention(3, 3, DEVICE)))


# What it shares.


def test_fused_weights_are_the_models_own() -> None:
    loaded = fresh_model("qwen3")
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    fingerprint = weights_fingerprint(loaded.model)
    FusedDecoder(loaded.model, elementwise_reference)
    after = dict(loaded.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weights) for name, weights in before.items())
    assert weights_fingerprint(loaded.model) == fingerprint
    layer = loaded.model.base_model.layers[1]
    for modules in ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"):
        parent = layer.self_attn if modules[0] == "q_proj" else layer.mlp
        weights = [getattr(parent, name).weight for name in modules]
        storages = {weight.untyped_storage().data_ptr() for weight in weights}
        assert len(storages) == 1, "a second copy of a model's weights is memory that no KV gets"
        assert weights[0].untyped_storage().nbytes() == sum(weight.nbytes for weight in weights)


def test_a_second_decoder_over_the_same_model_copies_nothing() -> None:
    loaded = fresh_model("qwen2")
    FusedDecoder(loaded.model, elementwise_reference)
    before = [parameter.data_ptr() for parameter in loaded.model.parameters()]
    FusedDecoder(loaded.model, elementwise_reference)
    assert [parameter.data_ptr() for parameter in loaded.model.parameters()] == before


# What it refuses.


def changed(family: str, **changes: Any) -> Any:
    config = tiny_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (changed("qwen3_moe"), "model_type is 'qwen3_moe'"),
        (changed("llama", hidden_act="gelu"), "activation is 'gelu'"),
        (changed("llama", head_dim=12), "head_dim is 12"),
    ],
    ids=["moe", "gelu", "head of 12"],
)
def test_what_it_does_not_compute_is_refused(config: Any, reason: str) -> None:
    with pytest.raises(ModelNotSupported, match=reason):
        check_fusable(build_transformer(config, ATTENTION_NAME))


def test_linear_modules_of_another_kind_are_refused() -> None:
    class Quantised(torch.nn.Linear):
        pass

    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    model.base_model.layers[1].mlp.up_proj = Quantised(32, 48)
    with pytest.raises(ModelNotSupported, match=r"1\.mlp\.up_proj is no plain linear module.*Quantised"):
        check_fusable(model)


def test_without_triton_the_runtime_works_and_the_decoder_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    for name in ("swaa_runtime.kernels.elementwise", "swaa_runtime.kernels.skinny"):
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModelNotSupported, match="needs triton"):
        fused_decoder(model)


def test_nothing_that_a_cpu_runs_imports_the_kernels() -> None:
    code = "import sys, swaa_runtime.engine, swaa_runtime.model.fused; sys.exit('swaa_runtime.kernels' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
