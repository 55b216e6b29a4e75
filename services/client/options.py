"""What a call may be told, as keyword arguments, and what that is on the wire: headers, sampling, prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message as WireMessage

from services.client.errors import InvalidRequest
from services.client.types import Accepted, Message, Progress
from services.gateway.sla import (
    IDEMPOTENCY_HEADER,
    MIN_QUALITY_HEADER,
    PRIORITY_HEADER,
    RECIPE_HEADER,
    SESSION_HEADER,
    SLA_HEADER,
    STRICT_HEADER,
    TPOT_HEADER,
    TTFT_HEADER,
)
from services.pb.swaa.v1 import long_context_pb2 as pb

M = TypeVar("M", bound=WireMessage)

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or messages for the model's chat template."""

Metadata = Sequence[tuple[str, str | bytes]]
"""gRPC metadata: names in lower case, values in printable ASCII (bytes for names that end in -bin)."""


class PlanOptions(TypedDict, total=False):
    """What a plan may be told. None, as leaving an option out, is the service's default.

    Attributes:
        question: added after a prompt that is a text.
        raw: a text goes to the model as it is; else it is a user's message in the model's chat template.
        max_tokens: tokens to generate at most.
        sla: name of an SLA class.
        ttft_ms, tpot_ms: time to first token and per token after it to aim at, instead of the class's.
        min_quality: least quality, 0..1, instead of the class's.
        priority: lowers the class's.
        recipe: run under this one, without planning.
        strict: refuse (Overloaded) rather than miss.
        timeout_s: of the whole call, retries included; None: the client's; math.inf: none.
        metadata: more of it, for proxies and the like.
    """

    question: str | None
    raw: bool
    max_tokens: int | None
    sla: str | None
    ttft_ms: float | None
    tpot_ms: float | None
    min_quality: float | None
    priority: int | None
    recipe: str | None
    strict: bool
    timeout_s: float | None
    metadata: Metadata


class TurnOptions(PlanOptions, total=False):
    """What a turn may be told, beside the options of a plan.

    Attributes:
        temperature: 0, the default, is greedy. top_k, top_p, min_p: see the proto.
        seed: makes sampling repeatable.
        stop: strings that end the text; not part of it.
        ignore_eos: go on past the model's end of sequence.
        logprobs: report each token's log-probability and those of so many likeliest ones, 0..20.
        idempotency_key: of a turn of a session: whoever sends the same call with the same key again gets the same turn.
            1..128 printable ASCII characters, random. None draws one.
        on_accepted, on_progress: called as the service tells; again from the start if the call is tried again. Those of
            a sync client are called on its own thread, and must not call the client.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: Sequence[str] | None
    ignore_eos: bool
    logprobs: int | None
    idempotency_key: str | None
    on_accepted: Callable[[Accepted], None] | None
    on_progress: Callable[[Progress], None] | None


HEADERS = {
    "sla": SLA_HEADER,
    "ttft_ms": TTFT_HEADER,
    "tpot_ms": TPOT_HEADER,
    "min_quality": MIN_QUALITY_HEADER,
    "priority": PRIORITY_HEADER,
    "recipe": RECIPE_HEADER,
    "strict": STRICT_HEADER,
    "session": SESSION_HEADER,
    "idempotency_key": IDEMPOTENCY_HEADER,
}
"""Options that are headers."""


def check_names(options: Mapping[str, Any], known: type[PlanOptions]) -> None:
    """Raise TypeError, as a function does, for an option that there is none of."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"unknown option {name!r}; known are {', '.join(known.__annotations__)}")


def headers(options: Mapping[str, Any]) -> Metadata:
    """The request headers. Raises InvalidRequest for what no header can carry."""
    given = {header: options.get(name) for name, header in HEADERS.items()}
    metadata = [
        (header, "true" if value is True else str(value))
        for header, value in given.items()
        if value is not None and value is not False
    ]
    for header, text in metadata:
        if not (text.isascii() and text.isprintable()):
            raise InvalidRequest(f"{header} is {text!r}: must be printable ASCII")
    return [*metadata, *options.get("metadata", ())]


def authorization(api_key: str | None) -> list[tuple[str, str]]:
    """The header that says who asks. Raises InvalidRequest for what no header can carry; the key is not told."""
    if api_key is None:
        return []
    if not (api_key and api_key.isascii() and api_key.isprintable()):
        raise InvalidRequest("api_key is (not shown): must be printable ASCII, and not empty")
    return [("authorization", f"Bearer {api_key}")]


def sampling(options: Mapping[str, Any]) -> pb.Sampling:
    """The sampling settings. Raises InvalidRequest for a value that its field cannot hold."""
    return make(pb.Sampling, **{name: options.get(name) for name in pb.Sampling.DESCRIPTOR.fields_by_name})


def prompt_message(prompt: Prompt, options: Mapping[str, Any]) -> pb.Prompt:
    """The prompt. Raises InvalidRequest for what is none, and for a question that is not about a text."""
    question = options.get("question")
    if isinstance(prompt, str):
        text = f"{prompt.rstrip()}\n\n{question}" if question else prompt
        if options.get("raw"):
            return make(pb.Prompt, text=text)
        # A file's last line break is no part of the message; small models answer differently for it.
        prompt = [Message("user", text.strip("\r\n"))]
    elif question:
        raise InvalidRequest(f"question is {question!r}: goes with a prompt that is a text only")
    messages = [item for item in prompt if isinstance(item, Message)]
    if messages and len(messages) == len(prompt):
        chat = [make(pb.ChatMessage, role=message.role, content=message.content) for message in messages]
        return pb.Prompt(messages=chat)
    return make(pb.Prompt, token_ids=list(prompt))


def timeout(options: Mapping[str, Any], default_s: float | None) -> float | None:
    """Seconds that the call may take; None: any time. Raises InvalidRequest."""
    given: float | None = options.get("timeout_s")
    timeout_s = default_s if given is None else given
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidRequest(f"timeout_s is {timeout_s!r}: must be above 0")
    return None if timeout_s == math.inf else timeout_s


def make(kind: type[M], **fields: Any) -> M:
    """A message of these fields, without those that are None. Raises InvalidRequest for what a field cannot hold."""
    message = kind()
    for name, value in fields.items():
        if value is None:
            continue
        try:
            message.MergeFrom(kind(**{name: value}))
        except (TypeError, ValueError) as exc:
            shown = repr(value)
            raise InvalidRequest(f"{name} is {shown if len(shown) <= 80 else shown[:77] + '...'}: {exc}") from exc
    return message
