"""The runner against a server that answers when it is told to: what waits for what, and what is made of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest

from services.load.prompts import TextPrompts, TokenPrompts
from services.load.results import Result
from services.load.runner import LoadRunner
from services.load.trace import TraceRequest
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc

PROMPTS = TokenPrompts(list(range(100)))
SLA = {"x-swaa-sla": "quality"}


class Server(pb_grpc.LongContextServicer):
    """Answers at once, unless a gate is shut; refuses prompts of one token."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def Generate(  # noqa: N802 - named by the proto
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        headers = dict(context.invocation_metadata())
        self.asked.put_nowait({"tokens": len(request.prompt.token_ids), **headers})
        if len(request.prompt.token_ids) == 1:
            context.set_trailing_metadata((("retry-after-ms", "1500"),))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        accepted = pb.Accepted(session_id="id-1" if "x-swaa-session" in headers else "", prompt_tokens=7)
        accepted.recipe.name = "tail"
        accepted.objective.MergeFrom(pb.Objective(sla_class="quality", ttft_ms=60e3, tpot_ms=60e3, min_quality=0.5))
        accepted.prediction.MergeFrom(pb.Prediction(ttft_ms=12.0, tpot_ms=3.0, quality=0.75))
        yield pb.GenerateResponse(accepted=accepted)
        await self.gate.wait()
        for token_id in range(request.sampling.max_tokens):
            yield pb.GenerateResponse(token=pb.Token(token_id=token_id))
        yield pb.GenerateResponse(finish=pb.Finish(timings=pb.Timings(queue_ms=2.0)))


def serve(test: Callable[[Server, Any], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        service, server = Server(), grpc.aio.server()
        pb_grpc.add_LongContextServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await test(service, pb_grpc.LongContextStub(channel))  # type: ignore[no-untyped-call]
        finally:
            await server.stop(0)

    asyncio.run(asyncio.wait_for(run(), 240))


def test_an_answer_becomes_figures() -> None:
    async def test(server: Server, stub: Any) -> None:
        [result] = await LoadRunner(stub, PROMPTS, 30).run([TraceRequest(5.0, 10, 3, SLA)])
        assert (result.status, result.recipe, result.quality, result.generated_tokens) == ("OK", "tail", 0.75, 3)
        assert (result.predicted_ttft_ms, result.queue_ms, result.prompt_tokens) == (12.0, 2.0, 7)
        assert 0 < result.ttft_ms <= result.total_ms
        assert result.met
        assert result.sent_ms >= 5.0
        assert (await server.asked.get())["tokens"] == 10

    serve(test)


def test_a_refusal_is_a_miss_with_its_retry_after() -> None:
    async def test(server: Server, stub: Any) -> None:
        [result] = await LoadRunner(stub, PROMPTS, 30).run([TraceRequest(0.0, 1, 3, SLA)])
        assert (result.status, result.detail, result.retry_after_ms) == ("RESOURCE_EXHAUSTED", "busy", 1500.0)
        assert not result.met
        assert result.refused
        assert result.sla_class == "quality"  # from its own header, as the server said nothing

    serve(test)


def test_a_late_answer_does_not_delay_the_next_request() -> None:
    async def test(server: Server, stub: Any) -> None:
        server.gate.clear()
        trace = [TraceRequest(float(index), 10 + index, 1, SLA) for index in range(3)]
        running = asyncio.create_task(LoadRunner(stub, PROMPTS, 30).run(trace))
        asked = [(await server.asked.get())["tokens"] for _ in trace]  # all arrive while none is answered
        assert sorted(asked) == [10, 11, 12]
        server.gate.set()
        assert [result.index for result in await running] == [0, 1, 2]

    serve(test)


def test_a_turn_of_a_conversation_waits_for_the_one_before_and_continues_it() -> None:
    async def test(server: Server, stub: Any) -> None:
        server.gate.clear()
        trace = [TraceRequest(0.0, 10, 1, SLA, "a"), TraceRequest(0.0, 11, 1, SLA, "a"), TraceRequest(0.0, 12, 1, SLA)]
        running = asyncio.create_task(LoadRunner(stub, PROMPTS, 30).run(trace))
        first = {each["tokens"]: each for each in [await server.asked.get() for _ in range(2)]}
        assert set(first) == {10, 12}
        assert first[10]["x-swaa-session"] == "new"
        assert "x-swaa-session" not in first[12]
        server.gate.set()
        second = await server.asked.get()
        assert (second["tokens"], second["x-swaa-session"]) == (11, "id-1")
        await running

    serve(test)


def test_a_server_that_is_not_there_is_a_result() -> None:
    async def run() -> list[Result]:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            runner = LoadRunner(pb_grpc.LongContextStub(channel), PROMPTS, 5)  # type: ignore[no-untyped-call]
            return await runner.run([TraceRequest(0.0, 10, 1, SLA)])

    [result] = asyncio.run(run())
    assert result.status == "UNAVAILABLE"


@pytest.mark.parametrize("num_tokens", [1, 50, 250])
def test_prompts_have_their_length_and_start_in_different_places(num_tokens: int) -> None:
    made = [TokenPrompts(list(range(1000))).make(index, num_tokens).token_ids for index in range(20)]
    assert {len(ids) for ids in made} == {num_tokens}
    assert len({ids[0] for ids in made}) > 10
    texts = TextPrompts("abcdefghij" * 30, characters_per_token=4.0)
    assert len(texts.make(0, 100).text) == 400
