"""What is wrong with a request is said: the status, and a message with the field, its value and its bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import Headers, Service, check_refusal, metadata, open_turn, refused, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
GENERATE, UPLOAD, PLAN = (f"/swaa.v1.LongContext/{name}" for name in ("Generate", "GenerateUpload", "Plan"))


@pytest.fixture(scope="module", autouse=True)
def _still_serves(service: Service) -> Iterator[None]:
    """Whatever is sent here, the service goes on."""
    yield
    assert run_turn(service, "The ship").tokens


def chat(role: str, content: str) -> pb.Prompt:
    return pb.Prompt(messages=[pb.ChatMessage(role="user", content="x"), pb.ChatMessage(role=role, content=content)])


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (pb.Prompt(), ["prompt is ''", "must not be empty", "text, token_ids or messages"]),
        (pb.Prompt(text="a", token_ids=[1]), ["prompt is 'text and token_ids'", "exactly one"]),
        (pb.Prompt(token_ids=[1, 49152]), ["prompt.token_ids[1] is 49152", "must be in 0..49151"]),
        (pb.Prompt(token_ids=[2**32 - 1]), ["prompt.token_ids[0] is 4294967295", "must be in 0..49151"]),
        (pb.Prompt(token_ids=[1] * 8192), ["prompt is '8192 tokens after 0 of history'", "must be under 8192 tokens"]),
        (pb.Prompt(text="word " * 9000), ["tokens after 0 of history", "must be under 8192 tokens"]),
        (pb.Prompt(text="x" * ((8 << 20) + 1)), ["prompt is '8388609 bytes'", "must be at most 8388608 bytes"]),
        (chat("robot", "hello"), ["prompt.messages[1].role is 'robot'", "system, user, assistant, tool"]),
        (chat("user", ""), ["prompt.messages[1].content is ''", "must not be empty"]),
    ],
    ids=["none", "two", "vocabulary", "uint32", "too-many-ids", "too-many-words", "bytes", "role", "content"],
)
@pytest.mark.parametrize("method", ["Generate", "Plan"])
def test_prompts(service: Service, method: str, prompt: pb.Prompt, parts: list[str]) -> None:
    with refused(INVALID, *parts):
        if method == "Generate":
            run_turn(service, prompt)
        else:
            service.stub.Plan(pb.PlanRequest(prompt=prompt), timeout=120)


def test_prompt_and_answer_together_fit_the_model(service: Service) -> None:
    with refused(INVALID, "prompt is '8000 tokens with history, and max_tokens 193'", "must be at most 8192"):
        run_turn(service, pb.Prompt(token_ids=[1] * 8000), max_tokens=193)
    with refused(INVALID, "max_tokens 4294967295", "must be at most 8192"):
        run_turn(service, "x", max_tokens=2**32 - 1)
    answer = service.stub.Plan(pb.PlanRequest(prompt_tokens=8000, max_tokens=192))
    assert answer.prompt_tokens == 8000
    with refused(INVALID, "must be at most 8192"):
        service.stub.Plan(pb.PlanRequest(prompt_tokens=8000, max_tokens=193))


def test_a_plan_is_for_a_prompt_or_a_length(service: Service) -> None:
    with refused(INVALID, "prompt_tokens is 5", "either prompt or prompt_tokens"):
        service.stub.Plan(pb.PlanRequest(prompt=pb.Prompt(text="x"), prompt_tokens=5))
    with refused(INVALID, "prompt is ''", "must not be empty"):
        service.stub.Plan(pb.PlanRequest())
    with refused(INVALID, "max_tokens is 0", "must be at least 1"):
        service.stub.Plan(pb.PlanRequest(prompt_tokens=5, max_tokens=0))


@pytest.mark.parametrize(
    ("sampling", "parts"),
    [
        ({"max_tokens": 0}, ["max_tokens is 0", "must be at least 1"]),
        ({"temperature": -1.0}, ["temperature is -1.0", "must be in 0..100"]),
        ({"temperature": math.nan}, ["temperature is nan", "must be in 0..100"]),
        ({"temperature": math.inf}, ["temperature is inf", "must be in 0..100"]),
        ({"top_p": 0.0}, ["top_p is 0.0", "above 0 and at most 1"]),
        ({"top_p": 1.01}, ["top_p is 1.01", "above 0 and at most 1"]),
        ({"min_p": 2.0}, ["min_p is 2.0", "must be in 0..1"]),
        ({"seed": 2**63}, [f"seed is {2**63}", "2**63-1"]),
        ({"stop": ["a", ""]}, ["stop is", "must not be empty"]),
        ({"stop": ["a"] * 17}, ["stop is", "at most 16"]),
        ({"logprobs": 21}, ["logprobs is 21", "must be in 0..20"]),
    ],
)
def test_sampling(service: Service, sampling: dict[str, Any], parts: list[str]) -> None:
    with refused(INVALID, *parts):
        run_turn(service, "The ship", **sampling)


def test_extremes_of_sampling_that_are_allowed(service: Service) -> None:
    turn = run_turn(
        service,
        "The ship",
        max_tokens=3,
        temperature=100.0,
        top_k=2**32 - 1,
        top_p=1e-12,
        min_p=1.0,
        seed=2**63 - 1,
        stop=["x" * 1000] * 16,
        logprobs=20,
    )
    assert len(turn.tokens[0].logprob.top_token_ids) == 20


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ({"x-swaa-sla": "gold"}, ["x-swaa-sla is 'gold'", "known are balanced, interactive, quality"]),
        ({"x-swaa-recipe": "best"}, ["x-swaa-recipe is 'best'", "unknown recipe", "full"]),
        ({"x-slo-ttft-ms": "soon"}, ["x-slo-ttft-ms is 'soon'", "milliseconds above 0"]),
        ({"x-slo-ttft-ms": "-5"}, ["x-slo-ttft-ms is '-5'", "milliseconds above 0"]),
        ({"x-slo-tpot-ms": "nan"}, ["x-slo-tpot-ms is 'nan'", "milliseconds above 0"]),
        ({"x-slo-tpot-ms": "0"}, ["x-slo-tpot-ms is '0'", "milliseconds above 0"]),
        ({"x-swaa-min-quality": "1.5"}, ["x-swaa-min-quality is '1.5'", "0..1"]),
        ({"x-swaa-priority": "high"}, ["x-swaa-priority is 'high'", "integer"]),
        ({"x-swaa-strict": "yes"}, ["x-swaa-strict is 'yes'", "'true' or 'false'"]),
        ({"x-swaa-window": "4"}, ["x-swaa-window is '4'", "unknown header", "x-swaa-recipe"]),
        ((("x-swaa-sla", "quality"), ("x-swaa-sla", "quality")), ["x-swaa-sla is 'quality'", "given twice"]),
        ((("x-swaa-sla-bin", b"\xff"),), ["x-swaa-sla-bin", "unknown header"]),
    ],
)
@pytest.mark.parametrize("method", ["Generate", "GenerateUpload", "Plan"])
def test_headers(service: Service, method: str, headers: Headers, parts: list[str]) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "Generate": lambda: run_turn(service, "The ship", headers),
        "GenerateUpload": lambda: list(
            service.stub.GenerateUpload(
                iter([pb.GenerateUploadRequest(request=pb.GenerateRequest()), pb.GenerateUploadRequest(text=b"x")]),
                metadata=metadata(headers),
            )
        ),
        "Plan": lambda: service.stub.Plan(pb.PlanRequest(prompt_tokens=5), metadata=metadata(headers)),
    }
    with refused(INVALID, *parts):
        calls[method]()


def test_strict_refuses_rather_than_misses(service: Service) -> None:
    headers = {"x-swaa-strict": "true", "x-slo-ttft-ms": "0.001"}
    for call in (
        lambda: run_turn(service, "The ship", headers),
        lambda: service.stub.Plan(pb.PlanRequest(prompt_tokens=5), metadata=metadata(headers)),
    ):
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "strict", "predicted ttft", "is above 0 ms"):
            call()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "'sliding'"):
        run_turn(service, "The ship", {**headers, "x-swaa-recipe": "sliding"})


NOT_UTF_8 = {
    "text": (GENERATE, b"\x0a\x03\x0a\x01\xff"),
    "message": (GENERATE, b"\x0a\x05\x1a\x03\x12\x01\xff"),
    "stop": (GENERATE, b"\x0a\x03\x0a\x01x\x12\x03\x3a\x01\xff"),
    "plan": (PLAN, b"\x0a\x03\x0a\x01\xff"),
}


@pytest.mark.parametrize("case", NOT_UTF_8)
def test_strings_that_are_not_utf_8(service: Service, case: str) -> None:
    method, data = NOT_UTF_8[case]
    with refused(INVALID, "not a valid message", "UTF-8"):
        list(service.channel.unary_stream(method, None, None)(data, timeout=120))


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\x7f", b"\x0a"])
@pytest.mark.parametrize("method", [GENERATE, PLAN, "/swaa.v1.LongContext/GetSession"])
def test_bytes_that_are_no_message(service: Service, method: str, data: bytes) -> None:
    with refused(INVALID, "not a valid message"):
        list(service.channel.unary_stream(method, None, None)(data, timeout=120))


@pytest.mark.parametrize("data", [b"\x0a\x05\x12\x03\x3a\x01\xff", b"\xff\xff\xff\xff"])
def test_pieces_that_are_no_messages(service: Service, data: bytes) -> None:
    with refused(INVALID, "not a valid message"):
        list(service.channel.stream_stream(UPLOAD, None, None)(iter([data]), timeout=120))


def first(**fields: Any) -> pb.GenerateUploadRequest:
    return pb.GenerateUploadRequest(request=pb.GenerateRequest(**fields))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "first message must be `request`"),
        ([pb.GenerateUploadRequest(text=b"x")], "first message must be `request`"),
        ([first()], "must not be empty"),
        ([first(prompt=pb.Prompt(text="x"))], "send it in pieces"),
        ([first(), pb.GenerateUploadRequest(text=b"ab\xff")], "byte 2 is not UTF-8"),
        ([first(), first()], "first message must be `request`"),
        (
            [
                first(),
                pb.GenerateUploadRequest(text=b"x"),
                pb.GenerateUploadRequest(token_ids=pb.TokenIds(token_ids=[1])),
            ],
            "exactly one",
        ),
        ([first(), *[pb.GenerateUploadRequest(text=b"x" * (1 << 20))] * 65], "must be at most 67108864 bytes"),
        ([first(sampling=pb.Sampling(max_tokens=0)), pb.GenerateUploadRequest(text=b"x")], "max_tokens is 0"),
    ],
    ids=["nothing", "no-request", "no-pieces", "prompt", "utf-8", "twice", "mixed", "64-mib", "sampling"],
)
def test_uploads(service: Service, parts: list[pb.GenerateUploadRequest], said: str) -> None:
    with refused(INVALID, said):
        list(service.stub.GenerateUpload(iter(parts), timeout=120))


def test_a_message_above_the_transports_limit_is_refused_by_it(service: Service) -> None:
    with grpc.insecure_channel(service.address) as channel:  # without our client's own limit
        request = pb.GenerateRequest(prompt=pb.Prompt(text="x" * (10 << 20)))
        call = channel.unary_stream(
            GENERATE, request_serializer=pb.GenerateRequest.SerializeToString, response_deserializer=None
        )
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, str(9 << 20)):
            list(call(request, timeout=120))


@pytest.mark.parametrize("timeout_s", [0.0, 1e-9, -1.0])
def test_a_deadline_that_has_passed(service: Service, timeout_s: float) -> None:
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        list(open_turn(service, "The ship", timeout_s=timeout_s))


def test_an_unknown_method_is_unimplemented(service: Service) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        service.channel.unary_unary("/swaa.v1.LongContext/Train", None, None)(b"", timeout=120)


def test_errors_tell_nothing_of_our_insides(service: Service) -> None:
    call = open_turn(service, pb.Prompt())
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    check_refusal(caught.value, INVALID)
    assert "Traceback" not in str(call.details())
    assert "/services/" not in str(call.details())
