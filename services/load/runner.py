"""Sends a trace over gRPC, each request at its time: open loop, so a slow server does not slow its load down.

One exception, as users make it too: a turn of a conversation waits for the answer before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from services.gateway.sla import NEW_SESSION, SESSION_HEADER, SLA_HEADER
from services.load.prompts import Prompts
from services.load.results import OK, Result
from services.load.trace import TraceRequest
from services.pb.swaa.v1 import long_context_pb2 as pb

RETRY_AFTER = "retry-after-ms"
"""Trailing metadata of a refusal."""


@dataclass(slots=True)
class _Conversation:
    """A session of the trace: one turn at a time."""

    lock: asyncio.Lock
    session_id: str = NEW_SESSION


class LoadRunner:
    """Runs traces against one server.

    Args:
        stub: of swaa.v1.LongContext, on an open channel.
        timeout_s: deadline of each request.
        on_result: told of each result as it comes.
        metadata: sent with each request, and not part of the trace: who asks.
    """

    def __init__(
        self,
        stub: Any,
        prompts: Prompts,
        timeout_s: float,
        on_result: Callable[[Result], None] = lambda result: None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._stub = stub
        self._prompts = prompts
        self._timeout_s = timeout_s
        self._on_result = on_result
        self._metadata = tuple(metadata)
        self._start_s = 0.0

    async def run(self, trace: Sequence[TraceRequest]) -> list[Result]:
        """Send all of it; the results in the trace's order, once the last one is there. Errors are results, too."""
        prompts = [self._prompts.make(index, request.prompt_tokens) for index, request in enumerate(trace)]
        conversations = {request.session: _Conversation(asyncio.Lock()) for request in trace if request.session}
        self._start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for index, (request, prompt) in enumerate(zip(trace, prompts, strict=True)):
                await asyncio.sleep(self._start_s + request.arrival_ms / 1e3 - time.monotonic())
                sending = self._send(index, request, prompt, conversations.get(request.session))
                tasks.append(group.create_task(sending))
        return [task.result() for task in tasks]

    async def _send(
        self, index: int, request: TraceRequest, prompt: pb.Prompt, conversation: _Conversation | None
    ) -> Result:
        if conversation is None:
            result = await self._ask(index, request, prompt, request.headers)
        else:
            async with conversation.lock:
                headers = {**request.headers, SESSION_HEADER: conversation.session_id}
                result = await self._ask(index, request, prompt, headers, conversation)
        self._on_result(result)
        return result

    async def _ask(
        self,
        index: int,
        request: TraceRequest,
        prompt: pb.Prompt,
        headers: Mapping[str, str],
        conversation: _Conversation | None = None,
    ) -> Result:
        sent_s = time.monotonic()
        result = Result(
            index=index,
            arrival_ms=request.arrival_ms,
            sent_ms=(sent_s - self._start_s) * 1e3,
            sla_class=request.headers.get(SLA_HEADER, ""),
            session=request.session,
            status=OK,
        )
        sampling = pb.Sampling(
            max_tokens=request.max_tokens, ignore_eos=True
        )  # lengths are the trace's, not the model's
        call = self._stub.Generate(
            pb.GenerateRequest(prompt=prompt, sampling=sampling),
            metadata=(*headers.items(), *self._metadata),
            timeout=self._timeout_s,
        )
        answer = _Answer(sent_s)
        try:
            async for response in call:
                answer.take(response)
        except grpc.aio.AioRpcError as exc:
            answer.error = exc
        if conversation is not None and answer.error is None:
            conversation.session_id = answer.accepted.session_id
        return answer.fill(result)


class _Answer:
    """What came of one call so far."""

    def __init__(self, sent_s: float) -> None:
        self.accepted = pb.Accepted()
        self.error: grpc.aio.AioRpcError | None = None
        self._finish = pb.Finish()
        self._sent_s = sent_s
        self._token_times_s: list[float] = []

    def take(self, response: pb.GenerateResponse) -> None:
        """A message of the stream."""
        kind = response.WhichOneof("event")
        if kind == "accepted":
            self.accepted = response.accepted
        elif kind == "token":
            self._token_times_s.append(time.monotonic())
        elif kind == "finish":
            self._finish = response.finish

    def fill(self, result: Result) -> Result:
        """The result, with all that is known now."""
        accepted, times_s = self.accepted, self._token_times_s
        objective, predicted = accepted.objective, accepted.prediction
        ttft_ms = (times_s[0] - self._sent_s) * 1e3 if times_s else 0.0
        tpot_ms = (times_s[-1] - times_s[0]) / (len(times_s) - 1) * 1e3 if len(times_s) > 1 else 0.0
        in_time = self.error is None and ttft_ms <= objective.ttft_ms and tpot_ms <= objective.tpot_ms
        return replace(
            result,
            sla_class=objective.sla_class or result.sla_class,
            status=OK if self.error is None else self.error.code().name,
            detail="" if self.error is None else self.error.details() or "",
            retry_after_ms=_retry_after_ms(self.error),
            recipe=accepted.recipe.name,
            prompt_tokens=accepted.prompt_tokens,
            history_tokens=accepted.history_tokens,
            generated_tokens=len(times_s),
            predicted_ttft_ms=predicted.ttft_ms,
            predicted_tpot_ms=predicted.tpot_ms,
            predicted_to_meet=accepted.predicted_to_meet,
            quality=predicted.quality,
            objective_ttft_ms=objective.ttft_ms,
            objective_tpot_ms=objective.tpot_ms,
            min_quality=objective.min_quality,
            queue_ms=self._finish.timings.queue_ms,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            total_ms=(time.monotonic() - self._sent_s) * 1e3,
            met=in_time and predicted.quality >= objective.min_quality,
            met_latency=in_time,
        )


def _retry_after_ms(error: grpc.aio.AioRpcError | None) -> float | None:
    metadata: Any = error.trailing_metadata() if error is not None else None  # the stubs forget that it is a mapping
    value = (metadata or {}).get(RETRY_AFTER)
    return None if value is None else float(value)
