"""What sessions cost: bytes per turn, save and restore rates beside the raw Redis rate, and the ways to resume.

Everything in one run, on one machine, over one private Redis:

    turns    one conversation of many short turns on the default model: bytes that each turn adds to the store
    rates    a state of --length tokens saved and restored, against plain pipelined SET and GET of as many bytes
    resume   time to the first token of a next turn: KV still in memory, fetched from Redis, or computed from the tokens

Prints a table for each, and everything as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from redis.asyncio import Redis

from benchmarks import workload
from services.quality.recipes import read_recipes
from services.replica.engine_loop import EngineLoop
from services.replica.job import Job, SessionUse
from services.replica.replica import Replica
from services.replica.restorer import Restorer
from services.restore_plan import RestorePlan
from services.sessions.codec import segment_id
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.kv_sizes import slice_shape
from services.sessions.policy import SessionPolicy
from services.sessions.redis_store import RedisSessionStore
from services.sessions.slice_codec import encode_slice
from services.sessions.store import KVFormat, Manifest, SegmentRef
from swaa_runtime.kv_cache.slices import SLICE_TOKENS, KVSlice, needed_slices
from swaa_runtime.model.loader import LoadedModel, load_model, torch_dtype
from swaa_runtime.outputs import TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn

TENANT = "bench"
MIB = 1 << 20
CATALOGUE = workload.REPO / "services" / "gateway" / "data" / "catalogs" / "smollm2.yaml"
FORMATS: tuple[KVFormat, ...] = ("raw", "zstd", "int8", "fp8")
RAW_BLOB_BYTES = 4 * MIB
RAW_BATCH = 4


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts share."""

    loaded: LoadedModel
    tokenizer: Any
    replica: Replica
    engine: EngineLoop
    store: RedisSessionStore
    redis: Redis


@asynccontextmanager
async def running(folder: Path, max_tokens: int, threads: int | None) -> AsyncIterator[Bench]:
    """The default model on an engine, and a Redis of its own."""
    if threads is not None:
        torch.set_num_threads(threads)
    model_folder = workload.model_folder(None, torch.bfloat16)
    loaded = load_model(model_folder, torch.bfloat16, torch.device("cpu"))
    tokenizer = workload.load_tokenizer(model_folder)
    engine = EngineLoop(workload.build_engine(loaded, tokenizer, max_tokens, max_running=3, max_step_tokens=1024))
    with EmbeddedRedis(folder) as server:
        store = RedisSessionStore.from_url(server.url, ttl_s=3600.0)
        client = Redis.from_url(server.url)
        per_token_layer = loaded.shape.bytes_per_token_layer
        replica = Replica(
            loaded,
            engine,
            per_token_layer * workload.BLOCK_SIZE_TOKENS,
            per_token_layer,
            store,
            SessionPolicy(ttl_s=3600.0),
        )
        engine.start()
        try:
            yield Bench(loaded, tokenizer, replica, engine, store, client)
        finally:
            await asyncio.to_thread(engine.close)
            await replica.close()
            await client.aclose()
            await store.close()


async def run_turn(
    bench: Bench, session_id: str, recipe: Recipe, prompt: Sequence[int], max_tokens: int, how: str = "load"
) -> tuple[float, Any]:
    """One turn; (ms to its first token, its last event). `how` the history comes back: load, mix, recompute."""
    manifest = await current(bench, session_id)
    plan = None
    if manifest is not None and how != "recompute":
        cut = manifest.num_kv_tokens // 2 // SLICE_TOKENS * SLICE_TOKENS if how == "mix" else 0
        plan = RestorePlan("mix" if cut else "load", "session", "", cut, manifest.num_kv_tokens, 0.0, "bench")
    job = Job(
        request_id=uuid.uuid4().hex,
        prompt_token_ids=tuple(prompt),
        recipe_name="bench",
        recipe=recipe,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        session=SessionUse(TENANT, session_id, manifest.version if manifest else 0),
        restore=plan,
    )
    started_s, first_ms, event = time.perf_counter(), 0.0, None
    async for event in bench.replica.generate(job):
        if isinstance(event, TokenOutput) and not first_ms:
            first_ms = (time.perf_counter() - started_s) * 1e3
    return first_ms, event


async def current(bench: Bench, session_id: str) -> Manifest | None:
    """The session as it is, if there is one."""
    found = await bench.store.list_sessions(TENANT, 1000)
    return next((manifest for manifest in found if manifest.session_id == session_id), None)


