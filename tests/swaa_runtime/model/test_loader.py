from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from swaa_runtime.attention.backend import ChunkView, PagedContext
from swaa_runtime.attention.oracle import OracleContext
from swaa_runtime.attention.reference import ReferenceBackend
from swaa_runtime.attention.windowed import WindowedBackend
from swaa_runtime.config import EngineConfig
from swaa_runtime.detokenizer import IncrementalDetokenizer
from swaa_runtime.engine import Engine
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.attention import ATTENTION_NAME, register_attention, swaa_attention
from swaa_runtime.model.loader import (
    LoadedModel,
    check_supported,
    convert_gguf,
    fast_dtype,
    load_model,
    shape_of,
    wrap_model,
)
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams
from swaa_runtime.runner import ModelRunner
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import FAMILIES, NAN, build_request, build_transformer, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model as a Hugging Face folder."""
    build_transformer(tiny_config("llama", num_layers=2), "eager").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags : fpu sse2 avx2 avx512f avx512_bf16", torch.bfloat16),
        ("flags : fpu sse2 avx2 avx512f", torch.float32),
        ("Features : fp asimd bf16", torch.bfloat16),
    ],
)
def test_bfloat16_is_for_processors_that_compute_in_it(tmp_path: Path, flags: str, dtype: torch.dtype) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    assert fast_dtype(CPU, tmp_path / "cpuinfo") is dtype
    assert fast_dtype(CPU, tmp_path / "absent") is torch.float32
    assert fast_dtype(torch.device("cuda"), tmp_path / "absent") is torch.bfloat16


# What is supported.


@pytest.mark.parametrize("family", FAMILIES)
def test_full_attention_decoders_are_supported(family: str) -> None:
    check_supported(tiny_config(family))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(), "model_type is 'gpt2'"),
        (MistralConfig(sliding_window=4096), "sliding windows"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1), "sliding windows"),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "'dynamic'"),
    ],
    ids=["gpt2", "sliding mistral", "sliding qwen2", "dynamic rope"],
)
def test_other_models_are_refused_with_the_reason(config: Any, reason: str) -> None:
    with pytest.raises(ModelNotSupported, match=reason):
        check_supported(config)


def test_a_folder_with_an_unsupported_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    MistralConfig(sliding_window=4096).save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupported, match="sliding windows"):
        load_model(tmp_path, torch.float32, CPU)


def test_a_model_built_with_another_attention_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="'eager'"):
        wrap_model(build_transformer(tiny_config("llama"), "eager"), "x")


def test_a_model_run_without_its_context_says_so() -> None:
    register_attention()
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    with pytest.raises(ModelNotSupported, match="without its attention context"):
        model(input_ids=torch.tensor([[1, 2]]), use_cache=False)


@pytest.mark.parametrize("extra", [{"attention_mask": torch.zeros(1, 1, 2, 2)}, {"softcap": 30.0}])
def test_what_the_rule_does_not_cover_is_refused(extra: dict[str, Any]) -> None:
    query = torch.zeros(1, 1, 2, 4)
    context = OracleContext(Recipe().resolve(1), (Turn(0, 2),))
    arguments = {"attention_mask": None, "swaa_context": context} | extra
    with pytest.raises(ModelNotSupported, match="mask or soft cap"):
        swaa_attention(torch.nn.Module(), query, query, query, **arguments)


# Loading.


def test_loading_gives_the_shape_and_the_weights(folder: Path) -> None:
    loaded = load_model(folder, torch.float32, CPU)
    shape = loaded.shape
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim) == (2, 4, 2, 8)
    assert (shape.vocab_size, shape.max_model_tokens, shape.dtype) == (64, 4096, "float32")
    assert loaded.eos_token_ids == frozenset()
    saved = load_file(folder / "model.safetensors")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], weights) for name, weights in saved.items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_head_size_that_is_not_given_follows_from_the_hidden_size() -> None:
    assert shape_of(tiny_config("qwen2", num_heads=6, num_kv_heads=3, head_dim=8), torch.float32).head_dim == 8


@pytest.mark.parametrize(("eos", "ids"), [(5, {5}), ([5, 6], {5, 6}), (None, set())])
def test_end_of_sequence_tokens(eos: Any, ids: set[int]) -> None:
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = eos
    assert wrap_model(model, "x").eos_token_ids == ids


# The fingerprint.


def test_a_fingerprint_is_repeatable_and_depends_on_the_dtype(folder: Path) -> None:
    first, again = (load_model(folder, torch.float32, CPU).fingerprint for _ in range(2))
    assert first == again != load_model(folder, torch.bfloat16, CPU).fingerprint


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_fingerprint_depends_on_the_weights(folder: Path, name: str) -> None:
    before = load_model(folder, torch.float32, CPU).fingerprint
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] * 1.001
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, torch.float32, CPU).fingerprint != before


def test_a_session_saved_with_other_kv_is_not_taken(folder: Path) -> None:
    """What names the model in saved sessions names what KV was kept in, if that is not the model's dtype."""
    loaded = load_model(folder, torch.float32, CPU)
    names = [loaded.keeping_kv_in("model"), loaded.keeping_kv_in("int8"), loaded.keeping_kv_in("fp8")]
    assert names[0] == loaded
    assert len({name.fingerprint for name in names}) == 3


