"""Nothing is lost, swapped or made up between the wire's messages and the gateway's types."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.gateway import messages
from services.gateway.answers import Accepted, Answered, Timings
from services.gateway.catalog import NamedRecipe
from services.gateway.identity import ANONYMOUS
from services.gateway.planner import plan
from services.gateway.prompt import ChatMessage, PromptInput
from services.gateway.sla import Objective, TenantPolicy
from services.gateway.turns import Asked, Planned, Understood
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.job import Done, Job, SessionOutcome, SessionUse
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams, TokenLogprob

from .builders import BYTES_PER_TOKEN_LAYER, COST, make_catalog, make_manifest, make_objective, make_plan, make_work

OBJECTIVE = Objective("quality", 1.5, 2.5, 0.25, -3, strict=True)
DONE = Done(
    reason=FinishReason.LENGTH,
    text="rest",
    num_generated_tokens=7,
    num_restored_tokens=1999,
    queue_ms=1.0,
    prefill_ms=2.0,
    restore_ms=2.0,
    save_ms=3.0,
    resident_bytes=60,
    peak_bytes=70,
    full_attention_bytes=80,
    session=None,
)


def test_absent_sampling_is_greedy_with_256_tokens() -> None:
    assert messages.sampling_params(pb.Sampling()) == SamplingParams(max_tokens=256)


def test_all_sampling_fields_arrive() -> None:
    message = pb.Sampling(
        max_tokens=5,
        temperature=0.5,
        top_k=6,
        top_p=0.75,
        min_p=0.125,
        seed=0,
        stop=["a", "b"],
        ignore_eos=True,
        logprobs=0,
    )
    expected = SamplingParams(5, 0.5, 6, 0.75, 0.125, 0, ("a", "b"), True, 0)
    assert messages.sampling_params(message) == expected


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Sampling(max_tokens=0), "max_tokens"),
        (pb.Sampling(temperature=-0.1), "temperature"),
        (pb.Sampling(temperature=float("nan")), "temperature"),
        (pb.Sampling(temperature=float("inf")), "temperature"),
        (pb.Sampling(top_p=0.0), "top_p"),
        (pb.Sampling(top_p=1.5), "top_p"),
        (pb.Sampling(top_p=float("nan")), "top_p"),
        (pb.Sampling(min_p=-1.0), "min_p"),
        (pb.Sampling(seed=2**63), "seed"),
        (pb.Sampling(stop=[""]), "stop"),
        (pb.Sampling(stop=["x"] * 17), "stop"),
        (pb.Sampling(logprobs=21), "logprobs"),
    ],
)
def test_sampling_out_of_bounds_is_named(message: pb.Sampling, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages.sampling_params(message)
    assert caught.value.field == field


def test_a_prompt_arrives_as_it_was_sent() -> None:
    message = pb.Prompt(text="t", token_ids=[1, 2], messages=[pb.ChatMessage(role="user", content="c")])
    assert messages.prompt_input(message) == PromptInput("t", (1, 2), (ChatMessage("user", "c"),))
    assert messages.prompt_input(pb.Prompt()) == PromptInput()


def test_a_recipe_is_told_in_the_layers_of_the_model() -> None:
    recipe = Recipe(
        window=8,
        sink_tokens=2,
        full_layers="1::2",
        lookback_layers=(0,),
        full_decode=True,
        full_tail=3,
        thinking=True,
        adapter="a",
    )
    assert messages.recipe_message(NamedRecipe("n", "d", recipe, recipe.resolve(4))) == pb.Recipe(
        name="n",
        description="d",
        window=8,
        sink_tokens=2,
        full_layers=[1, 3],
        lookback_layers=[0],
        full_decode=True,
        full_tail=3,
        thinking=True,
        adapter="a",
    )
    full = messages.recipe_message(make_catalog().recipes["full"])
    assert (full.window, list(full.full_layers), list(full.lookback_layers)) == (0, [], [0, 1, 2, 3])


def planned_turn() -> tuple[Job, Planned]:
    """A turn of 30 tokens after 2,000 in session "s"."""
    work = make_work(30, history=make_manifest(num_tokens=2000))
    session = SessionUse("acme", "s", 3)
    asked = Asked(ANONYMOUS, make_catalog(), OBJECTIVE, work.history, arrival_s=0.0)
    request = Understood(PromptInput("?"), 10, asked, session, (1,) * 30)
    named = make_catalog().recipes["tail"]
    job = Job("r", request.token_ids, named.name, named.recipe, SamplingParams(), session=session)
    return job, Planned(request, work, make_plan())


def test_the_first_message_tells_plan_and_objective() -> None:
    accepted = messages.accepted_message(Accepted(*planned_turn())).accepted
    assert (accepted.request_id, accepted.session_id, accepted.reason) == ("r", "s", "because")
    assert (accepted.prompt_tokens, accepted.history_tokens) == (30, 2000)
    assert accepted.predicted_to_meet
    assert accepted.recipe.name == "tail"
    assert accepted.objective == pb.Objective(
        sla_class="quality", ttft_ms=1.5, tpot_ms=2.5, min_quality=0.25, priority=-3, strict=True
    )
    assert accepted.prediction == pb.Prediction(
        ttft_ms=12.0,
        tpot_ms=3.0,
        quality=0.75,
        kv_bytes=77,
        computed_tokens=55,
        wait_ms=7.0,
        work_ms=5.0,
        harmed_turns=2,
        restore=pb.RestorePlan(kind="none", reason="nothing is saved"),
    )


def test_a_plan_tells_all_candidates() -> None:
    made = plan(make_objective(min_quality=0.5), make_work(30), make_catalog(), COST, BYTES_PER_TOKEN_LAYER)
    answer = messages.plan_message(made, OBJECTIVE, make_work(30))
    assert answer.chosen == answer.candidates[0]
    assert [c.recipe.name for c in answer.candidates] == ["full", "tail", "sliding"]
    assert [c.meets for c in answer.candidates] == [True, True, False]
    assert list(answer.candidates[2].misses) == ["quality 0.20 is below 0.50"]
    assert (answer.reason, answer.prompt_tokens, answer.history_tokens) == (made.reason, 30, 0)


def test_progress_and_tokens() -> None:
    progress = messages.prefill_message(PrefillProgress("r", 10, 20, 5)).prefill
    assert (progress.done_tokens, progress.total_tokens, progress.restored_tokens) == (10, 20, 5)
    token = messages.token_message(TokenOutput("r", 7, "x", None)).token
    assert (token.token_id, token.text, token.HasField("logprob")) == (7, "x", False)
    token = messages.token_message(TokenOutput("r", 7, "x", TokenLogprob(-0.5, (7, 8), (-0.5, -2.0)))).token
    assert token.logprob == pb.Logprob(logprob=-0.5, top_token_ids=[7, 8], top_logprobs=[-0.5, -2.0])


def test_the_last_message_adds_up() -> None:
    timings = Timings(queue_ms=1.0, restore_ms=2.0, ttft_ms=9.0, tpot_ms=4.0, save_ms=3.0, total_ms=20.0)
    finish = messages.finish_message(Answered(DONE, *planned_turn(), timings, ("ttft is late",))).finish
    assert (finish.reason, finish.text) == (pb.FINISH_REASON_LENGTH, "rest")
    assert finish.timings == pb.Timings(
        queue_ms=1.0, restore_ms=2.0, ttft_ms=9.0, tpot_ms=4.0, save_ms=3.0, total_ms=20.0
    )
    assert finish.usage == pb.Usage(
        prompt_tokens=30, history_tokens=2000, restored_tokens=1999, computed_tokens=31, generated_tokens=7
    )
    assert finish.kv_memory == pb.KvMemory(resident_bytes=60, peak_bytes=70, full_attention_bytes=80)
    assert not finish.sla_met
    assert list(finish.sla_misses) == ["ttft is late"]
    assert not finish.HasField("session")


def test_the_last_message_tells_what_became_of_the_session() -> None:
    outcome = SessionOutcome(version=4, saved=False, error="store is down", history="restored", saved_bytes=5)
    timings = Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    finish = messages.finish_message(Answered(replace(DONE, session=outcome), *planned_turn(), timings, ())).finish
    assert finish.sla_met
    assert finish.session == pb.SessionResult(
        session_id="s", version=4, saved=False, error="store is down", history="restored", saved_bytes=5
    )


def test_a_session_tells_no_tokens_but_how_many() -> None:
    message = messages.session_message(make_manifest("tail", num_tokens=2000, num_bytes=123))
    assert message == pb.Session(
        session_id="chat",
        version=3,
        num_tokens=2000,
        num_turns=1,
        recipe_name="tail",
        kv_bytes=123,
        created_at_s=1.0,
        updated_at_s=2.0,
        expires_at_s=3.0,
    )


def test_the_catalogue_is_listed_with_its_measurements() -> None:
    response = pb.ListRecipesResponse()
    messages.catalog_message(make_catalog(), TenantPolicy(), response)
    assert [item.recipe.name for item in response.recipes] == ["full", "tail", "sliding"]
    assert [(p.prompt_tokens, p.recall) for p in response.recipes[1].quality] == [(1000, 0.9), (4000, 0.6)]
    assert response.quality_source == "made up"
    assert response.sla_classes[1] == pb.SlaClass(
        name="balanced", description="in between", ttft_ms=1000.0, tpot_ms=100.0, min_quality=0.5, priority=10
    )
