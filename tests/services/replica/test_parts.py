"""Putting the parts together: models that are none, and the cost profile that is kept between starts."""

from __future__ import annotations

import asyncio
import copy
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from services.config import ServeConfig, load_config
from services.cost import CostProfile
from services.errors import StoreUnavailable
from services.replica.calibrate import Effort
from services.replica.engine_loop import EngineLoop
from services.replica.parts import Parts, adapter_folders, cost_profile, learning_cost, model_folder, running_parts
from swaa_runtime.errors import EngineFailed, InvalidRequest, ModelNotSupported
from swaa_runtime.outputs import Finished, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.runner import ModelRunner

from .builders import read_all


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, default_model_folder: Path) -> Path:
    """A Hugging Face folder of a tiny random model with the default model's tokenizer, which nobody writes to."""
    folder = tmp_path_factory.mktemp("parts") / "tiny"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(copy.deepcopy(config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default_model_folder / name, folder / name)
    return folder


def make_config(tmp_path: Path, model: Path) -> ServeConfig:
    """With so little memory, about 340 tokens, that measuring is quick."""
    return load_config(model=str(model), cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", kv_memory_mib=1)


@pytest.mark.model
@pytest.mark.redis
def test_the_cost_profile_is_measured_once_and_kept(tmp_path: Path, tiny_folder: Path) -> None:
    config = make_config(tmp_path, tiny_folder)

    async def profile_of(parts: Parts, effort: Effort | None = None) -> tuple[CostProfile, int]:
        """What a start with this configuration gets, and how many runs were measured for it."""
        measured: list[int] = []
        profile = await cost_profile(config, parts, effort, lambda done, total: measured.append(done))
        return profile, len(measured)

    async def run() -> None:
        async with running_parts(config) as parts:
            first, measured = await profile_of(parts)
            assert measured == 6, "three recipes by the one length that fits, two batches, and restoring"
        async with running_parts(config) as parts:
            assert await profile_of(parts) == (first, 0), "the next start finds it"
            [path] = (tmp_path / "cache").glob("cost-*.json")
            damaged = json.loads(path.read_text(encoding="utf-8"))
            damaged["pair_ns"] = "none"
            for text in (json.dumps(damaged), "[]", "{", ""):
                path.write_text(text, encoding="utf-8")
                profile, measured = await profile_of(parts)
                assert measured > 1, f"measured anew, as the file was {text!r}"
                assert CostProfile.from_mapping(json.loads(path.read_text(encoding="utf-8"))) == profile
            _, measured = await profile_of(parts, Effort((50,), 1, 60.0))
            assert measured == 6, "asked for an effort, it measures in any case"

    asyncio.run(run())


@pytest.mark.model
@pytest.mark.redis
def test_a_service_learns_from_its_engine(tmp_path: Path, tiny_folder: Path) -> None:
    async def run() -> None:
        config = make_config(tmp_path, tiny_folder)
        async with running_parts(config) as parts:
            cost = await learning_cost(config, parts, lambda done, total: None)
            assert cost.profile == await cost_profile(config, parts, None, lambda done, total: None)
            assert await parts.engine.call(lambda engine: engine._cost is cost)

    asyncio.run(run())


class WarmRunner(ModelRunner):
    """A runner that keeps which thread warmed it up."""

    warmed_by: threading.Thread | None = None

    def warm_up(self) -> None:
        super().warm_up()
        self.warmed_by = threading.current_thread()


@pytest.mark.model
@pytest.mark.redis
def test_the_thread_that_runs_batches_warms_up_before_parts_are_there(tmp_path: Path, tiny_folder: Path) -> None:
    """cuDNN's plans are a thread's own."""

    async def run() -> None:
        async with running_parts(make_config(tmp_path, tiny_folder), WarmRunner) as parts:
            thread, runner = await parts.engine.call(lambda engine: (threading.current_thread(), engine.runner))
            assert isinstance(runner, WarmRunner)
            assert runner.warmed_by is thread

    asyncio.run(run())


async def generated(engine: EngineLoop, request_id: str) -> list[int]:
    request = new_request(request_id, list(range(100, 150)), Recipe(window=16), 3, SamplingParams(max_tokens=4))
    stream, tokens = engine.submit(request), list[int]()
    while not isinstance(output := await stream.get(), Finished):
        tokens += [output.token_id] if isinstance(output, TokenOutput) else []
    return tokens


async def until_unhealthy(engine: EngineLoop) -> None:
    """It is idle: no step notices."""
    while True:
        engine.check_alive()
        await asyncio.sleep(0.01)


@pytest.mark.model
@pytest.mark.redis
def test_a_model_on_two_ranks_serves_turns_until_one_of_them_ends(tmp_path: Path, tiny_folder: Path) -> None:
    """In one test, as ranks take seconds to start."""

    async def run() -> None:
        config = make_config(tmp_path, tiny_folder).model_copy(update={"tensor_parallel": 2})
        async with running_parts(config) as parts:
            assert parts.loaded.group is not None
            tokens = await generated(parts.engine, "alive")
            parts.engine.check_alive()
            (worker,) = multiprocessing.active_children()
            worker.kill()
            with pytest.raises(EngineFailed, match="rank 1 of 2 ended"):
                await until_unhealthy(parts.engine)
            with pytest.raises(EngineFailed, match="rank 1 of 2 ended"):
                await generated(parts.engine, "late")
        async with running_parts(make_config(tmp_path, tiny_folder)) as parts:
            assert tokens == await generated(parts.engine, "alone")

    asyncio.run(asyncio.wait_for(run(), 120))


@pytest.mark.model
@pytest.mark.redis
def test_a_rank_that_hangs_ends_turns_and_health_and_nothing_waits_for_it(tmp_path: Path, tiny_folder: Path) -> None:
    async def run() -> float:
        config = make_config(tmp_path, tiny_folder).model_copy(update={"tensor_parallel": 2})
        async with running_parts(config, hang_s=2.0) as parts:
            sampling = SamplingParams(max_tokens=100, ignore_eos=True)
            stream = parts.engine.submit(new_request("r", list(range(100, 150)), Recipe(window=16), 3, sampling))
            await stream.get()
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            with pytest.raises(EngineFailed, match="a rank of 2 does not answer: they were not done within 2 s"):
                await read_all(stream)
            assert multiprocessing.active_children() == []
            with pytest.raises(EngineFailed, match="a rank of 2 does not answer"):
                parts.engine.check_alive()
            return time.monotonic()

    ended_s = asyncio.run(asyncio.wait_for(run(), 120))
    assert time.monotonic() - ended_s < 5
    assert not [thread for thread in threading.enumerate() if thread.name in ("swaa-engine", "swaa-ranks")]


@pytest.mark.model
@pytest.mark.redis
def test_a_model_that_cannot_be_shared_out_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    config = make_config(tmp_path, tiny_folder).model_copy(update={"device": "cuda", "tensor_parallel": 64})

    async def run() -> None:
        async with running_parts(config):
            pytest.fail("it started")

    with pytest.raises(ModelNotSupported, match="64 GPUs are asked for, of which this process sees"):
        asyncio.run(run())


@pytest.mark.parametrize("model", ["", "smollm3", "/nowhere"])
def test_a_model_that_is_none_is_refused(model: str) -> None:
    with pytest.raises(ModelNotSupported, match=r"is neither 'smollm2' nor a Hugging Face model folder"):
        model_folder(load_config(model=model))


def test_a_store_that_does_not_answer_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    config = load_config(
        model="/nowhere", redis_url="redis://127.0.0.1:1/0", cache_dir=tmp_path / "cache", state_dir=tmp_path / "state"
    )

    async def run() -> None:
        async with running_parts(config):
            pytest.fail("it started")

    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        asyncio.run(run())


def test_adapters_are_named_one_by_one_or_by_their_folder(tmp_path: Path) -> None:
    for name in ("w512", "lookback"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes").mkdir()
    of_folder = {"lookback": tmp_path / "lookback", "w512": tmp_path / "w512"}
    assert adapter_folders(load_config(adapters=str(tmp_path))) == of_folder
    assert adapter_folders(load_config(adapters=f"mine={tmp_path / 'w512'}")) == {"mine": tmp_path / "w512"}
    assert adapter_folders(load_config(model=str(tmp_path))) == {}, "the default model's are no other model's"
    assert adapter_folders(load_config(adapters="")) == {}
    with pytest.raises(InvalidRequest, match="twice"):
        adapter_folders(load_config(adapters=f"{tmp_path},w512={tmp_path}"))
    with pytest.raises(InvalidRequest, match="must be name=folder"):
        adapter_folders(load_config(adapters=str(tmp_path / "nowhere")))
