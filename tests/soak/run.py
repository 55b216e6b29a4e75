"""Minutes of load on a running service; after each a pause, until it is idle, and a look at all that it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import redis

from benchmarks.workload import BLOCK_SIZE_TOKENS
from services.client import AsyncClient, TurnOptions
from services.sessions.store import Manifest
from tests.soak import crowd, idle
from tests.soak.audit import Audit, audit
from tests.soak.ledger import Decode, KnownSession, lost
from tests.soak.oracle import Oracle
from tests.soak.report import Minute, header, verdict
from tests.soak.world import Sizes, Target, World, opened

IDLE_TIMEOUT_S = 180.0
REFUSALS = ("Overloaded", "Busy", "HTTP out_of_capacity", "HTTP session_busy", "HTTP sla_unattainable")


@dataclass(frozen=True, slots=True)
class Watched:
    """A service of one process, and what is looked at: the process, its Redis, and what its answers should be."""

    target: Target
    pid: int
    redis: redis.Redis
    oracle: Oracle
    decode: Decode
    num_layers: int
    max_model_tokens: int
    log: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how hard. `checked_per_minute`: answers that the oracle computes again; `quota_mib`: of the tenant."""

    minutes: int
    minute_s: float
    sizes: Sizes
    checked_per_minute: int
    seed: int
    quota_mib: float


async def soak(watched: Watched, plan: Plan, text: Sequence[int], say: Callable[[str], None]) -> bool:
    """Run it all; says a line per minute and, last, the verdict as JSON. Whether everything held."""
    async with opened(watched.target, text, plan.sizes, plan.seed) as world:
        say(header())
        minutes = []
        await crowd.each_once(world, {**crowd.POLITE, **crowd.RUDE})
        for number in range(1, plan.minutes + 1):
            await crowd.run(world, {**crowd.POLITE, **crowd.RUDE}, plan.minute_s)
            minutes.append(await look(watched, world, number, plan.checked_per_minute))
            say(minutes[-1].row())
        world.faults += await everything_can_be_had(watched, world.client)
    if "Traceback" in watched.log():
        world.faults.append("the service's log has a traceback")
    line, wrong = verdict(minutes, world.faults, world.counts, plan.quota_mib)
    for fault in wrong:
        say(f"FAULT: {fault}")
    say(line)
    return not wrong


async def look(watched: Watched, world: World, number: int, num_checked: int) -> Minute:
    """Wait until nothing runs, and check what is held then. What is wrong goes to the world's faults."""
    samples, held = await asyncio.to_thread(idle.wait_until_idle, watched.target.http, watched.redis, IDLE_TIMEOUT_S)
    found = await asyncio.to_thread(audit, watched.redis)
    faults = [f"minute {number}, idle: {what}" for what in (*held, *found.faults)]
    total = sum(samples.values("swaa_kv_blocks"))
    free, parked = samples.value("swaa_kv_blocks", use="free"), samples.value("swaa_kv_blocks", use="parked")
    if free + parked != total:
        faults.append(f"minute {number}, idle: {total - free - parked:g} KV blocks have not come back")
    faults += not_as_told(world, found.sessions, watched.decode)
    faults += await asyncio.to_thread(check_answers, watched.oracle, world, found, num_checked)
    world.faults += faults
    return Minute(
        number=number,
        num_done=sum(world.counts.values()),
        num_saved=world.ledger.num_acknowledged,
        num_refused=sum(count for (_, how), count in world.counts.items() if how in REFUSALS),
        reading=idle.read(samples, watched.pid, watched.redis),
        audit=found,
        num_checked=watched.oracle.num_checked,
        worst_gap=watched.oracle.worst_gap,
        num_faults=len(world.faults),
    )


def not_as_told(world: World, stored: Mapping[str, Manifest], decode: Decode) -> list[str]:
    """What of the sessions is not as their clients know them."""
    sessions = world.ledger.sessions.values()
    return [fault for known in sessions for fault in lost(known, stored.get(known.session_id), decode)]


def check_answers(oracle: Oracle, world: World, found: Audit, count: int) -> list[str]:
    """Compute some answers again: of sessions, and those without."""
    turns: list[tuple[KnownSession, int]] = [
        (known, index)
        for known in world.ledger.sessions.values()
        for index, told in known.turns.items()
        if told.greedy and known.session_id in found.sessions
    ]
    faults = []
    for known, index in world.rng.sample(turns, min(len(turns), count - count // 2)):
        faults += oracle.check_turn(known, index, found.sessions[known.session_id])
    one_shots = world.ledger.one_shots
    for answer in world.rng.sample(one_shots, min(len(one_shots), count // 2)):
        faults += oracle.check_one_shot(answer)
    return faults


async def everything_can_be_had(watched: Watched, client: AsyncClient) -> list[str]:
    """A request that needs nearly all KV memory gets it, so parked states are really nobody's. What is wrong, if so."""
    total = int(sum(idle.scrape(watched.target.http).values("swaa_kv_blocks")))
    blocks = min(total // watched.num_layers, watched.max_model_tokens // BLOCK_SIZE_TOKENS)
    prompt = [1] * 8
    max_tokens = blocks * BLOCK_SIZE_TOKENS - len(prompt)
    options: TurnOptions = {"recipe": "full", "max_tokens": max_tokens, "ignore_eos": True, "timeout_s": IDLE_TIMEOUT_S}
    async with client.stream(prompt, **options) as stream:
        await anext(stream)
    samples, held = await asyncio.to_thread(idle.wait_until_idle, watched.target.http, watched.redis, IDLE_TIMEOUT_S)
    parked = samples.value("swaa_kv_blocks", use="parked")
    if parked > total - blocks * watched.num_layers:
        held.append(f"{parked:g} parked blocks")
    return [f"after a request for all memory: {what}" for what in held]
