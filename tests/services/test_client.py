"""Headers as arguments, and long texts in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services import client
from services.client import Headers, LongContextClient
from services.gateway.sla import HEADERS, TenantPolicy, parse_headers
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from swaa_runtime.errors import InvalidRequest

from .gateway.builders import CLASSES


def test_what_is_not_given_is_not_sent() -> None:
    assert Headers().to_metadata() == ()


def test_every_header_can_be_given_and_arrives() -> None:
    headers = Headers("quality", 1.5, 2.5, 0.0, "new", -1, "full", True)
    sent = headers.to_metadata()
    assert {name for name, _ in sent} == set(HEADERS)
    objective = parse_headers(sent, CLASSES, TenantPolicy())
    assert (objective.sla_class, objective.ttft_ms, objective.tpot_ms) == ("quality", 1.5, 2.5)
    assert (objective.min_quality, objective.priority, objective.strict) == (0.0, -1, True)
    assert (objective.session_id, objective.recipe_name) == ("new", "full")


@pytest.mark.parametrize("value", ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "a\nb", "\x00"])
def test_a_value_that_no_header_can_carry_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="must be printable ASCII") as caught:
        Headers(sla=value).to_metadata()
    assert (caught.value.field, caught.value.value) == ("x-swaa-sla", value)


def test_pieces_make_the_text_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PIECE_BYTES", 5)
    text = "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{EURO SIGN}" * 7
    parts = list(client._pieces(text, pb.Sampling(max_tokens=3)))
    assert all(len(part.text) <= 5 for part in parts)

    async def collect() -> None:
        async def stream() -> AsyncIterator[pb.GenerateUploadRequest]:
            for part in parts:
                yield part

        prompt, sampling = await collect_upload(stream())
        assert prompt.text == text
        assert sampling.max_tokens == 3

    asyncio.run(collect())


def test_waiting_for_a_server_that_is_not_there_ends() -> None:
    async def wait() -> None:
        async with LongContextClient("127.0.0.1:1") as unreachable:
            with pytest.raises(TimeoutError):
                await unreachable.wait_until_serving(0.3)

    asyncio.run(wait())
