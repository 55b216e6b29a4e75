"""Fault after fault under load; after each one everything has to be in order again, and nothing lost or wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import redis

from services.client import DeadlineExceeded, Unavailable
from tests.chaos.faults import Fault, Victims, gateway_cut_off
from tests.soak import crowd, rude, turns
from tests.soak.audit import audit, leases
from tests.soak.ledger import Decode, Ledger
from tests.soak.oracle import Oracle
from tests.soak.run import check_answers, not_as_told
from tests.soak.world import Sizes, Target, World, opened

SCENARIOS: Mapping[crowd.Scenario, int] = {
    turns.go_on: 12,
    turns.open_session: 6,
    turns.one_shot: 6,
    turns.http_completion: 4,
    turns.fork: 2,
    turns.delete: 2,
    turns.export_and_import: 1,
    rude.cancel: 3,
    rude.deadline: 1,
    rude.slow_reader: 1,
}
TOLERATED = (Unavailable, DeadlineExceeded)
TOLERATED_HTTP = frozenset({503, 504})
TOLERATED_UNSAVED = {"session store: ": "store"}
"""What operating.md says of a store, a replica or a gateway that is away; beside what may happen to anybody."""

ORDER_TIMEOUT_S = 240.0
"""A lease whose owner was killed runs out after half a minute; a replica is replaced before that."""

SIZES = Sizes(
    users=4,
    mean_pause_s=0.3,
    shared_tokens=150,
    prompt_tokens=(20, 300),
    answer_tokens=(4, 60),
    max_sessions=12,
    max_turns=5,
)


@dataclass(frozen=True, slots=True)
class Watched:
    """A cluster, and what is held against its answers."""

    victims: Victims
    targets: Sequence[Target]
    oracle: Oracle
    decode: Decode


@dataclass(frozen=True, slots=True)
class Plan:
    """Which faults, in which order; seconds of load before and after each; answers that are computed again then."""

    faults: Sequence[Fault]
    before_s: float
    after_s: float
    checked: int
    seed: int


async def chaos(watched: Watched, plan: Plan, text: Sequence[int], say: Callable[[str], None]) -> bool:
    """Run it all; says a line per fault and, last, the verdict as JSON. Whether everything held."""
    started_s = time.monotonic()
    ledger, wrong = Ledger(), list[str]()
    counts: Counter[tuple[str, str]] = Counter()
    with redis.Redis.from_url(watched.victims.redis.url) as client:
        for number, fault in enumerate(plan.faults):
            # Clients of the gateway that is cut off are the ones to ask what they saw of it.
            target = watched.targets[-1 if fault is gateway_cut_off else 0]
            async with opened(target, text, SIZES, plan.seed + number) as world:
                world.ledger, world.faults = ledger, wrong
                world.tolerated += TOLERATED
                world.tolerated_http |= TOLERATED_HTTP
                world.tolerated_unsaved = {**world.tolerated_unsaved, **TOLERATED_UNSAVED}
                saved = ledger.num_acknowledged
                await under_load(world, watched.victims, fault, plan)
                wrong += await look(watched, world, client, plan.checked)
                counts += world.counts
                say(row(fault, world, ledger.num_acknowledged - saved, watched.oracle.num_checked))
    for line in wrong:
        say(f"FAULT: {line}")
    figures = {
        "ok": not wrong,
        "seconds": round(time.monotonic() - started_s),
        "inflicted": [name_of(fault) for fault in plan.faults],
        "done": counts.total(),
        "saved_turns": ledger.num_acknowledged,
        "oracle_checked": watched.oracle.num_checked,
        "ended": {f"{name}: {how}": count for (name, how), count in sorted(counts.items())},
        "faults": wrong[:20],
    }
    say(json.dumps(figures))
    return not wrong


def name_of(fault: Fault) -> str:
    """What it is called."""
    return str(fault.__name__)


def row(fault: Fault, world: World, num_saved: int, num_checked: int) -> str:
    """A line of the table."""
    refused = sum(count for (_, how), count in world.counts.items() if how[0].isupper())
    cells = (
        f"{name_of(fault):>18}",
        f"{world.counts.total():4} things done",
        f"{refused:4} refused",
        f"{num_saved:4} turns saved",
        f"{len(world.ledger.sessions):3} sessions there",
        f"{num_checked:4} answers checked",
        f"{len(world.faults)} faults",
    )
    return "  ".join(cells)


async def under_load(world: World, victims: Victims, fault: Fault, plan: Plan) -> None:
    """Load before, during and after a fault."""
    harming = asyncio.create_task(_later(plan.before_s, fault, victims))
    loading = asyncio.create_task(crowd.run_until(world, SCENARIOS, harming, plan.after_s))
    await asyncio.gather(harming, loading)


async def _later(seconds: float, fault: Fault, victims: Victims) -> None:
    await asyncio.sleep(seconds)
    await fault(victims)


async def look(watched: Watched, world: World, client: redis.Redis, num_checked: int) -> list[str]:
    """What is lost, wrong or held, once nobody asks any more."""
    until_s = time.monotonic() + ORDER_TIMEOUT_S
    while await asyncio.to_thread(leases, client) and time.monotonic() < until_s:  # noqa: ASYNC110 - Redis tells nobody
        await asyncio.sleep(0.5)
    found = await asyncio.to_thread(audit, client)
    faults = [*found.faults, *not_as_told(world, found.sessions, watched.decode)]
    faults += await asyncio.to_thread(check_answers, watched.oracle, world, found, num_checked)
    for known in list(world.ledger.sessions.values()):  # by the wire as well
        session = await world.client.sessions.get(known.session_id, timeout_s=ORDER_TIMEOUT_S)
        if session.version < known.version:
            faults.append(f"session {known.session_id} is told at version {session.version}, not {known.version}")
    return faults
