"""The public proto's comments as Markdown: services, messages, enums, and the two lists in the comment at its head."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from docs.generate.markdown import code, table

FOLDER = Path(__file__).parents[2] / "proto"
FILE = "swaa/v1/long_context.proto"
MESSAGES, ENUMS, SERVICES, SYNTAX = 4, 5, 6, 12  # field numbers of FileDescriptorProto: how comments are addressed
FIELDS = METHODS = VALUES = 2

Comments = Mapping[tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class PublicProto:
    """The file, and its comments by the place of what they are about."""

    file: FileDescriptorProto
    comments: Comments

    @property
    def head(self) -> str:
        """The comment above everything."""
        return self.comments[(SYNTAX,)]


def read_proto() -> PublicProto:
    """Parse it with protoc. Raises ValueError if protoc does not."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        options = (f"-I{FOLDER}", "--include_source_info", f"--descriptor_set_out={out}")
        if protoc.main(["protoc", *options, FILE]) != 0:
            raise ValueError(f"protoc refuses {FILE}")
        [file] = FileDescriptorSet.FromString(out.read_bytes()).file
    comments = {
        tuple(place.path): text
        for place in file.source_code_info.location
        if (text := (place.leading_comments or place.trailing_comments).strip("\n"))
    }
    return PublicProto(file, comments)


def listed(head: str, title: str) -> dict[str, str]:
    """The list `   name  text` below a line that starts with `title` in the head's comment, by name."""
    found: dict[str, str] = {}
    lines = iter(head.splitlines())
    for line in lines:
        if line.strip().startswith(title):
            break
    for line in lines:
        entry = re.match(r"^ {2,4}(\S+(?:, \S+)*)  +(\S.*)$", line)
        if entry:
            found[entry[1]] = entry[2]
        elif re.match(r"^ {10,}\S", line) and found:
            found[list(found)[-1]] += " " + line.strip()
        else:
            break
    return found


def paragraph(head: str, start: str) -> str:
    """The head's comment from the line that starts so to the next empty one, as running text.

    Raises ValueError if there is none.
    """
    lines = head.splitlines()
    first = next((index for index, line in enumerate(lines) if line.strip().startswith(start)), None)
    if first is None:
        raise ValueError(f"no line at the head of {FILE} starts with {start!r}")
    last = next((index for index in range(first, len(lines)) if not lines[index].strip()), len(lines))
    return " ".join(" ".join(lines[first:last]).split())


def services(proto: PublicProto) -> str:
    """All RPCs, a table."""
    rows: list[list[str]] = []
    for index, service in enumerate(proto.file.service):
        rows.extend(_methods(proto, (SERVICES, index), service))
    return table(["RPC", "takes", "gives", "what it does"], rows)


def messages(proto: PublicProto) -> str:
    """All messages that have fields, then all enums."""
    parts = [
        _message(proto, (MESSAGES, index), message)
        for index, message in enumerate(proto.file.message_type)
        if message.field
    ]
    parts += [_enum(proto, (ENUMS, index), enum) for index, enum in enumerate(proto.file.enum_type)]
    return "\n".join(parts)


def _methods(proto: PublicProto, place: tuple[int, ...], service: ServiceDescriptorProto) -> Iterator[list[str]]:
    for index, method in enumerate(service.method):
        takes = ("stream " if method.client_streaming else "") + _link(method.input_type, proto)
        gives = ("stream " if method.server_streaming else "") + _link(method.output_type, proto)
        yield [code(method.name), takes, gives, _comment(proto, (*place, METHODS, index))]


def _message(proto: PublicProto, place: tuple[int, ...], message: DescriptorProto) -> str:
    rows = [
        [code(field.name), _type(field, message, proto), _comment(proto, (*place, FIELDS, index))]
        for index, field in enumerate(message.field)
    ]
    return _titled(message.name, _comment(proto, place), table(["field", "type", "meaning"], rows))


def _enum(proto: PublicProto, place: tuple[int, ...], enum: EnumDescriptorProto) -> str:
    rows = [[code(value.name), _comment(proto, (*place, VALUES, index))] for index, value in enumerate(enum.value)]
    return _titled(enum.name, _comment(proto, place), table(["value", "meaning"], rows))


def _titled(name: str, comment: str, body: str) -> str:
    return f"### {name}\n\n" + (f"{comment}\n\n" if comment else "") + body


def _type(field: FieldDescriptorProto, message: DescriptorProto, proto: PublicProto) -> str:
    if field.type_name:
        name = _link(field.type_name, proto)
    else:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of {code(message.oneof_decl[field.oneof_index].name)}"
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _link(type_name: str, proto: PublicProto) -> str:
    name = type_name.rpartition(".")[2]
    empty = any(message.name == name and not message.field for message in proto.file.message_type)
    return f"{name} (no fields)" if empty else f"[{name}](#{name.lower()})"


def _comment(proto: PublicProto, place: tuple[int, ...]) -> str:
    return " ".join(proto.comments.get(place, "").split())
