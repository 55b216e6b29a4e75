"""What is said between gateways and replicas arrives as it was."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.backlog import Backlog, DecodingTurn, PendingTurn
from services.cost import CostProfile
from services.pb.swaa.v1 import replica_pb2 as pb
from services.replica.facts import ModelFacts
from services.replica.job import Done, Job, SessionOutcome, SessionUse
from services.replica.wire import event_from, facts_from, facts_message, job_from, run_event, run_request
from services.replica.wire_backlog import backlog_from, backlog_message
from services.restore_plan import RestorePlan
from swaa_runtime.errors import InvalidRecipe, InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams, TokenLogprob
from swaa_runtime.shape import ModelShape

counts = st.integers(0, 2**31 - 1)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=6).map(tuple)
figures = st.floats(0, 1e9)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.floats(0, 100),
    top_k=counts,
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)
plans = st.builds(
    RestorePlan,
    kind=st.sampled_from(["none", "hot", "load", "mix", "recompute"]),
    source=st.sampled_from([None, "session", "prefix"]),
    prefix_id=st.text(),
    compute_stop=counts,
    num_tokens=counts,
    predicted_ms=figures,
    reason=st.text(),
    work_tokens=counts,
    work_ms=figures,
)
jobs = st.builds(
    Job,
    request_id=st.text(),
    prompt_token_ids=tokens,
    recipe_name=st.text(),
    recipe=st.builds(Recipe, window=st.none() | st.integers(1, 99), full_layers=st.sampled_from(["", "1::2", (0, 2)])),
    sampling=samplings,
    priority=st.integers(-(2**31), 2**31 - 1),
    deadline_s=st.none() | figures,
    session=st.none() | st.builds(SessionUse, st.text(), st.text(min_size=1), st.integers(0, 2**53), st.text()),
    restore=st.none() | plans,
    sent_token_ids=tokens,
)
outcomes = st.builds(SessionOutcome, st.integers(0, 2**53), st.booleans(), st.text(), st.text(), st.integers(0, 2**50))
events = st.one_of(
    st.builds(PrefillProgress, st.just("r"), counts, counts, counts),
    st.builds(
        TokenOutput,
        st.just("r"),
        counts,
        st.text(),
        st.none() | st.builds(TokenLogprob, figures, tokens, st.lists(figures, max_size=3).map(tuple)),
    ),
    st.builds(
        Done,
        reason=st.sampled_from(FinishReason),
        text=st.text(),
        num_generated_tokens=counts,
        num_restored_tokens=counts,
        queue_ms=figures,
        prefill_ms=figures,
        restore_ms=figures,
        save_ms=figures,
        resident_bytes=st.integers(0, 2**50),
        peak_bytes=st.integers(0, 2**50),
        full_attention_bytes=st.integers(0, 2**50),
        session=st.none() | outcomes,
    ),
)

FACTS = ModelFacts(
    fingerprint="m",
    device="a machine",
    attention_backend="windowed",
    shape=ModelShape(3, 4, 2, 8, 1000, 4096, "bfloat16"),
    max_session_tokens=2048,
    eos_token_ids=frozenset({2, 7}),
    cost=CostProfile("m", "a machine", "2026-01-01", 1024, 1.0, 0.1, 1.0, 0.5, 3.0, 4.0, 0.7),
    adapter_ids={"w512": "w512@0011223344556677"},
)


@given(jobs)
def test_a_job(job: Job) -> None:
    message = pb.RunRequest.FromString(run_request(job).SerializeToString())
    assert job_from(message, job.deadline_s) == job


@given(events)
def test_an_event(event: PrefillProgress | TokenOutput | Done) -> None:
    message = pb.RunEvent.FromString(run_event(event).SerializeToString())
    assert event_from(message, "r") == event


def test_a_backlog() -> None:
    pending = (PendingTurn("a", 7, 12.5, -3.0, -1, 40.0, 30.0, 9, 2.5, 1.25), PendingTurn("b", 1, 0.5, None, 7, -2.0))
    backlog = Backlog(pending, (DecodingTurn("c", 20.0, 3, 8.0), DecodingTurn("d", None, -3)), 9.5, 1.5, 0.25, 2048)
    assert backlog_from(pb.Backlog.FromString(backlog_message(backlog).SerializeToString())) == backlog
    assert backlog_from(pb.Backlog()) == Backlog()
    assert backlog_from(pb.Backlog(decoding=[pb.DecodingTurn()])).decoding[0].left_tokens == math.inf, "none told"


def test_facts() -> None:
    assert facts_from(pb.ModelFacts.FromString(facts_message(FACTS).SerializeToString())) == FACTS


JOB = Job("r", (1, 2), "full", Recipe(), SamplingParams())


def test_what_a_turn_aims_at() -> None:
    job = replace(JOB, ttft_due_s=time.monotonic() - 3.0, tpot_ms=20.0)
    there = job_from(pb.RunRequest.FromString(run_request(job).SerializeToString()), None)
    assert there.ttft_due_s == pytest.approx(job.ttft_due_s, abs=0.5)
    assert replace(there, ttft_due_s=job.ttft_due_s) == job


def test_what_makes_no_sense_is_refused() -> None:
    message = run_request(replace(JOB, restore=RestorePlan("load", "session", "", 0, 1, 0.0, "")))
    for field, value in (("kind", "fetch"), ("source", "elsewhere")):
        wrong = pb.RunRequest.FromString(message.SerializeToString())
        setattr(wrong.restore, field, value)
        with pytest.raises(InvalidRequest, match=f"restore.{field} is '{value}'"):
            job_from(wrong, None)
    message.recipe_json = '{"window": 0}'
    with pytest.raises(InvalidRecipe, match="window"):
        job_from(message, None)
    with pytest.raises(InvalidRequest, match="event"):
        event_from(pb.RunEvent(), "r")
