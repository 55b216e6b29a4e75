"""Sessions as a client sees them: later turns, forks, expiry, damage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import grpc
import pytest
import redis

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import (
    KV_BYTES_PER_TOKEN,
    QUESTION,
    Service,
    assert_same_but_for_ties,
    fork_session,
    get_session,
    log_of,
    open_turn,
    read_until,
    recipes_with_a_tail,
    refused,
    run_turn,
    session,
    wait_until,
)

pytestmark = [pytest.mark.model, pytest.mark.redis]

DOCUMENT = log_of(5) + QUESTION
MORE = "\nIt left again with"


@pytest.fixture
def raw(service: Service) -> Iterator[redis.Redis]:
    """A plain client of the service's own Redis, to do damage."""
    with redis.Redis.from_url(service.redis_url) as client:
        yield client


def listed(service: Service, **options: int) -> list[pb.Session]:
    return list(service.stub.ListSessions(pb.ListSessionsRequest(**options), timeout=120).sessions)


@pytest.mark.parametrize("kind", ["full", "a tail", "sliding"])
def test_a_second_turn_computes_only_what_is_new(service: Service, kind: str) -> None:
    recipe = recipes_with_a_tail(service)[0] if kind == "a tail" else kind
    first = run_turn(service, DOCUMENT, session("new", recipe))
    assert first.finish.session == pb.SessionResult(
        session_id=first.accepted.session_id,
        version=1,
        saved=True,
        history="none",
        saved_bytes=first.finish.session.saved_bytes,
    )
    assert first.finish.session.saved_bytes > 0
    history = first.accepted.prompt_tokens + 8

    twin = fork_session(service, first.session_id)

    second = run_turn(service, MORE, session(first.session_id, recipe))
    assert second.session_id == first.session_id == second.accepted.session_id
    assert (second.finish.session.version, second.finish.session.saved) == (2, True)
    assert second.finish.session.history == "hot"
    usage = second.finish.usage
    assert usage.history_tokens == second.accepted.history_tokens == history
    assert usage.restored_tokens == history - 1, "the last generated token had no KV yet"
    assert usage.computed_tokens == usage.prompt_tokens + 1
    assert second.accepted.prediction.computed_tokens == usage.computed_tokens
    assert {step.restored_tokens for step in second.prefill} == {history - 1}
    assert second.prefill[-1].done_tokens == second.prefill[-1].total_tokens == history + usage.prompt_tokens

    fetched = run_turn(service, MORE, session(twin, recipe))
    assert fetched.finish.session.history == "restored"
    assert (fetched.finish.usage, fetched.token_ids) == (usage, second.token_ids)


def test_another_session_does_not_prefill_the_same_document_again(service: Service) -> None:
    document = log_of(48, seed=4242)  # over 1,024 tokens, with a checkpoint there
    first = run_turn(service, document + QUESTION, session("new", "full"), max_tokens=1)
    assert first.finish.session.history == "none"
    alone = run_turn(service, document + MORE, {"x-swaa-recipe": "full"}, logprobs=3)
    second = run_turn(service, document + MORE, session("new", "full"), logprobs=3)
    assert second.session_id != first.session_id
    spared = second.finish.usage.restored_tokens
    assert spared == 1024
    assert second.finish.session.history == f"prefix: {spared} tokens from another session"
    assert second.accepted.prediction.computed_tokens == second.finish.usage.computed_tokens
    assert second.accepted.prediction.restore.source == "prefix"
    assert_same_but_for_ties(second, alone)

    for session_id in (first.session_id, second.session_id):
        service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), timeout=120)
    third = run_turn(service, document + MORE, session("new", "full"), max_tokens=1)
    assert third.finish.session.history == "none", "what a session has saved goes with it"


def test_a_session_continues_as_one_long_prompt_would(service: Service) -> None:
    first = run_turn(service, pb.Prompt(text=DOCUMENT), session("new", "full"), logprobs=3)
    second = run_turn(service, MORE, session(first.session_id, "full"), logprobs=3, ignore_eos=True)
    whole = run_turn(service, DOCUMENT + first.text + MORE, {"x-swaa-recipe": "full"}, logprobs=3, ignore_eos=True)
    assert_same_but_for_ties(second, whole)


def test_a_chat_goes_on_in_its_session(service: Service) -> None:
    def chat(*contents: str) -> pb.Prompt:
        roles = ("user", "assistant")
        return pb.Prompt(messages=[pb.ChatMessage(role=roles[at % 2], content=c) for at, c in enumerate(contents)])

    question, more = "Name three ships.", "Which of them is the fastest?"
    first = run_turn(service, chat(question), session("new", "full"))
    second = run_turn(service, chat(more), session(first.session_id, "full"), logprobs=3)
    whole = run_turn(service, chat(question, first.text, more), {"x-swaa-recipe": "full"}, logprobs=3)
    assert second.accepted.history_tokens + second.accepted.prompt_tokens == whole.accepted.prompt_tokens
    assert_same_but_for_ties(second, whole)


