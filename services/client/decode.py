"""Messages of the wire to the client's own types, field for field, by name."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

from services.client.errors import ServerError
from services.client.types import Accepted, Answer, FinishReason, KvMemory, SessionResult, Timings, Token, Usage
from services.pb.swaa.v1 import long_context_pb2 as pb

T = TypeVar("T")

FINISH_REASONS: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def read(cls: type[T], message: Message) -> T:
    """A dataclass from the message with the same fields. `X | None` is None where the message has no such field."""
    return cls(**{name: _field(hint, message, name) for name, hint in _hints(cls).items()})  # type: ignore[arg-type]


def answer_of(accepted: Accepted, tokens: Sequence[Token], finish: pb.Finish) -> Answer:
    """A whole turn. `tokens`: all of them, text that was held back included."""
    if finish.reason not in FINISH_REASONS:
        raise ServerError(f"the answer ended for reason {finish.reason}, which this client does not know")
    return Answer(
        text="".join(token.text for token in tokens),
        token_ids=tuple(token.token_id for token in tokens if token.token_id is not None),
        tokens=tuple(tokens),
        accepted=accepted,
        reason=FINISH_REASONS[finish.reason],
        usage=read(Usage, finish.usage),
        timings=read(Timings, finish.timings),
        kv_memory=read(KvMemory, finish.kv_memory),
        sla_met=finish.sla_met,
        sla_misses=tuple(finish.sla_misses),
        session=read(SessionResult, finish.session) if finish.HasField("session") else None,
    )


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _field(hint: Any, message: Any, name: str) -> Any:
    value = getattr(message, name)
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], item) for item in value)
    choices = list(set(get_args(hint)) - {NoneType})
    if choices and message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    return _value(choices[0] if choices else hint, value)


def _value(hint: Any, value: Any) -> Any:
    return read(hint, value) if is_dataclass(hint) and isinstance(hint, type) else value
