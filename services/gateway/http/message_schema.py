"""Messages of the proto as JSON schemas, of protobuf's own JSON form with the proto's names."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_WHOLE, _NUMBER, _BYTES = {"type": "integer"}, {"type": "number"}, {"type": "string", "contentEncoding": "base64"}

_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_INT32: {**_WHOLE, "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.CPPTYPE_UINT32: {**_WHOLE, "minimum": 0, "maximum": 2**32 - 1},
    FieldDescriptor.CPPTYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "string", "format": "uint64"},
    FieldDescriptor.CPPTYPE_DOUBLE: _NUMBER,
    FieldDescriptor.CPPTYPE_FLOAT: _NUMBER,
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
}


def message_schema(message: Descriptor) -> dict[str, Any]:
    """One message with all that is in it; unknown fields are refused, so there are no others."""
    properties = {field.name: _field(field) for field in message.fields}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(field: FieldDescriptor) -> dict[str, Any]:
    one = _one(field)
    return {"type": "array", "items": one} if field.is_repeated else one


def _one(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None:
        return message_schema(field.message_type)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else {"type": "string"}
    return _SCALARS[field.cpp_type]