async def measure_turns(bench: Bench, recipe: Recipe, turns: int, first: int, more: int) -> list[dict[str, int]]:
    """Bytes that each turn writes, beside those of the whole state, which a store without increments would write."""
    rows = []
    for turn in range(turns):
        prompt = workload.prompt_tokens(bench.tokenizer, first if turn == 0 else more)
        _, done = await run_turn(bench, "turns", recipe, prompt, 16)
        manifest = await bench.store.get(TENANT, "turns")
        whole = sum(ref.num_bytes for ref in manifest.segments)
        tokens = len(manifest.token_ids)
        rows.append({"turn": turn + 1, "tokens": tokens, "written": done.session.saved_bytes, "whole": whole})
    return rows


def make_state(shape: ModelShape, num_tokens: int) -> list[KVSlice]:
    """A full-attention state of random values, cut as the engine cuts it."""
    keys = needed_slices(Recipe().resolve(shape.num_layers), num_tokens, shape.bytes_per_token_layer)
    return [
        KVSlice(
            key,
            torch.randn(slice_shape(key, shape.num_kv_heads, shape.head_dim)).to(torch_dtype(shape.dtype)),
        )
        for key in keys
    ]


class Sink:
    """An engine loop that takes slices and forgets them."""

    async def place(self, request_id: str, slices: Sequence[KVSlice]) -> None:
        """Nothing."""


