"""What is published: complete, documented, the same for both kinds of program, and free of what is behind it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import doctest
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from services import client
from services.client import (
    AnswerStream,
    AsyncAnswerStream,
    AsyncChat,
    AsyncClient,
    AsyncSessions,
    Chat,
    Client,
    Sessions,
    errors,
    options,
    types,
)
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.services.tiny_service import TinyService, tiny_service_thread

TWINS = [(Client, AsyncClient), (Chat, AsyncChat), (Sessions, AsyncSessions), (AnswerStream, AsyncAnswerStream)]
SERVICE = pb.DESCRIPTOR.services_by_name["LongContext"]
RENAMED = {
    "ChatMessage": "Message",
    "PrefillProgress": "Progress",
    "ListRecipesResponse": "Catalog",
    "PlanResponse": "Plan",
}
ENVELOPES = {"GenerateResponse", "Finish", "ListSessionsResponse", "ExportSessionResponse", "DeleteSessionResponse"}
"""Messages that the client takes apart: Finish's fields are Answer's."""
ATTRIBUTES = {"accepted", "progress"}
"""Of a stream: set on the asynchronous one, read through by the blocking one."""


def published(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "asynchronous"), TWINS)
def test_both_clients_can_do_the_same(blocking: type, asynchronous: type) -> None:
    assert set(published(blocking)) | {"accepted", "progress"} == set(published(asynchronous)) | {
        "accepted",
        "progress",
    }
    for name, member in published(asynchronous).items():
        twin = published(blocking)[name]
        if callable(member):
            assert inspect.signature(twin).parameters == inspect.signature(member).parameters, name
            assert not inspect.iscoroutinefunction(twin), name


def test_both_are_opened_the_same_way() -> None:
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_everything_published_is_documented() -> None:
    for name in client.__all__:
        item = getattr(client, name)
        if not inspect.isclass(item):
            continue
        assert item.__doc__, name
        assert not item.__doc__.startswith(f"{name}("), f"{name} has only what dataclass writes"
        for member_name, member in published(item).items():
            if inspect.isfunction(member) or isinstance(member, property):
                assert inspect.getdoc(member), f"{name}.{member_name}"


def test_all_is_complete() -> None:
    assert len(set(client.__all__)) == len(client.__all__)
    for module in (types, errors):
        for name, item in vars(module).items():
            if inspect.isclass(item) and item.__module__ == module.__name__:
                assert name in client.__all__


def test_every_rpc_is_reachable() -> None:
    folder = Path(client.__file__).parent
    used = {
        node.attr
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert {method.name for method in SERVICE.methods} <= used


def messages_in(descriptor: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    if descriptor.name not in seen:
        seen[descriptor.name] = descriptor
        for field in descriptor.fields:
            if field.message_type is not None:
                messages_in(field.message_type, seen)
    return seen


def test_every_field_of_every_answer_is_reachable() -> None:
    """A new field of the proto belongs into services/client/types.py, under its own name."""
    answers: dict[str, Descriptor] = {}
    for method in SERVICE.methods:
        messages_in(method.output_type, answers)
    for name, descriptor in answers.items():
        if name in ENVELOPES:
            continue
        kind = getattr(types, RENAMED.get(name, name))
        assert {field.name for field in dataclasses.fields(kind)} == set(descriptor.fields_by_name), name
    finish = set(answers["Finish"].fields_by_name)
    assert finish <= {field.name for field in dataclasses.fields(types.Answer)}


def test_every_setting_of_a_request_is_an_option() -> None:
    assert set(pb.Sampling.DESCRIPTOR.fields_by_name) <= set(options.TurnOptions.__annotations__)
    assert set(options.PlanOptions.__annotations__) <= set(options.TurnOptions.__annotations__)


def test_no_message_of_the_wire_is_published() -> None:
    for name in client.__all__:
        item = getattr(client, name)
        if not dataclasses.is_dataclass(item):
            continue
        for hint in typing.get_type_hints(item).values():
            assert "pb2" not in str(hint), name


def test_it_needs_nothing_of_what_runs_models_or_keeps_sessions() -> None:
    heavy = ("torch", "ray", "transformers", "redis", "numpy", "starlette", "services.replica")
    code = f"import sys, services.client; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def service() -> Iterator[TinyService]:
    with tiny_service_thread() as running:
        yield running


def examples(item: Any, service: TinyService) -> str:
    """The examples in a docstring, as a program for this service."""
    found = doctest.DocTestParser().get_examples(inspect.getdoc(item) or "")
    assert found, f"{item} has no example"
    return "".join(example.source for example in found).replace("127.0.0.1:50051", service.address)


def test_the_example_of_the_blocking_client_runs(service: TinyService) -> None:
    scope: dict[str, Any] = {"Client": Client}
    exec(examples(Client, service), scope)  # noqa: S102 - our own docstring
    assert scope["again"].session.version == 2
    assert scope["text"]


def test_the_examples_of_the_asynchronous_client_run(service: TinyService) -> None:
    async def run() -> None:
        for item in (AsyncClient, AsyncClient.session):
            source = "".join(f"    {line}\n" for line in examples(item, service).splitlines())
            async with contextlib.AsyncExitStack() as stack:
                client = await stack.enter_async_context(AsyncClient(service.address))
                scope: dict[str, Any] = {"AsyncClient": AsyncClient, "client": client}
                exec(f"async def example(client):\n{source}    return answer\n", scope)  # noqa: S102
                assert (await scope["example"](client)).text

    asyncio.run(run())


def test_the_example_of_the_readme_runs(service: TinyService, capsys: pytest.CaptureFixture[str]) -> None:
    source = (Path(__file__).parent / "readme_example.py").read_text(encoding="utf-8")
    exec(source.replace("127.0.0.1:50051", service.address), {})  # noqa: S102 - it is the file next to this one
    out = capsys.readouterr().out
    assert "Progress(done_tokens=" in out
    assert "strict" in out, "the last call is refused"
