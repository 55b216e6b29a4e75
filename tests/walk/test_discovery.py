"""What a client can find out before it asks: plans, recipes, health, and the schema itself."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import KV_BYTES_PER_TOKEN, QUESTION, Service, log_of, metadata, refused, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

TEXT = log_of(8, seed=300) + QUESTION
NAME = "swaa.v1.LongContext"


def plan(service: Service, request: pb.PlanRequest, headers: dict[str, str]) -> pb.PlanResponse:
    answer: pb.PlanResponse = service.stub.Plan(request, metadata=metadata(headers), timeout=120)
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-swaa-sla": "quality"},
        {"x-swaa-sla": "interactive", "x-swaa-session": "new"},
        {"x-slo-ttft-ms": "0.01", "x-swaa-min-quality": "0.3"},
        {"x-swaa-recipe": "sliding", "x-swaa-priority": "-1"},
    ],
)
def test_a_plan_is_what_a_turn_then_does(service: Service, headers: dict[str, str]) -> None:
    planned = plan(service, pb.PlanRequest(prompt=pb.Prompt(text=TEXT), max_tokens=4), headers)
    turn = run_turn(service, TEXT, headers, max_tokens=4)
    accepted = turn.accepted
    assert accepted.recipe == planned.chosen.recipe
    promised, foreseen = accepted.prediction, planned.chosen.prediction
    for time_ms in ("ttft_ms", "work_ms", "tpot_ms"):  # the machine's prices are corrected by every step
        assert getattr(promised, time_ms) == pytest.approx(getattr(foreseen, time_ms), rel=0.5, abs=20.0)
    assert promised.restore.kind == foreseen.restore.kind
    same = ("quality", "kv_bytes", "computed_tokens")
    assert [getattr(promised, name) for name in same] == [getattr(foreseen, name) for name in same]
    assert accepted.predicted_to_meet == planned.chosen.meets == (not planned.chosen.misses)
    assert accepted.reason == planned.reason
    assert accepted.objective == planned.objective
    assert (accepted.prompt_tokens, accepted.history_tokens) == (planned.prompt_tokens, planned.history_tokens)
    assert turn.finish.usage.computed_tokens == planned.chosen.prediction.computed_tokens
    full = next(c for c in planned.candidates if c.recipe.name == "full")
    assert full.prediction.kv_bytes == planned.prompt_tokens * KV_BYTES_PER_TOKEN


def test_a_plan_for_a_session_counts_its_history(service: Service) -> None:
    first = run_turn(service, TEXT, {"x-swaa-session": "new", "x-swaa-recipe": "full"})
    headers = {"x-swaa-session": first.session_id}
    planned = plan(service, pb.PlanRequest(prompt_tokens=10), headers)
    history = first.accepted.prompt_tokens + 8
    assert (planned.prompt_tokens, planned.history_tokens) == (10, history)
    computed = {c.recipe.name: c.prediction.computed_tokens for c in planned.candidates}
    assert computed.pop("full") == 11
    assert set(computed.values()) == {history + 10}
    got = service.stub.GetSession(pb.GetSessionRequest(session_id=first.session_id))
    assert got.version == 1, "planning changes nothing"


def test_candidates_are_all_recipes_best_first(service: Service) -> None:
    planned = plan(service, pb.PlanRequest(prompt_tokens=3000), {})
    recipes = service.stub.ListRecipes(pb.ListRecipesRequest()).recipes
    assert {c.recipe.name for c in planned.candidates} == {item.recipe.name for item in recipes}
    qualities = [c.prediction.quality for c in planned.candidates]
    assert qualities == sorted(qualities, reverse=True)
    assert planned.chosen in planned.candidates
    longer = plan(service, pb.PlanRequest(prompt_tokens=6000), {})
    ttft = {c.recipe.name: c.prediction.ttft_ms for c in planned.candidates}
    assert all(c.prediction.ttft_ms > ttft[c.recipe.name] for c in longer.candidates)


def test_the_recipes_tell_what_is_served(service: Service) -> None:
    answer = service.stub.ListRecipes(pb.ListRecipesRequest())
    assert (answer.model, answer.num_layers, answer.max_model_tokens) == ("smollm2", 30, 8192)
    assert answer.attention_backend
    assert answer.device
    assert answer.quality_source
    assert answer.cost_source.startswith(answer.device)
    by_name = {item.recipe.name: item for item in answer.recipes}
    assert by_name["full"].recipe.window == 0
    sliding = by_name["sliding"].recipe
    assert sliding.window > 0
    assert not sliding.full_layers
    assert list(by_name["interleaved"].recipe.full_layers) == list(range(1, 30, 2))
    for item in answer.recipes:
        assert item.recipe.description
        assert len(item.quality) >= 2
    assert {sla.name for sla in answer.sla_classes} == {"quality", "balanced", "interactive"}
    assert all(sla.ttft_ms > 0 and sla.tpot_ms > 0 for sla in answer.sla_classes)


@pytest.mark.parametrize("name", ["", NAME])
def test_health_says_serving(service: Service, name: str) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=120)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watched = health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=120)
    assert next(iter(watched)).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()


def test_the_health_of_others_is_not_found(service: Service) -> None:
    with refused(grpc.StatusCode.NOT_FOUND):
        health_pb2_grpc.HealthStub(service.channel).Check(health_pb2.HealthCheckRequest(service="other"), timeout=120)


def test_a_client_that_knows_only_the_reflected_schema_can_call(service: Service) -> None:
    database = ProtoReflectionDescriptorDatabase(service.channel)
    assert NAME in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    methods = pool.FindServiceByName(NAME).methods_by_name

    def call(method: str, headers: dict[str, str], **fields: Any) -> Any:
        asked = message_factory.GetMessageClass(methods[method].input_type)
        answered = message_factory.GetMessageClass(methods[method].output_type)
        assert asked is not getattr(pb, methods[method].input_type.name)
        rpc = service.channel.unary_unary(f"/{NAME}/{method}", asked.SerializeToString, answered.FromString)
        return rpc(asked(**fields), metadata=metadata(headers), timeout=120)

    recipes = call("ListRecipes", {})
    assert recipes.recipes[0].recipe.name == "full"
    planned = call("Plan", {"x-swaa-sla": "quality"}, prompt={"text": TEXT}, max_tokens=4)
    assert planned.chosen.recipe.name in {item.recipe.name for item in recipes.recipes}
    assert planned.objective.sla_class == "quality"
    assert planned.prompt_tokens == plan(service, pb.PlanRequest(prompt=pb.Prompt(text=TEXT)), {}).prompt_tokens
    assert set(methods) == {
        "Generate",
        "GenerateUpload",
        "Plan",
        "ListRecipes",
        "GetSession",
        "ListSessions",
        "ForkSession",
        "DeleteSession",
        "ExportSession",
        "ImportSession",
    }