async def raw_rates(client: Redis, total_bytes: int) -> tuple[float, float]:
    """MB/s of plain SET and GET, in pipelines of 16 MiB of 4 MiB blobs."""
    blobs = [bytes(torch.randint(0, 256, (RAW_BLOB_BYTES,), dtype=torch.uint8).numpy().data) for _ in range(RAW_BATCH)]
    rounds = max(1, total_bytes // (RAW_BLOB_BYTES * RAW_BATCH))

    async def move(put: bool) -> float:
        started_s = time.perf_counter()
        for at in range(rounds):
            async with client.pipeline(transaction=False) as pipe:
                for index, blob in enumerate(blobs):
                    pipe.set(f"raw:{at}:{index}", blob) if put else pipe.get(f"raw:{at}:{index}")
                await pipe.execute()
        return rounds * RAW_BATCH * RAW_BLOB_BYTES / 1e6 / (time.perf_counter() - started_s)

    written = await move(True)
    read = await move(False)
    await client.delete(*(f"raw:{at}:{index}" for at in range(rounds) for index in range(RAW_BATCH)))
    return written, read


async def store_rates(bench: Bench, slices: Sequence[KVSlice], kv_format: KVFormat) -> tuple[float, float, int]:
    """MB of KV a second saved (encode, hash, send, commit) and restored (fetch, check, decode), and bytes stored."""
    shape = bench.loaded.shape
    kv_mb = sum(part.data.nbytes for part in slices) / 1e6
    num_tokens = max(part.key.stop for part in slices)
    started_s = time.perf_counter()
    blobs = [await asyncio.to_thread(encode_slice, part, kv_format) for part in slices]
    refs = [SegmentRef(part.key, segment_id(blob), len(blob)) for part, blob in zip(slices, blobs, strict=True)]
    now_s = time.time()
    manifest = Manifest(
        uuid.uuid4().hex,
        1,
        (0,) * num_tokens,
        (Turn(0, 1, num_tokens),),
        Recipe(),
        "full",
        "bench",
        kv_format,
        num_tokens,
        tuple(refs),
        now_s,
        now_s,
        now_s,
    )
    await bench.store.save(TENANT, manifest, {ref.segment_id: blob for ref, blob in zip(refs, blobs, strict=True)}, 0)
    saved_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    await Restorer(Sink(), bench.store, shape).feed(TENANT, "bench", refs, kv_format)  # type: ignore[arg-type]
    restored_s = time.perf_counter() - started_s
    await bench.store.delete(TENANT, manifest.session_id)
    return kv_mb / saved_s, kv_mb / restored_s, sum(ref.num_bytes for ref in refs)


async def measure_rates(bench: Bench, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Medians over interleaved rounds."""
    slices = make_state(bench.loaded.shape, num_tokens)
    total_bytes = sum(part.data.nbytes for part in slices)
    raw: list[tuple[float, float]] = []
    ours: dict[KVFormat, list[tuple[float, float, int]]] = {name: [] for name in FORMATS}
    for _ in range(repeats + 1):
        raw.append(await raw_rates(bench.redis, total_bytes))
        for name in FORMATS:
            ours[name].append(await store_rates(bench, slices, name))
    set_mb_s, get_mb_s = (statistics.median(row[at] for row in raw[1:]) for at in (0, 1))
    rows = {}
    for name, runs in ours.items():
        save, restore = (statistics.median(row[at] for row in runs[1:]) for at in (0, 1))
        rows[name] = {
            "save_mb_s": round(save),
            "restore_mb_s": round(restore),
            "save_of_raw": round(save / set_mb_s, 2),
            "restore_of_raw": round(restore / get_mb_s, 2),
            "stored_bytes_per_token": runs[0][2] // num_tokens,
        }
    return {"state_mib": total_bytes // MIB, "set_mb_s": round(set_mb_s), "get_mb_s": round(get_mb_s), "formats": rows}


async def measure_resume(bench: Bench, recipe: Recipe, num_tokens: int, repeats: int) -> dict[str, float]:
    """Median ms to the first token of a 20-token turn after a history of `num_tokens`."""
    ways: dict[str, list[float]] = {"hot": [], "load": [], "mix": [], "recompute": []}
    prompt = workload.prompt_tokens(bench.tokenizer, num_tokens)
    question = workload.prompt_tokens(bench.tokenizer, 20)
    for _ in range(repeats):
        session_id = uuid.uuid4().hex
        await run_turn(bench, session_id, recipe, prompt, 2)
        forks = {way: uuid.uuid4().hex for way in ways if way != "hot"}
        for fork in forks.values():
            await bench.store.fork(TENANT, session_id, fork)
        for way, measured in ways.items():
            first_ms, done = await run_turn(bench, forks.get(way, session_id), recipe, question, 2, way)
            assert done.session.history.split(":")[0] == EXPECTED[way], done.session.history
            measured.append(first_ms)
        for used in (session_id, *forks.values()):
            await bench.store.delete(TENANT, used)
    return {way: round(statistics.median(measured), 1) for way, measured in ways.items()}


EXPECTED = {"hot": "hot", "load": "restored", "mix": "mixed", "recompute": "recomputed"}


def print_turns(rows: Sequence[dict[str, int]]) -> None:
    """A line per turn."""
    print(f"\n{'turn':>4}{'tokens':>9}{'written MiB':>13}{'whole state MiB':>17}")
    for row in rows:
        print(f"{row['turn']:>4}{row['tokens']:>9}{row['written'] / MIB:>13.2f}{row['whole'] / MIB:>17.1f}", flush=True)


def print_rates(rates: dict[str, Any]) -> None:
    """A line per format."""
    print(f"\n{rates['state_mib']} MiB of KV; raw Redis: SET {rates['set_mb_s']} MB/s, GET {rates['get_mb_s']} MB/s")
    print(f"{'format':8}{'save MB/s':>11}{'of raw':>8}{'restore MB/s':>14}{'of raw':>8}{'bytes/token':>13}")
    for name, row in rates["formats"].items():
        print(
            f"{name:8}{row['save_mb_s']:>11}{row['save_of_raw']:>8.2f}{row['restore_mb_s']:>14}"
            f"{row['restore_of_raw']:>8.2f}{row['stored_bytes_per_token']:>13}",
            flush=True,
        )


def print_resume(name: str, num_tokens: int, row: dict[str, float]) -> None:
    """One recipe at one length."""
    print(f"{name:14}{num_tokens:>8}" + "".join(f"{value:>12.0f}" for value in row.values()), flush=True)


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts."""
    recipes = {row.name: row.recipe for row in read_recipes(CATALOGUE) if row.name in args.recipes}
    async with running(folder, max(args.lengths) + 2000, args.threads) as bench:
        turns = await measure_turns(bench, recipes[args.recipes[0]], args.turns, 1000, 40)
        print_turns(turns)
        rates = await measure_rates(bench, args.length, 2 * args.repeats + 1)
        print_rates(rates)
        print(f"\n{'resume TTFT ms':14}{'tokens':>8}" + "".join(f"{way:>12}" for way in EXPECTED))
        resume: dict[str, dict[str, dict[str, float]]] = {}
        for name, recipe in recipes.items():
            for num_tokens in args.lengths:
                row = await measure_resume(bench, recipe, num_tokens, args.repeats)
                print_resume(name, num_tokens, row)
                resume.setdefault(name, {})[str(num_tokens)] = row
        return {
            "model_fingerprint": bench.loaded.fingerprint,
            "hardware": workload.hardware(torch.device("cpu")),
            "turns": turns,
            "rates": rates,
            "resume_ttft_ms": resume,
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help="turns of the conversation")
    parser.add_argument("--length", type=int, default=8000, help="tokens of the state that rates are measured with")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2000, 4000, 8000], help="history lengths to resume")
    parser.add_argument("--recipes", nargs="+", default=["wide-tail", "interleaved"], help="of the catalogue")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(args, Path(folder)))
    summary = {
        "benchmark": "sessions",
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.bench_sessions"),
        "repeats": args.repeats,
        **results,
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
