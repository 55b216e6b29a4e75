"""The API reference: all of it generated, from the proto, the headers, the two error tables and HTTP's routes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.routing import Route

from docs.generate.markdown import code, table
from docs.generate.proto import PublicProto, listed, messages, paragraph, read_proto, services
from services.gateway.errors import STATUS_CODES
from services.gateway.http.chat import ChatFields
from services.gateway.http.completions import CompletionFields
from services.gateway.http.description import Description
from services.gateway.http.errors import HTTP_ERRORS, UNEXPECTED
from services.gateway.http.openai_api import OpenAiApi
from services.gateway.http.probes import Probes
from services.gateway.http.schema import IGNORED, NEUTRAL, TurnFields
from services.gateway.http.service_api import ServiceApi
from services.gateway.sla import HEADERS
from services.telemetry.page import MetricsPage

PAGE = """# API reference

Made by `make docs` from [the proto](../proto/swaa/v1/long_context.proto) and the tables of the code; not to be edited

Two ways in, one service behind them: gRPC ({address}, reflection is on) and HTTP ({http_address}, OpenAI's
API below `/v1`, the service's own below `/api`). Headers, statuses and limits are the same.

## Headers

gRPC metadata, or HTTP headers, of requests that run or plan. All are optional.

{headers}
{strictness}

{idempotency}

{credentials}

## Statuses

{statuses}
What each class of errors is told as. `retry`: the same request may succeed a little later, which HTTP tells by
`retry-after` and `x-should-retry`. Messages name the field, its value and its bound.

{errors}
## HTTP

Bodies are JSON. Those below `/api` are the proto's messages, in protobuf's JSON form with the proto's own names.

{endpoints}
`POST /v1/chat/completions` and `POST /v1/completions` take these fields of OpenAI's:

{fields}
Accepted, and without any effect: {ignored}.

Accepted only with the value that asks for nothing:

{neutral}
Any other field is refused: it might have mattered. Errors have OpenAI's shape,
`{{"error": {{"message": ..., "type": ..., "param": ..., "code": ...}}}}`.

## gRPC

`swaa.v1.LongContext`, with gRPC's health and reflection services beside it.

{services}
{messages}"""


def api_page() -> str:
    """The page."""
    from services.config import ServeConfig  # here: the page alone needs the defaults

    proto = read_proto()
    return PAGE.format(
        address=code(str(ServeConfig.model_fields["listen"].default)),
        http_address=code(str(ServeConfig.model_fields["http_listen"].default)),
        headers=headers(proto),
        strictness=paragraph(proto.head, "A header that starts with"),
        idempotency=paragraph(proto.head, "The idempotency key"),
        credentials=paragraph(proto.head, "Credentials are"),
        statuses=statuses(proto),
        errors=errors(),
        endpoints=endpoints(),
        fields=fields(),
        ignored=", ".join(map(code, sorted(IGNORED))),
        neutral=neutral(),
        services=services(proto),
        messages=messages(proto),
    )


def headers(proto: PublicProto) -> str:
    """Every header. Raises ValueError if the proto's comment and the code do not list the same ones."""
    told = listed(proto.head, "Request headers")
    if set(told) != set(HEADERS):
        raise ValueError(f"the proto's comment and sla.HEADERS differ by {sorted(set(told) ^ set(HEADERS))}")
    return table(["header", "meaning"], [[code(name), told[name]] for name in told])


def statuses(proto: PublicProto) -> str:
    """gRPC's statuses as the proto tells them. Raises ValueError if one that the code uses is missing."""
    told = listed(proto.head, "Statuses")
    names = {name for entry in told for name in entry.split(", ")}
    used = {status.name for status in STATUS_CODES.values()}
    if used - names:
        raise ValueError(f"the proto's comment does not tell of {sorted(used - names)}")
    return table(["status", "when"], [[", ".join(map(code, name.split(", "))), text] for name, text in told.items()])


def errors() -> str:
    """What is told of each class of errors, by gRPC and by HTTP."""
    rows = []
    for error, http in HTTP_ERRORS.items():
        grpc = next(STATUS_CODES[cls] for cls in error.__mro__ if cls in STATUS_CODES)
        why = _first_sentences(error)
        rows.append([why, code(grpc.name), str(http.status), code(http.code), "yes" if http.retry else ""])
    rows.append(["A bug of the service's.", code("INTERNAL"), str(UNEXPECTED.status), code(UNEXPECTED.code), ""])
    return table(["why", "gRPC", "HTTP", "`code`", "retry"], rows)


def endpoints() -> str:
    """Every route, told by the first line of what answers it."""
    rows = []
    for route in routes():
        methods = ", ".join(sorted((route.methods or set()) - {"HEAD"}))
        rows.append([code(f"{methods} {route.path}"), _first_sentences(route.endpoint)])
    return table(["endpoint", "what it gives"], rows)


def routes() -> Iterator[Route]:
    """All that the gateway answers."""
    # Routes are bound methods; what they do when they are called is not needed to list them.
    for api in (OpenAiApi, ServiceApi, Probes):
        bare: Any = object.__new__(api)
        yield from bare.routes()
    for one in (MetricsPage, Description):
        page: Any = object.__new__(one)
        yield page.route()


def fields() -> str:
    """Fields of OpenAI's requests that mean something."""
    rows = []
    both = TurnFields.model_fields
    for where, model in (("both", TurnFields), ("chat", ChatFields), ("completions", CompletionFields)):
        for name, field in model.model_fields.items():
            if model is TurnFields or name not in both:
                absent = field.get_default(call_default_factory=True)
                rows.append([code(name), where, "refused" if field.is_required() else code(json.dumps(absent))])
    return table(["field", "of", "if absent"], rows)


def neutral() -> str:
    """Fields of OpenAI's that are not to be had here."""
    rows = [[code(name), _values(each.values), each.bound] for name, each in NEUTRAL.items()]
    return table(["field", "may be", "why no other"], rows)


def _values(values: Iterable[object]) -> str:
    return ", ".join(code(json.dumps(value)) for value in values)


def _first_sentences(of: object) -> str:
    """The first line of a docstring, without what it raises."""
    return (inspect.getdoc(of) or "").partition("\n")[0].partition(" Raises ")[0]