def test_a_fingerprint_depends_on_the_configuration(folder: Path) -> None:
    before = load_model(folder, torch.float32, CPU).fingerprint
    config = folder / "config.json"
    assert '"rope_theta": 10000.0' in config.read_text()
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    assert load_model(folder, torch.float32, CPU).fingerprint != before


# The shipped model.


def small_gguf(path: Path, tokenizer_folder: Path, num_merges: int = 200) -> Path:
    """A GGUF file of one random layer and the default model's first tokens: all of that takes half a minute."""
    told = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [" ".join(merge) for merge in told["merges"][:num_merges]]
    known = {merge.replace(" ", "") for merge in merges}
    tokens = [token for token in told["vocab"] if len(token) == 1 or token.startswith("<|") or token in known]
    size, heads, kv_heads, inner = 32, 4, 2, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(size // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(tokens), size), "output_norm": (size,)}
    shapes |= {f"blk.0.{name}_norm": (size,) for name in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{name}": (rows, size) for name, rows in (("q", size), ("k", size // 2), ("v", size // 2))}
    shapes |= {"blk.0.attn_output": (size, size), "blk.0.ffn_down": (size, inner)}
    shapes |= {f"blk.0.ffn_{name}": (inner, size) for name in ("gate", "up")}
    for name, shape in shapes.items():
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.model
def test_a_gguf_file_is_converted_once_even_after_a_conversion_that_was_killed(
    tmp_path: Path, default_model_folder: Path
) -> None:
    """A container restarts with the same process id: what the killed one left must not be in the way."""
    gguf_file, cache = small_gguf(tmp_path / "small.gguf", default_model_folder), tmp_path / "cache"
    killed = cache / f"{gguf_file.stem}-bfloat16-{gguf_file.stat().st_size}.partial-{os.getpid()}"
    killed.mkdir(parents=True)
    (killed / "config.json").write_text("{")
    folder = convert_gguf(gguf_file, cache, torch.bfloat16)
    before = written(folder)
    assert convert_gguf(gguf_file, cache, torch.bfloat16) == folder
    assert written(folder) == before
    assert [path for path in cache.iterdir() if path not in (folder, killed)] == []
    assert load_model(folder, torch.bfloat16, CPU).shape.num_layers == 1
    for converted in (folder, default_model_folder):
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(written(converted))
        assert "quantization_config" not in (converted / "config.json").read_text(), "the weights are plain numbers"


@pytest.fixture(scope="module")
def shipped(default_model_folder: Path) -> LoadedModel:
    return load_model(default_model_folder, torch.bfloat16, CPU)


def long_prompt(tokenizer: Any) -> list[int]:
    """About 200 tokens of plain English that ends in a question about its middle."""
    towns = ("Aldermoor", "Brackwater", "Cindervale", "Dunmarrow", "Eastwick", "Fernhollow", "Greystone", "Harrowgate")
    goods = ("wool", "honey", "timber", "salt", "copper", "candles", "barley", "glass")
    lines = [
        f"In the year {1700 + 7 * index}, the people of {town} sold {goods[(3 * index) % 8]} at the autumn market, "
        f"and the mayor of {town} wrote in the town's book that the harvest had been good for the {index + 2}th time."
        for index, town in enumerate(towns[:3])
    ]
    lines.insert(1, "The secret number that opens the mayor's safe is 48213.")
    text = (
        " ".join(lines)
        + "\nQuestion: What is the secret number that opens the mayor's safe?\nAnswer: The secret number is"
    )
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


class ComparingBackend:
    """The windowed backend, keeping how far it ever was from the reference backend on the same queries and memory."""

    name = "comparing"

    def __init__(self) -> None:
        self.worst = 0.0
        self._windowed, self._reference = WindowedBackend(), ReferenceBackend()

    def attend_chunk(
        self, storage: KVStorage, chunk: ChunkView, layer: int, query: torch.Tensor, scale: float
    ) -> torch.Tensor:
        out = self._windowed.attend_chunk(storage, chunk, layer, query, scale)
        want = self._reference.attend_chunk(storage, chunk, layer, query, scale)
        self.worst = max(self.worst, ((out - want).float().norm() / want.float().norm()).item())
        return out


class SamplingRecorder(ModelRunner):
    """A runner that keeps the logits that tokens were picked from."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self.comparing = ComparingBackend()
        self._contexts = partial(PagedContext, self.part, self.comparing)
        self.picked_from: list[torch.Tensor] = []

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        self.picked_from.append(logits)
        return logits


@torch.no_grad()
def oracle_generating(shipped: LoadedModel, request: Request) -> torch.Tensor:
    """The oracle's logits that each generated token is picked from: [generated, vocab_size]."""
    context = OracleContext(request.rules, request.turns)
    ids = torch.tensor([request.token_ids])
    hidden = shipped.model.model(input_ids=ids, use_cache=False, swaa_context=context).last_hidden_state[0]
    logits: torch.Tensor = shipped.model.lm_head(hidden[request.prompt_stop - 1 : -1])
    return logits.float()


@pytest.mark.model
@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(window=64, sink_tokens=10, full_tail=64, full_decode=True)], ids=["full", "tail"]
)
def test_the_shipped_model_in_bfloat16_gives_the_oracles_attention_and_tokens(
    shipped: LoadedModel, default_model_folder: Path, recipe: Recipe
) -> None:
    """Attention within 1e-2 in every layer of every step, and the same greedy tokens.

    Logits get a wider bound: rounding to bfloat16 between 30 layers alone moves them by 1 to 3 % when nothing but the
    chunk size changes (and by 2 to 6 % from the same weights in float32), measured with the reference backend.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(default_model_folder)
    prompt = long_prompt(tokenizer)
    assert 150 < len(prompt) < 250
    config = EngineConfig(num_blocks=1500, max_model_tokens=2048, max_step_tokens=128)
    runner = SamplingRecorder(shipped, config)
    runner.storage.fill(range(1, config.num_blocks), NAN)
    engine = Engine(runner, config, tokenizer, shipped.eos_token_ids)
    engine.on_freed = lambda blocks: runner.storage.fill(blocks, NAN)
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    request = build_request("r", prompt, recipe, shipped.shape.num_layers, sampling)
    engine.add(request)
    while engine.has_work:
        engine.step()
        engine.check_integrity()

    assert 0 < runner.comparing.worst < 1e-2
    want, got = oracle_generating(shipped, request), torch.cat(runner.picked_from)
    assert request.token_ids[request.prompt_stop :] == want.argmax(dim=-1).tolist()
    assert ((got - want).norm() / want.norm()).item() < 3e-2
    assert "48213" in tokenizer.decode(request.token_ids[request.prompt_stop :])


@pytest.mark.model
def test_the_shipped_tokenizer_streams_to_its_whole_decode(default_model_folder: Path) -> None:
    """Text of several scripts, and random tokens, which split characters."""
    tokenizer: Any = AutoTokenizer.from_pretrained(default_model_folder)
    generator = torch.Generator().manual_seed(0)
    texts = [tokenizer("Don't stop , 東京 😀👩‍👩‍👧 naïve  café .\n\n  x = [1, 2] !")["input_ids"]]
    texts += [torch.randint(0, tokenizer.vocab_size, (40,), generator=generator).tolist() for _ in range(30)]
    for tokens in texts:
        detokenizer = IncrementalDetokenizer(tokenizer)
        streamed = "".join(detokenizer.push(token) for token in tokens) + detokenizer.finish()
        assert streamed == tokenizer.decode(tokens, skip_special_tokens=True)