def test_get_list_fork_and_delete(service: Service) -> None:
    first = run_turn(service, DOCUMENT, session("new", "full"))
    session_id = first.session_id
    got = get_session(service, session_id)
    tokens = first.accepted.prompt_tokens + 8
    assert (got.session_id, got.version, got.num_turns, got.num_tokens) == (session_id, 1, 1, tokens)
    assert got.recipe_name == "full"
    assert got.kv_bytes == (tokens - 1) * KV_BYTES_PER_TOKEN
    assert got.created_at_s <= got.updated_at_s <= time.time()
    assert got.expires_at_s == pytest.approx(got.updated_at_s + 86400, abs=1)

    other = fork_session(service, session_id)
    assert other != session_id
    copy = get_session(service, other)
    assert (copy.version, copy.num_tokens, copy.kv_bytes) == (1, got.num_tokens, got.kv_bytes)
    assert [item.session_id for item in listed(service, limit=2)] == [other, session_id]
    assert [item.session_id for item in listed(service, limit=1)] == [other]

    continued = run_turn(service, MORE, session(other, "full"))
    assert continued.finish.session.history == "restored"
    assert get_session(service, other).version == 2
    assert get_session(service, session_id).version == 1, "what happens to a fork is nothing to its source"

    service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), timeout=120)
    with refused(grpc.StatusCode.NOT_FOUND, session_id):
        get_session(service, session_id)
    with refused(grpc.StatusCode.NOT_FOUND, session_id):
        service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), timeout=120)
    assert session_id not in [item.session_id for item in listed(service)]
    again = run_turn(service, MORE, session(other, "full"))
    assert again.finish.session.history == "hot"
    again = run_turn(service, MORE, session(fork_session(service, other), "full"))
    assert again.finish.session.history == "restored", "the fork keeps what they shared"


def exported(service: Service, session_id: str) -> tuple[pb.Session, list[bytes]]:
    """What an export says, and its chunks."""
    first, *rest = service.stub.ExportSession(pb.ExportSessionRequest(session_id=session_id), timeout=120)
    assert first.WhichOneof("part") == "session"
    assert {message.WhichOneof("part") for message in rest} == {"chunk"}
    return first.session, [message.chunk for message in rest]


def imported(service: Service, chunks: Iterable[bytes]) -> pb.Session:
    requests = (pb.ImportSessionRequest(chunk=chunk) for chunk in chunks)
    answer: pb.Session = service.stub.ImportSession(requests, timeout=120)
    return answer


@pytest.mark.parametrize("recipe", ["full", "sliding"])
def test_an_exported_session_goes_on_after_it_was_deleted(service: Service, recipe: str) -> None:
    session_id = run_turn(service, log_of(5, seed=9000) + QUESTION, session("new", recipe)).session_id
    copy = fork_session(service, session_id)
    expected = run_turn(service, MORE, session(copy, recipe))
    said, chunks = exported(service, session_id)
    assert said == get_session(service, session_id)
    assert max(map(len, chunks)) <= 1 << 20
    for gone in (session_id, copy):
        service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=gone), timeout=120)

    back = imported(service, chunks)

    assert back == get_session(service, back.session_id)
    assert back.session_id not in (session_id, copy)
    assert (back.version, back.num_tokens, back.kv_bytes) == (1, said.num_tokens, said.kv_bytes)
    turn = run_turn(service, MORE, session(back.session_id, recipe))
    assert turn.finish.session.history == "restored"
    assert turn.token_ids == expected.token_ids


def test_a_damaged_file_opens_no_session(service: Service) -> None:
    session_id = run_turn(service, DOCUMENT, session("new")).session_id
    before = {item.session_id for item in listed(service, limit=1000)}
    data = b"".join(exported(service, session_id)[1])
    for damaged in (data[:-1], data + b"\0", data[:-1] + bytes([data[-1] ^ 1]), b"", b"PK\x03\x04"):
        with refused(grpc.StatusCode.DATA_LOSS, "archive"):
            imported(service, [damaged[at : at + (1 << 20)] for at in range(0, len(damaged), 1 << 20)])
    assert {item.session_id for item in listed(service, limit=1000)} == before


def test_unknown_sessions_are_not_found(service: Service) -> None:
    for call in (
        lambda: get_session(service, "nobody"),
        lambda: fork_session(service, "nobody"),
        lambda: service.stub.DeleteSession(pb.DeleteSessionRequest(session_id="nobody")),
        lambda: run_turn(service, MORE, session("nobody")),
        lambda: service.stub.Plan(pb.PlanRequest(prompt_tokens=5), metadata=(("x-swaa-session", "nobody"),)),
    ):
        with refused(grpc.StatusCode.NOT_FOUND, "no session 'nobody'"):
            call()


