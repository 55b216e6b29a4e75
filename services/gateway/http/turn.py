"""One turn over HTTP: as server-sent events, or as one JSON document. What is said of it, a `Wording` knows.

Accepted ──▶ response headers, opening chunk      PrefillProgress ──▶ ": prefill 1024/6000", a comment
TokenOutput ──▶ chunks                            Answered ──▶ last chunk, usage, [DONE]
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from services.gateway import messages
from services.gateway.answers import Accepted, Answered, AnswerEvent
from services.gateway.http.errors import error_body
from services.gateway.http.running import Running
from services.gateway.http.sse import EventStream
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import FinishReason

logger = logging.getLogger(__name__)

FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class Wording(Protocol):
    """How one of OpenAI's APIs says an answer. It is one answer's, and may count what it has said."""

    id_prefix: str
    chunk_object: str
    whole_object: str

    def logprobs(self, tokens: Sequence[TokenOutput]) -> dict[str, Any] | None:
        """Of the tokens after those it was asked for before; None if there are none."""
        ...

    def opening(self) -> dict[str, Any]:
        """The choice that opens a stream."""
        ...

    def piece(self, text: str, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
        """The choice that says some more of it."""
        ...

    def ending(self, reason: str) -> dict[str, Any]:
        """The choice that ends it."""
        ...

    def whole(self, text: str, logprobs: Mapping[str, Any] | None, reason: str) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """Which model answers: its name and its fingerprint."""

    model: str
    fingerprint: str


class TurnResponse:
    """An ASGI response that runs a turn.

    Args:
        events: the turn; it is closed here, whatever happens.
        include_usage: whether a stream ends with its usage.
    """

    def __init__(
        self,
        events: AsyncGenerator[AnswerEvent, None],
        wording: Wording,
        served: Served,
        running: Running,
        *,
        stream: bool,
        include_usage: bool,
    ) -> None:
        self._events = events
        self._wording = wording
        self._served = served
        self._running = running
        self._stream = stream
        self._include_usage = include_usage
        self._created_s = int(time.time())
        self._event_stream: EventStream | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Raises what the turn raises, as long as nothing was sent."""
        try:
            work = self._run_stream(send) if self._stream else self._run_whole(scope, receive, send)
            await self._running.until_gone(receive, work)
        except Exception as exc:
            stream = self._event_stream
            if stream is None or not stream.started:
                raise
            told = error_body(exc)
            if told["error"]["code"] == "internal_error":
                logger.exception("unexpected error")
            await stream.fail(told)

    async def _run_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokens: list[TokenOutput] = []
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                if isinstance(event, Accepted):
                    accepted = event
                elif isinstance(event, TokenOutput):
                    tokens.append(event)
                elif isinstance(event, Answered):
                    answered = event
        text = "".join(token.text for token in tokens) + answered.done.text
        choice = self._wording.whole(text, self._wording.logprobs(tokens), FINISH_REASONS[answered.done.reason])
        body = self._envelope(accepted, self._wording.whole_object, [choice])
        body["usage"] = usage(answered)
        body["swaa"] = {**told_of_start(accepted), **told_of_end(answered)}
        await JSONResponse(body, headers=headers(accepted))(scope, receive, send)

    async def _run_stream(self, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            events = await stack.enter_async_context(contextlib.aclosing(self._events))
            async for event in events:
                if isinstance(event, Accepted):
                    accepted, stream = event, EventStream(send, headers(event))
                    self._event_stream = stream
                    stream.hold(self._chunk(accepted, [self._wording.opening()], swaa=told_of_start(accepted)))
                    await stack.enter_async_context(stream.beating())
                elif isinstance(event, PrefillProgress):
                    await stream.comment(f"prefill {event.num_computed_tokens}/{event.prompt_stop}")
                elif isinstance(event, TokenOutput):
                    logprobs = self._wording.logprobs([event])
                    if event.text or logprobs:
                        await stream.write(self._chunk(accepted, [self._wording.piece(event.text, logprobs)]))
                else:
                    answered = event
                    await self._end_answer(stream, accepted, answered)
        # Only now, as whoever sees the end may go: by then the turn has given back what it held.
        if self._include_usage:
            await stream.write({**self._chunk(accepted, []), "usage": usage(answered)})
        await stream.end()

    async def _end_answer(self, stream: EventStream, accepted: Accepted, answered: Answered) -> None:
        if answered.done.text:
            await stream.write(self._chunk(accepted, [self._wording.piece(answered.done.text, None)]))
        ending = self._wording.ending(FINISH_REASONS[answered.done.reason])
        await stream.write(self._chunk(accepted, [ending], swaa=told_of_end(answered)))

    def _chunk(self, accepted: Accepted, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        chunk = self._envelope(accepted, self._wording.chunk_object, choices)
        if self._include_usage:
            chunk["usage"] = None
        return {**chunk, **more}

    def _envelope(self, accepted: Accepted, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._wording.id_prefix + accepted.job.request_id,
            "object": kind,
            "created": self._created_s,
            "model": self._served.model,
            "system_fingerprint": self._served.fingerprint,
            "choices": choices,
        }


def headers(accepted: Accepted) -> dict[str, str]:
    """What is known before the first token."""
    prediction = accepted.planned.plan.chosen.prediction
    told = {
        "x-request-id": accepted.job.request_id,
        "x-swaa-recipe": accepted.job.recipe_name,
        "x-swaa-predicted-ttft-ms": f"{prediction.ttft_ms:.0f}",
        "x-swaa-predicted-tpot-ms": f"{prediction.tpot_ms:.1f}",
    }
    if accepted.job.session is not None:
        told["x-swaa-session"] = accepted.job.session.session_id
    return told


def usage(answered: Answered) -> dict[str, Any]:
    """Tokens as OpenAI counts them: the prompt's are all that the model was given, with a session's history."""
    work, done = answered.planned.work, answered.done
    prompt_tokens = work.history_tokens + work.prompt_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": done.num_generated_tokens,
        "total_tokens": prompt_tokens + done.num_generated_tokens,
        "prompt_tokens_details": {"cached_tokens": done.num_restored_tokens},
    }


def told_of_start(accepted: Accepted) -> dict[str, Any]:
    """The proto's `Accepted`, under that name."""
    return {"accepted": as_json(messages.accepted_message(accepted).accepted)}


def told_of_end(answered: Answered) -> dict[str, Any]:
    """The proto's `Finish`, without the text."""
    finish = as_json(messages.finish_message(answered).finish)
    del finish["text"]
    return {"finish": finish}


def as_json(message: Message) -> dict[str, Any]:
    """A message as protobuf's own JSON, by the names of the proto; integers of 64 bits are strings there."""
    told: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return told
