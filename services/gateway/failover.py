"""A turn that outlives its replica: run it, and go on elsewhere if the replica is lost, from the tokens already sent.

The client sees one stream: no token twice, none left out, progress never backwards. Another replica computes prompt and
sent tokens (or restores them, from a checkpoint or the session) and generates the same greedy tokens after them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace

from services.errors import ReplicaLost, StaleSession
from services.gateway.replay import last_answer, last_prompt, replayed
from services.gateway.replicas import LeasedReplica, Replicas
from services.replica.job import Event, Job
from services.sessions.store import SessionStore
from swaa_runtime.detokenizer import Decoder
from swaa_runtime.errors import EngineFailed
from swaa_runtime.outputs import PrefillProgress, TokenOutput

logger = logging.getLogger(__name__)

MAX_FUTILE_ATTEMPTS = 5
"""Attempts in a row that lose their replica before the turn gets any further, until its client is told.

So a request that is itself what ends replicas ends few of them, and one that others' faults befall goes on.
"""

Replan = Callable[[Job, LeasedReplica], Awaitable[Job]]


async def run_turn(
    replicas: Replicas, first: LeasedReplica, job: Job, replan: Replan, store: SessionStore, decoder: Decoder
) -> AsyncGenerator[Event, None]:
    """Events of a turn, whatever happens to replicas.

    Args:
        first: leased for the turn, by whoever calls.
        replan: the job for another replica, given what is saved and what that replica has by then.
        decoder: the tokenizer, for tokens that are known only from a saved session.

    Raises:
        ReplicaLost: after MAX_FUTILE_ATTEMPTS.
        Whatever else the turn raises.
    """
    sent: list[int] = []
    furthest, attempt, num_futile = 0, 0, 0
    async with contextlib.AsyncExitStack() as lease:
        replica = first
        while True:
            attempt += 1
            repeated, reached = bool(sent), (furthest, len(sent))
            try:
                async with contextlib.aclosing(replica.generate(job)) as events:
                    async for event in events:
                        if isinstance(event, PrefillProgress):
                            if sent or event.num_computed_tokens <= furthest:
                                continue
                            furthest = event.num_computed_tokens
                        elif isinstance(event, TokenOutput):
                            if repeated:
                                repeated = False
                                continue
                            sent.append(event.token_id)
                        yield event
                return
            except (ReplicaLost, EngineFailed) as exc:
                logger.warning("request %s, attempt %d, %d tokens sent: %s", job.request_id, attempt, len(sent), exc)
                num_futile = num_futile + 1 if (furthest, len(sent)) == reached else 0
                if num_futile == MAX_FUTILE_ATTEMPTS:
                    futile = f"{num_futile} attempts in a row lost their replica before the turn got any further"
                    raise ReplicaLost(f"{futile}; the last: {exc}") from exc
            except StaleSession:
                if attempt == 1:
                    raise
                for event in await _saved_turn(store, decoder, job, sent, replica.facts.eos_token_ids):
                    yield event
                return
            await lease.aclose()  # of the one that is lost
            replica = await lease.enter_async_context(replicas.lease(job.session))
            job = await replan(replace(job, sent_token_ids=tuple(sent)), replica)


async def _saved_turn(
    store: SessionStore, decoder: Decoder, job: Job, sent: Sequence[int], eos_token_ids: frozenset[int]
) -> list[Event]:
    """The rest of a turn that a lost replica had saved before it went. Raises StaleSession if it is not that turn."""
    assert job.session is not None  # noqa: S101 - only turns of sessions become stale
    manifest = await store.get(job.session.tenant, job.session.session_id)
    is_next = manifest.version == job.session.version + 1 and last_prompt(manifest) == job.prompt_token_ids
    if not is_next or last_answer(manifest)[: len(sent)] != tuple(sent):
        raise StaleSession(f"session {manifest.session_id!r} has moved on while its turn was cut off")
    recovered = "recovered: its first replica had saved the turn"
    return replayed(manifest, job, decoder, eos_token_ids, history=recovered, num_sent_tokens=len(sent))
