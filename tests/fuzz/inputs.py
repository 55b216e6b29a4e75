"""Strategies: messages of any kind with edges in every field, and bytes that were nearly something."""

from __future__ import annotations

import math
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from services.gateway.sla import HEADERS

INTEGERS = st.sampled_from((0, 1, 2, 3, 8, 16, 255, 2047, 2048, 2049, 49151, 49152, 2**31 - 1, 2**31, 2**32 - 1))
FLOATS = st.sampled_from((0.0, -0.0, 1.0, 0.5, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan)) | st.floats()
WORDS = st.sampled_from(
    ("", "user", "assistant", "system", "tool", "full", "sliding", "new", "{{ 7 * 7 }}", "{% for x in y %}",
     "<|im_end|>", "\x00", "\x02question\x03", "\ufffd", "\U000f0000", "e\u0301" * 9, "a" * 1025,
     "../../etc/passwd", "\u202e")
)  # fmt: skip
TEXTS = WORDS | st.text(max_size=40)


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values that the field can hold, most of them at an edge."""
    kinds: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_DOUBLE: FLOATS,
        FieldDescriptor.CPPTYPE_INT32: INTEGERS.map(lambda value: value % 2**31),
        FieldDescriptor.CPPTYPE_UINT32: INTEGERS,
        FieldDescriptor.CPPTYPE_UINT64: INTEGERS | st.integers(0, 2**64 - 1),
    }
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return TEXTS.map(str.encode) if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return kinds[field.cpp_type]


@st.composite
def messages(draw: st.DrawFn, kind: type[Message]) -> Message:
    """A message with some of its fields set, and those of messages in it."""
    message = kind()
    fill(draw, message, kind.DESCRIPTOR)
    return message


def fill(draw: st.DrawFn, message: Any, descriptor: Any) -> None:
    """Set fields of the message."""
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=4)) if descriptor.fields else []:
        if field.message_type is not None:
            part = getattr(message, field.name)
            part = part.add() if field.is_repeated else part
            part.SetInParent()
            fill(draw, part, field.message_type)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(scalars(field), max_size=5)))
        else:
            setattr(message, field.name, draw(scalars(field)))


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a few of them changed, cut, doubled, or replaced by a number at its edge."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = draw(st.binary(max_size=20))
            case 3:
                data[at:at] = data[at : at + 30]
            case 4:
                data[at : at + 8] = struct.pack("<Q", draw(st.sampled_from((0, 1, 2**31, 2**32, 2**63, 2**64 - 1))))
            case 5:
                del data[at : at + draw(st.integers(1, 9))]
    return bytes(data)


def serialized(kind: type[Message]) -> st.SearchStrategy[bytes]:
    """A message's bytes: right ones, damaged ones, or any."""
    right = messages(kind).map(lambda message: message.SerializeToString())
    return right | damaged(right) | st.binary(max_size=60)


_PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)
_VALUES = (
    st.sampled_from(("", "new", "balanced", "interactive", "quality", "full", "sliding", "true", "false", "nan", "inf"))
    | st.sampled_from(
        ("1e999", "-0", "0", "1", "0.5", "1_0", "0x10", "9" * 5000, "2147483648", "-2147483648", "a" * 65)
    )
    | _PRINTABLE
    | FLOATS.map(str)
)
HEADER_LISTS = st.lists(
    st.tuples(st.sampled_from((*HEADERS, "x-swaa-window", "x-slo-", "traceparent", "x-other")), _VALUES), max_size=3
).map(tuple)

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.integers() | FLOATS | TEXTS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXTS, parts, max_size=4),
    max_leaves=8,
)
