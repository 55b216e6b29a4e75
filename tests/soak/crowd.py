"""Who does what, how often: some users at a time, each one thing after the other, at random."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import grpc
import httpx

from services.client import ClientError
from services.client.errors import error_of
from tests.soak import rude, turns
from tests.soak.turns import NOTHING
from tests.soak.world import Refused, World

MAX_FAULT_CHARACTERS = 300
Scenario = Callable[[World], Awaitable[str]]

POLITE: Mapping[Scenario, int] = {
    turns.go_on: 16,
    turns.open_session: 8,
    turns.one_shot: 8,
    turns.http_completion: 5,
    turns.http_stream: 5,
    turns.urgent: 4,
    turns.sampled: 3,
    turns.fork: 3,
    turns.delete: 4,
    turns.export_and_import: 2,
    turns.upload: 3,
    turns.look_around: 2,
    turns.hog: 3,
}
RUDE: Mapping[Scenario, int] = {
    rude.cancel: 6,
    rude.deadline: 4,
    rude.hang_up: 2,
    rude.half_upload: 2,
    rude.half_import: 2,
    rude.half_body: 2,
    rude.http_hang_up: 3,
    rude.slow_reader: 2,
    rude.two_at_once: 3,
    rude.wrong: 1,
    rude.killed: 1,
}
"""How often each comes, beside the others."""


async def run(world: World, scenarios: Mapping[Scenario, int], seconds: float) -> None:
    """Let all users do things for so long, and then end what they are at."""
    await run_until(world, scenarios, asyncio.sleep(seconds), 0.0)


async def run_until(world: World, scenarios: Mapping[Scenario, int], ended: Awaitable[object], after_s: float) -> None:
    """The same, until something has ended, and some seconds more."""
    ending = asyncio.Event()
    users = [asyncio.create_task(_user(world, scenarios, ending)) for _ in range(world.sizes.users)]
    try:
        await ended
        await asyncio.sleep(after_s)
    finally:
        ending.set()
        await asyncio.gather(*users)


async def each_once(world: World, scenarios: Mapping[Scenario, int]) -> None:
    """Everything once, so that no run is without any of it."""
    for scenario in scenarios:
        await attempt(world, scenario)


async def _user(world: World, scenarios: Mapping[Scenario, int], ending: asyncio.Event) -> None:
    while not ending.is_set():
        (scenario,) = world.rng.choices(list(scenarios), weights=list(scenarios.values()))
        await attempt(world, scenario)
        try:
            async with asyncio.timeout(world.rng.expovariate(1 / world.sizes.mean_pause_s)):
                await ending.wait()
        except TimeoutError:
            continue


async def attempt(world: World, scenario: Scenario) -> None:
    """Do one thing, and note how it ended: well, as may happen to anybody, or as must not happen."""
    name = scenario.__name__
    try:
        ended = await scenario(world)
    except world.tolerated as exc:
        ended = type(exc).__name__
    except grpc.aio.AioRpcError as exc:  # of a raw call
        error = error_of(exc)
        ended = type(error).__name__
        if not isinstance(error, world.tolerated):
            world.faults.append(f"{name}: {error.status} {error}"[:MAX_FAULT_CHARACTERS])
    except Refused as exc:
        ended = f"HTTP {exc.code}"
        if exc.status not in world.tolerated_http:
            world.faults.append(f"{name}: {exc}")
    except (ClientError, httpx.HTTPError, OSError, TimeoutError, AssertionError) as exc:
        ended = type(exc).__name__
        status = getattr(exc, "status", "")
        world.faults.append(f"{name}: {ended} {status} {exc}".replace("\n", " ")[:MAX_FAULT_CHARACTERS])
    if ended != NOTHING:
        world.counts[name, ended] += 1