@pytest.mark.parametrize("session_id", ["", "a b", "a:b", "x" * 65, "../x", "{}"])
def test_ids_that_no_session_can_have_are_refused(service: Service, session_id: str) -> None:
    for call in (
        lambda: get_session(service, session_id),
        lambda: fork_session(service, session_id),
        lambda: service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id)),
        lambda: run_turn(service, MORE, session(session_id)),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "session", repr(session_id), "1 to 64 of the characters"):
            call()


@pytest.mark.parametrize("limit", [0, 1001, 2**32 - 1])
def test_the_limit_of_a_list_has_bounds(service: Service, limit: int) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"limit is {limit}: must be in 1..1000"):
        listed(service, limit=limit)


def test_one_of_two_turns_at_once_is_told_to_try_again(service: Service) -> None:
    session_id = run_turn(service, "The ship", session("new")).session_id
    first = open_turn(service, MORE, session(session_id), max_tokens=30, ignore_eos=True)
    read_until(first, "token")
    with refused(grpc.StatusCode.ABORTED, session_id, "in use by another request"):
        run_turn(service, MORE, session(session_id))
    assert list(first)[-1].finish.session.version == 2
    assert run_turn(service, MORE, session(session_id)).finish.session.version == 3


def test_another_recipe_recomputes_the_history_and_says_so(service: Service) -> None:
    session_id = run_turn(service, DOCUMENT, session("new", "full")).session_id
    turn = run_turn(service, MORE, session(session_id, "sliding"))
    assert turn.finish.session.history == "recomputed: it was saved under recipe full"
    assert turn.finish.usage.restored_tokens == 0
    assert turn.finish.usage.computed_tokens == turn.accepted.history_tokens + turn.accepted.prompt_tokens
    assert turn.accepted.prediction.computed_tokens == turn.finish.usage.computed_tokens
    assert get_session(service, session_id).recipe_name == "sliding"


def test_a_turn_that_is_cancelled_leaves_the_session_as_it_was(service: Service) -> None:
    session_id = run_turn(service, "The ship", session("new")).session_id
    call = open_turn(service, MORE, session(session_id), max_tokens=2000, ignore_eos=True)
    read_until(call, "token")
    call.cancel()

    def free() -> bool:
        try:
            return run_turn(service, MORE, session(session_id), max_tokens=1).finish.session.version == 2
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.ABORTED:
                raise
            return False

    assert wait_until(free)


def test_a_damaged_segment_is_recomputed_and_said_so(service: Service, raw: redis.Redis) -> None:
    text = log_of(5, seed=7000) + QUESTION  # of this test only: equal sessions share their segments
    session_id = run_turn(service, text, session("new")).session_id
    whole = fork_session(service, session_id)
    expected = run_turn(service, MORE, session(whole), logprobs=3)
    service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=whole), timeout=120)
    damage_one(raw, session_id)
    twin = fork_session(service, session_id)  # its state is in no replica's memory
    turn = run_turn(service, MORE, session(twin), logprobs=3)
    assert turn.finish.session.history.startswith("recomputed: segment ")
    assert turn.finish.session.saved
    assert turn.finish.usage.restored_tokens == 0
    assert_same_but_for_ties(turn, expected)
    assert run_turn(service, MORE, session(fork_session(service, twin))).finish.session.history == "restored"


def damage_one(raw: redis.Redis, session_id: str) -> None:
    """Flip a bit of a segment that only this session uses."""
    for key in raw.scan_iter("swaa:{default}:users:*"):
        if raw.zrange(key, 0, -1) == [f"session:{session_id}".encode()]:
            segment = key.replace(b":users:", b":segment:")
            data = raw.get(segment)
            assert isinstance(data, bytes)
            raw.set(segment, data[:-1] + bytes([data[-1] ^ 1]))
            return
    raise AssertionError("the session has no segment of its own")


def test_a_damaged_manifest_is_data_loss(service: Service, raw: redis.Redis) -> None:
    session_id = run_turn(service, "The ship", session("new")).session_id
    key = f"swaa:{{default}}:session:{session_id}"
    data = raw.hget(key, "data")
    assert isinstance(data, bytes)
    raw.hset(key, "data", data[:-1] + bytes([data[-1] ^ 1]))
    for call in (
        lambda: get_session(service, session_id),
        lambda: fork_session(service, session_id),
        lambda: run_turn(service, MORE, session(session_id)),
    ):
        with refused(grpc.StatusCode.DATA_LOSS, session_id, "checksum"):
            call()
    assert session_id not in [item.session_id for item in listed(service)]
    service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), timeout=120)
    with refused(grpc.StatusCode.NOT_FOUND):
        get_session(service, session_id)
