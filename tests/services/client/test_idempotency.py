"""A turn that is sent again with its key runs once: through a wire that is cut, and call by call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.client import (
    NO_RETRY,
    Answer,
    AsyncClient,
    Busy,
    InvalidRequest,
    NotFound,
    Retry,
    TurnOptions,
    Unavailable,
)
from services.gateway.identity import ANONYMOUS, keyed_session_id
from services.sessions.store import Manifest
from tests.services.replica.builders import asynchronous
from tests.services.tiny_service import TinyService, tiny_service, until

from .proxy import Proxy, running_proxy

RETRY = Retry(max_attempts=20, first_wait_s=0.02, max_wait_s=0.1)
PROMPT, MORE = "the keeper's log of a long year", "and then"


@asynccontextmanager
async def through_a_proxy(retry: Retry = RETRY) -> AsyncIterator[tuple[TinyService, Proxy, AsyncClient]]:
    async with (
        tiny_service() as service,
        running_proxy(service.server.port) as proxy,
        AsyncClient(f"127.0.0.1:{proxy.port}", timeout_s=120, retry=retry) as client,
    ):
        await client.wait_until_serving(120)  # a connection whose first answers are held up is none
        yield service, proxy, client


def the_session(service: TinyService) -> Manifest:
    [manifest] = service.store.manifests.values()
    return manifest


def history_of(answer: Answer) -> str:
    assert answer.session is not None
    assert answer.session.saved, answer.session.error
    return answer.session.history


@asynchronous
async def test_cut_off_after_the_turn_was_saved_and_before_anything_was_read() -> None:
    async with through_a_proxy() as (service, proxy, client):
        proxy.answers.clear()
        asking = asyncio.create_task(client.generate(PROMPT, session="new", recipe="full", max_tokens=6))
        await until(lambda: bool(service.store.manifests))
        proxy.cut()
        answer = await asking
        saved = the_session(service)
        assert len(saved.turns) == 1
        assert history_of(answer) == "replayed"
        assert answer.token_ids == saved.token_ids[saved.turns[0].generated_start :]
        assert answer.usage.computed_tokens == 0
        assert (answer.usage.generated_tokens, answer.reason) == (6, "length")
        assert proxy.num_connections == 2


@asynchronous
async def test_cut_off_while_the_turn_runs() -> None:
    async with through_a_proxy() as (service, proxy, client):
        expected = await client.generate(PROMPT, recipe="full", max_tokens=200)
        proxy.answers.clear()
        asking = asyncio.create_task(client.generate(PROMPT, session="new", recipe="full", max_tokens=200))
        await until(lambda: service.replica.num_turns == 1)
        proxy.cut()
        answer = await asking
        saved = the_session(service)
        assert (len(saved.turns), saved.version) == (1, 1)
        assert answer.token_ids == expected.token_ids
        assert not service.store.leases


@asynchronous
async def test_a_later_turn_is_one_turn_as_well() -> None:
    async with through_a_proxy() as (service, proxy, client), client.session(recipe="tail", max_tokens=6) as chat:
        first = await chat.ask(PROMPT)
        proxy.answers.clear()
        asking = asyncio.create_task(chat.ask(MORE))
        await until(lambda: the_session(service).version == 2)
        proxy.cut()
        second = await asking
        third = await chat.ask(MORE)
        saved = the_session(service)
        assert [len(saved.turns), saved.version] == [3, 3]
        assert [history_of(turn) for turn in (first, second, third)] == ["none", "replayed", "hot"]
        generated = tuple(token for turn in (first, second, third) for token in turn.token_ids)
        assert generated == tuple(
            token for turn in saved.turns for token in saved.token_ids[turn.generated_start : turn.stop]
        )
        assert second.usage.history_tokens == first.usage.prompt_tokens + 6


@asynchronous
async def test_after_the_first_token_nothing_is_tried_again_but_the_key_still_holds() -> None:
    async with through_a_proxy() as (service, proxy, client):
        stream = client.stream(PROMPT, session="new", recipe="full", max_tokens=100, idempotency_key="k1")
        first = await anext(stream)
        proxy.answers.clear()
        await until(lambda: bool(service.store.manifests))
        proxy.cut()
        with pytest.raises(Unavailable):
            await stream.answer()
        answer = await client.generate(PROMPT, session="new", recipe="full", max_tokens=100, idempotency_key="k1")
        assert history_of(answer) == "replayed"
        assert answer.token_ids[0] == first.token_id
        assert len(the_session(service).turns) == 1


@asynchronous
async def test_what_a_key_is_good_for() -> None:
    async with tiny_service() as service, AsyncClient(service.address, retry=NO_RETRY) as client:

        async def ask(prompt: str, session: str, key: str) -> Answer:
            return await client.generate(prompt, session=session, recipe="full", idempotency_key=key, max_tokens=4)

        first = await ask(PROMPT, "new", "one")
        session_id = keyed_session_id(ANONYMOUS.tenant, "one")
        assert first.session is not None
        assert first.session.session_id == session_id
        for session in ("new", session_id):
            again = await ask(PROMPT, session, "one")
            assert (again.token_ids, again.text, history_of(again)) == (first.token_ids, first.text, "replayed")
            assert again.recipe == first.recipe
            assert again.session is not None
            assert again.session.version == 1

        with pytest.raises(InvalidRequest, match="x-swaa-idempotency-key is 'one': was given with another prompt"):
            await ask(MORE, "new", "one")

        copy = await client.sessions.fork(session_id)
        forked = await ask(PROMPT, copy.session_id, "one")
        assert (history_of(forked), (await client.sessions.get(copy.session_id)).num_turns) == ("restored", 2)

        second = await ask(MORE, session_id, "two")
        assert history_of(second) == "hot"
        assert history_of(await ask(MORE, session_id, "two")) == "replayed"
        with pytest.raises(Busy, match="has moved on"):
            await ask(PROMPT, "new", "one")

        await client.sessions.delete(session_id)
        with pytest.raises(NotFound):
            await ask(MORE, session_id, "two")
        reopened = await ask(PROMPT, "new", "one")
        assert reopened.token_ids == first.token_ids
        assert history_of(reopened) != "replayed"


@asynchronous
async def test_a_replay_needs_no_replica() -> None:
    async with tiny_service() as service, AsyncClient(service.address, retry=NO_RETRY) as client:
        first = await client.generate(PROMPT, session="new", max_tokens=4, idempotency_key="k")
        service.rig.loop.close()
        again = await client.generate(PROMPT, session="new", max_tokens=4, idempotency_key="k")
        assert (again.token_ids, history_of(again)) == (first.token_ids, "replayed")


@asynchronous
async def test_while_the_first_attempt_runs_the_second_is_busy() -> None:
    async with tiny_service() as service, AsyncClient(service.address, retry=NO_RETRY) as client:
        options: TurnOptions = {"recipe": "full", "idempotency_key": "k", "max_tokens": 400}
        async with client.stream(PROMPT, session="new", **options) as stream:
            await anext(stream)
            with pytest.raises(Busy):
                await client.generate(PROMPT, session="new", **options)
        await until(lambda: not service.store.leases)
        assert not service.store.manifests


@asynchronous
async def test_a_turn_without_a_session_just_runs_again() -> None:
    async with through_a_proxy() as (service, proxy, client):
        proxy.answers.clear()
        asking = asyncio.create_task(client.generate(PROMPT, recipe="full", max_tokens=6))
        await until(lambda: service.replica.num_turns == 1)
        proxy.cut()
        answer = await asking
        assert len(answer.token_ids) == 6
        assert not service.store.manifests
