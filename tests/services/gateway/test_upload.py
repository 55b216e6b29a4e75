"""A prompt in pieces is the prompt, and what is wrong with the pieces is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.prompt import ChatMessage, PromptInput
from services.gateway.receiving import Intake
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from swaa_runtime.errors import InvalidRequest

FIRST = pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=pb.Sampling(max_tokens=3)))


def text(data: bytes) -> pb.GenerateUploadRequest:
    return pb.GenerateUploadRequest(text=data)


def ids(*token_ids: int) -> pb.GenerateUploadRequest:
    return pb.GenerateUploadRequest(token_ids=pb.TokenIds(token_ids=token_ids))


def collect(parts: Sequence[pb.GenerateUploadRequest]) -> tuple[PromptInput, pb.Sampling]:
    async def stream() -> AsyncIterator[pb.GenerateUploadRequest]:
        for part in parts:
            yield part

    return asyncio.run(received(stream()))


async def received(
    parts: AsyncIterator[pb.GenerateUploadRequest], max_bytes: int = 1000, max_tokens: int = 10
) -> tuple[PromptInput, pb.Sampling]:
    intake = Intake(1 << 20)
    with intake.receiving("prompt", max_bytes) as receiving:
        collected = await collect_upload(parts, receiving, max_tokens)
        assert intake.held_bytes == receiving.num_bytes
    assert intake.held_bytes == 0
    return collected


@settings(deadline=None)
@given(st.text(), st.data())
def test_text_may_be_cut_anywhere_even_inside_a_character(whole: str, data: st.DataObject) -> None:
    encoded = whole.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=5)))
    edges = [0, *cuts, len(encoded)]
    pieces = [encoded[low:high] for low, high in pairwise(edges)]
    prompt, sampling = collect([FIRST, *map(text, pieces)])
    assert prompt == PromptInput(text=whole)
    assert sampling == pb.Sampling(max_tokens=3)


def test_token_ids_are_joined() -> None:
    prompt, _ = collect([FIRST, ids(1, 2), ids(), ids(3)])
    assert prompt == PromptInput(token_ids=(1, 2, 3))


def message(role: str, content: str = "") -> pb.GenerateUploadRequest:
    return pb.GenerateUploadRequest(message=pb.ChatMessage(role=role, content=content))


def test_text_belongs_to_the_message_before_it() -> None:
    parts = [message("system", "be "), text(b"bri"), text(b"ef"), message("user"), text(b"caf\xc3"), text(b"\xa9")]
    prompt, _ = collect([FIRST, *parts])
    expected = (ChatMessage("system", "be brief"), ChatMessage("user", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"))
    assert prompt == PromptInput(messages=expected)


@pytest.mark.parametrize("part", [text(b"a"), ids(1)])
def test_messages_and_other_pieces_are_refused(part: pb.GenerateUploadRequest) -> None:
    with pytest.raises(InvalidRequest, match="exactly one of text, token_ids and messages"):
        collect([FIRST, part, message("user", "b")])[0].check()


def test_bytes_that_are_not_utf_8_are_refused_with_their_message() -> None:
    with pytest.raises(InvalidRequest, match="byte 1 is not UTF-8") as caught:
        collect([FIRST, message("system", "b"), message("user", "a"), text(b"\xff")])
    assert caught.value.field == "prompt.messages[1].content"


def test_mixed_pieces_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="exactly one of text, token_ids and messages"):
        collect([FIRST, text(b"a"), ids(1)])[0].check()


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [text(b"a")],
        [ids(1)],
        [text(b"a"), FIRST],
        [FIRST, FIRST],
        [FIRST, text(b"a"), FIRST],
        [pb.GenerateUploadRequest()],
        [FIRST, pb.GenerateUploadRequest()],
        [FIRST, text(b"a"), pb.GenerateUploadRequest(), text(b"b")],
    ],
)
def test_the_request_comes_first_once_and_then_pieces(parts: list[pb.GenerateUploadRequest]) -> None:
    with pytest.raises(InvalidRequest, match="the first message must be `request`") as caught:
        collect(parts)
    assert caught.value.field == "part"


def test_a_prompt_in_the_first_message_is_refused() -> None:
    first = pb.GenerateUploadRequest(request=pb.GenerateRequest(prompt=pb.Prompt(text="a")))
    with pytest.raises(InvalidRequest, match="send it in pieces"):
        collect([first, text(b"b")])


def test_an_empty_prompt_in_the_first_message_is_empty() -> None:
    first = pb.GenerateUploadRequest(request=pb.GenerateRequest(prompt=pb.Prompt()))
    assert collect([first, text(b"b")])[0] == PromptInput("b")


@pytest.mark.parametrize(
    ("pieces", "at"), [([b"ab\xff"], 2), ([b"abc", b"d\xc3"], 4), ([b"\xe2\x82", b"x"], 0), ([b"\xed\xa0\x80"], 0)]
)
def test_text_that_is_not_utf_8_is_refused_with_the_place(pieces: list[bytes], at: int) -> None:
    with pytest.raises(InvalidRequest, match=f"byte {at} is not UTF-8"):
        collect([FIRST, *map(text, pieces)])


async def endless(part: pb.GenerateUploadRequest) -> AsyncIterator[pb.GenerateUploadRequest]:
    yield FIRST
    while True:
        yield part


@pytest.mark.parametrize("part", [text(b"123"), ids(1), message("user", "x")])
def test_too_many_bytes_are_refused_before_the_rest_is_read(part: pb.GenerateUploadRequest) -> None:
    with pytest.raises(InvalidRequest, match="prompt is 'more than 30 bytes': must be at most 30 bytes"):
        asyncio.run(received(endless(part), max_bytes=30, max_tokens=100))


def test_too_many_token_ids_are_refused_before_the_rest_is_read() -> None:
    with pytest.raises(InvalidRequest, match=r"prompt\.token_ids is '11 of them': must be at most 10"):
        asyncio.run(received(endless(ids(1))))


def test_too_many_messages_are_refused_however_short_they_are() -> None:
    with pytest.raises(InvalidRequest, match=r"prompt\.messages is '4097 of them': must be at most 4096"):
        asyncio.run(received(endless(message("")), max_bytes=1 << 20))
