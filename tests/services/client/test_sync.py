"""The blocking client: the same calls from a program without an event loop."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import assert_type

import pytest

from services.client import (
    NO_RETRY,
    Accepted,
    Answer,
    AnswerStream,
    Chat,
    Client,
    NotFound,
    Plan,
    Progress,
    Session,
    Token,
    Unavailable,
)
from tests.services.tiny_service import TinyService, tiny_service_thread


@pytest.fixture(scope="module")
def service() -> Iterator[TinyService]:
    with tiny_service_thread() as running:
        yield running


@pytest.fixture
def client(service: TinyService) -> Iterator[Client]:
    with Client(service.address, timeout_s=120) as client:
        yield client


def test_a_conversation(client: Client) -> None:
    progress: list[Progress] = []
    with client.session(recipe="tail", max_tokens=5, keep=False) as chat:
        assert_type(chat, Chat)
        answer = assert_type(chat.ask("a log", question="who?", on_progress=progress.append), Answer)
        with chat.stream("and when?") as stream:
            assert_type(stream, AnswerStream)
            tokens = [assert_type(token, Token) for token in stream]
            again = stream.answer()
            accepted = assert_type(stream.accepted, Accepted | None)
        assert again.tokens == tuple(tokens)
        assert accepted is again.accepted
        assert stream.progress is not None
        assert progress[-1].done_tokens == progress[-1].total_tokens == answer.usage.prompt_tokens
        copy = chat.fork(keep=False)
        session_id = str(chat.id)
        assert assert_type(client.sessions.get(session_id), Session).num_turns == 2
        assert client.sessions.get(str(copy.id)).num_turns == 2
        copy.delete()
    with pytest.raises(NotFound):
        client.sessions.get(session_id)


def test_plans_files_and_lists(client: Client) -> None:
    assert assert_type(client.plan(prompt_tokens=100), Plan).prompt_tokens == 100
    assert client.recipes().model == "tiny"
    client.wait_until_serving(5)
    with client.session(max_tokens=3) as chat:
        chat.ask("a log")
    file = io.BytesIO()
    client.sessions.export_to(file, str(chat.id))
    file.seek(0)
    copy = client.sessions.import_from(file)
    assert {copy.session_id, chat.id} <= {session.session_id for session in client.sessions.list()}
    client.sessions.delete(copy.session_id)


def test_a_loop_that_is_left_ends_the_turn(client: Client, service: TinyService) -> None:
    with client.stream("a log", max_tokens=900) as stream:
        for token in stream:
            assert token.text
            break
    assert client.generate("another", max_tokens=2).usage.generated_tokens == 2


def test_several_threads_at_once(client: Client) -> None:
    def ask(number: int) -> Answer:
        return client.generate("a log" * number, max_tokens=4, recipe="full")

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(1, 5)))
    assert [answer.usage.prompt_tokens for answer in together] == sorted({a.usage.prompt_tokens for a in together})


def test_a_listener_that_calls_its_client_is_told_so_instead_of_waiting_for_itself(client: Client) -> None:
    with pytest.raises(RuntimeError, match="must not call the client"):
        client.generate("a log", max_tokens=2, on_progress=lambda progress: print(client.recipes()))


def test_it_leaves_no_thread_behind(service: TinyService) -> None:
    before = threading.active_count()
    with Client(service.address) as client:
        client.recipes()
        assert threading.active_count() > before
    assert "swaa-client" not in {thread.name for thread in threading.enumerate()}
    with Client(service.address):
        pass


def test_errors_are_the_same() -> None:
    with Client("127.0.0.1:1", retry=NO_RETRY) as client, pytest.raises(Unavailable):
        client.generate("a")
