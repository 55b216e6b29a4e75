from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.errors import InvalidRequest, OutOfCapacity
from swaa_runtime.kv_cache.slices import SLICE_TOKENS
from swaa_runtime.outputs import Finished, PrefillProgress, StateSlices, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, Request, SamplingParams, Status
from swaa_runtime.step_cost import UnknownCost
from tests.swaa_runtime.builders import (
    VOCAB_SIZE,
    LetterDecoder,
    LinearCost,
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    engine_config,
    next_turn,
    oracle_logits,
    random_tokens,
    tiny_model,
)

SLIDING = Recipe(window=12, sink_tokens=2)
PAPER = Recipe(window=12, sink_tokens=2, full_layers="1::2", full_decode=True)
TAIL = Recipe(window=12, sink_tokens=2, full_tail=5)
MIX = (Recipe(), SLIDING, PAPER, TAIL)


def mixed_requests(max_tokens: int = 6, growth: int = 25) -> list[Request]:
    """Four requests with four recipes, each longer than the one before by `growth` tokens, one of them sampled."""
    return [
        build_request(
            f"r{index}",
            random_tokens(20 + growth * index, seed=index),
            recipe,
            sampling=SamplingParams(max_tokens=max_tokens, temperature=float(index == 3), seed=7),
        )
        for index, recipe in enumerate(MIX)
    ]


def alone(make: Callable[[], Request]) -> tuple[Request, Rig]:
    rig = build_rig()
    request = rig.add(make())
    rig.run()
    return request, rig


# Batches.


def test_a_mixed_batch_gives_each_request_what_it_gets_alone() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=16))
    batch = [rig.add(request) for request in mixed_requests()]
    rig.run()
    for index, request in enumerate(batch):
        single, single_rig = alone(lambda index=index: mixed_requests()[index])  # type: ignore[misc]
        assert request.token_ids == single.token_ids
        difference = rig.runner.recorded(request) - single_rig.runner.recorded(single)
        assert difference.abs().max().item() <= 1e-5


def test_greedy_tokens_are_the_oracles() -> None:
    loaded = tiny_model()
    rig = build_rig(loaded)
    request = rig.add(build_request(prompt=30, recipe=PAPER, sampling=SamplingParams(max_tokens=10)))
    rig.run()
    assert request.token_ids[30:] == oracle_logits(loaded, request)[29:-1].argmax(dim=-1).tolist()


def test_a_step_never_runs_more_tokens_than_its_budget_and_uses_all_of_it() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=16))
    for request in mixed_requests():
        rig.add(request)
    while rig.engine.has_work:
        before = {r.request_id: r.num_computed_tokens for r in rig.requests.values()}
        known = sum(r.num_remaining_tokens for r in rig.engine.scheduler.requests)
        rig.step()
        done = sum(r.num_computed_tokens - before[r.request_id] for r in rig.requests.values())
        assert done == min(16, known)


@pytest.mark.parametrize(("due_in_s", "num_steps"), [(None, 10), (10.0, 1)])
def test_a_short_prompt_passes_a_long_one_and_at_once_if_it_is_due(due_in_s: float | None, num_steps: int) -> None:
    """Nothing due: by its part of the fair share. Due: by its slack."""
    rig = build_rig(config=engine_config(max_step_tokens=16))
    long = rig.add(build_request("long", 800, SLIDING))
    rig.step()
    due_s = None if due_in_s is None else time.monotonic() + due_in_s
    rig.add(build_request("short", 10, SLIDING, ttft_due_s=due_s))
    for _ in range(num_steps):
        assert not rig.tokens("short")
        rig.step()
    assert rig.tokens("short")
    assert long.num_remaining_tokens > 600
    rig.run()
    assert_equals_oracle(rig, tiny_model(), long)


def test_a_decoding_request_gets_a_token_in_every_step_beside_a_long_prompt() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=16))
    rig.add(build_request("chat", 5, sampling=SamplingParams(max_tokens=20)))
    rig.step()
    rig.add(build_request("long", 800, SLIDING))
    for step in range(2, 20):
        rig.step()
        assert len(rig.tokens("chat")) == step


def test_an_idle_engine_does_nothing() -> None:
    rig = build_rig()
    assert not rig.engine.has_work
    assert rig.step() == []


class ObservingCost(UnknownCost):
    """Keeps what it was told of each step: (request, first position, tokens) of its chunks, and how long it took."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[str, int, int]]] = []
        self.took_ms: list[float] = []

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        self.steps.append([(c.request.request_id, c.start, c.num_tokens) for c in chunks])
        self.took_ms.append(took_ms)


def test_the_cost_is_told_what_each_step_ran_and_how_long_it_took() -> None:
    rig, cost = build_rig(config=engine_config(max_step_tokens=16)), ObservingCost()
    rig.engine.set_cost(cost)
    rig.add(build_request("long", 30, sampling=SamplingParams(max_tokens=3)))
    rig.step()
    rig.add(build_request("short", 2, sampling=SamplingParams(max_tokens=1)))
    started_s = time.monotonic()
    rig.run()
    elapsed_ms = (time.monotonic() - started_s) * 1e3
    by_step = [sorted(step) for step in cost.steps]
    assert by_step == [
        [("long", 0, 16)],
        [("long", 16, 14), ("short", 0, 2)],
        [("long", 30, 1)],
        [("long", 31, 1)],
    ]
    assert all(took_ms > 0.0 for took_ms in cost.took_ms)
    assert sum(cost.took_ms[1:]) <= elapsed_ms


def loads(rig: Rig) -> tuple[list[str], list[str]]:
    """Who is prefilled or waits, and who decodes, as the engine tells it."""
    load = rig.engine.load
    return [prefill.request_id for prefill in load.prefills], [decode.request_id for decode in load.decodes]


def test_the_load_is_told_when_a_request_comes_when_it_moves_on_and_when_it_goes() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=16))
    assert loads(rig) == ([], [])
    rig.engine.set_cost(LinearCost())
    rig.add(build_request("a", 20))
    rig.add(build_request("b", 30))
    assert (loads(rig), rig.engine.load.prefill_ms) == ((["a", "b"], []), 50.0)
    rig.step()
    assert rig.engine.load.prefill_ms == 50.0 - 16.0
    rig.engine.cancel("b")
    assert loads(rig) == (["a"], [])
    while not rig.tokens("a"):
        rig.step()
    assert loads(rig) == ([], ["a"])
    rig.run()
    assert loads(rig) == ([], [])


def test_what_is_restored_is_not_predicted_as_work_until_it_is_given_up() -> None:
    rig = build_rig()
    first = rig.add(build_request("one", 40, SLIDING, continues=True))
    rig.run()
    rig.engine.set_cost(LinearCost())
    rig.add(next_turn("two", first, random_tokens(10)), rig.state("one"), place=False)
    assert rig.engine.load.prefill_ms == 44 + 10 - 43
    rig.engine.abandon_restore("two")
    rig.step()
    assert rig.engine.load.prefill_ms == 54 - 32
    rig.run()


# What a query sees, through the whole engine.


def last_prompt_logits(prompt: list[int], recipe: Recipe, max_step_tokens: int = 32) -> torch.Tensor:
    """Logits at the prompt's last position, of a model of one layer: they depend on a token only if it is seen."""
    rig = build_rig(tiny_model(num_layers=1), engine_config(max_step_tokens=max_step_tokens))
    request = rig.add(build_request(prompt=prompt, recipe=recipe, num_layers=1, sampling=SamplingParams(max_tokens=2)))
    rig.run()
    return rig.runner.recorded(request)[len(prompt) - 1]


def changed(prompt: list[int], position: int) -> list[int]:
    return [*prompt[:position], (prompt[position] + 1) % VOCAB_SIZE, *prompt[position + 1 :]]


@pytest.mark.parametrize("window", [1, 2, 7, 40])
@pytest.mark.parametrize("max_step_tokens", [5, 32])
def test_a_window_of_w_sees_exactly_w_keys(window: int, max_step_tokens: int) -> None:
    prompt, recipe = random_tokens(50), Recipe(window=window, sink_tokens=3)
    base = last_prompt_logits(prompt, recipe, max_step_tokens)
    outside, inside, after_sinks, last_sink = 49 - window, 49 - window + 1, 3, 2
    assert torch.equal(base, last_prompt_logits(changed(prompt, outside), recipe, max_step_tokens))
    assert torch.equal(base, last_prompt_logits(changed(prompt, after_sinks), recipe, max_step_tokens))
    assert not torch.equal(base, last_prompt_logits(changed(prompt, inside), recipe, max_step_tokens))
    assert not torch.equal(base, last_prompt_logits(changed(prompt, last_sink), recipe, max_step_tokens))


@pytest.mark.parametrize("max_step_tokens", [16, 8, 24])
def test_a_last_chunk_of_one_token_is_prefill_and_the_token_after_it_is_decode(max_step_tokens: int) -> None:
    """Of 49 tokens in steps of 16, 8 or 24 the last runs alone: it must slide, while generated tokens look back."""
    recipe = Recipe(window=4, full_decode=True)
    logits = []
    for prompt in (random_tokens(49), changed(random_tokens(49), 10)):
        rig = build_rig(tiny_model(num_layers=1), engine_config(max_step_tokens=max_step_tokens))
        request = rig.add(
            build_request(prompt=prompt, recipe=recipe, num_layers=1, sampling=SamplingParams(max_tokens=2))
        )
        rig.run()
        chunks = [out.num_computed_tokens for out in rig.outputs if isinstance(out, PrefillProgress)]
        assert chunks[-2:] == [48, 49]
        logits.append(rig.runner.recorded(request))
    assert torch.equal(logits[0][48], logits[1][48])
    assert not torch.equal(logits[0][49], logits[1][49])


# Endings.


@settings(max_examples=60)
@given(
    st.integers(0, 25), st.sampled_from(["r0", "r1", "r2", "r3"]), st.sampled_from([4, 16, 64]), st.sampled_from([1, 4])
)
def test_cancelling_at_any_step_frees_everything_and_leaves_the_others_alone(
    steps: int, victim: str, max_step_tokens: int, max_running: int
) -> None:
    loaded = tiny_model()
    rig = build_rig(loaded, engine_config(max_step_tokens=max_step_tokens, max_running=max_running))
    requests = {request.request_id: rig.add(request) for request in mixed_requests(growth=10)}
    for _ in range(steps):
        rig.step()
    was_over = requests[victim].status is Status.FINISHED
    outputs = rig.engine.cancel(victim)
    rig.engine.check_integrity()
    assert [type(out) for out in outputs] == ([] if was_over else [Finished])
    assert requests[victim].block_tables == []
    assert requests[victim].num_reserved_blocks == 0
    if outputs:
        assert requests[victim].finish_reason is FinishReason.CANCELLED
    tokens_then = list(requests[victim].token_ids)
    rig.run()
    assert requests[victim].token_ids == tokens_then
    for request in requests.values():
        if request.request_id != victim or was_over:
            assert_equals_oracle(rig, loaded, request)
    assert rig.engine.manager.pool.num_used_blocks == rig.engine.manager.num_reserved_blocks == 0


def test_cancelling_what_has_ended_or_never_was_does_nothing() -> None:
    rig = build_rig()
    rig.add(build_request("a", 5))
    rig.run()
    assert rig.engine.cancel("a") == rig.engine.cancel("nobody") == []


def test_a_cancelled_request_gives_out_the_text_it_held_back_and_no_state() -> None:
    rig = build_rig()
    request = rig.add(build_request(prompt=5, sampling=SamplingParams(max_tokens=50), continues=True))
    for _ in range(3):
        rig.step()
    [finished] = rig.engine.cancel("r")
    assert isinstance(finished, Finished)
    assert finished.state is None
    assert finished.token_ids == tuple(request.token_ids)
    assert len(request.token_ids) == 8


@pytest.mark.parametrize("running", [True, False])
def test_a_request_past_its_deadline_ends_wherever_it_stands(running: bool) -> None:
    rig = build_rig(config=engine_config(max_running=1))
    if not running:
        rig.add(build_request("first", 5, sampling=SamplingParams(max_tokens=100)))
    deadline = time.monotonic() + (0.2 if running else 0.05)
    late = rig.add(build_request("late", 5, sampling=SamplingParams(max_tokens=1500), deadline_s=deadline))
    rig.step()
    assert late.status is (Status.RUNNING if running else Status.WAITING)
    time.sleep(max(0.0, deadline - time.monotonic()))
    outputs = rig.step()
    ended = [out for out in outputs if isinstance(out, Finished)]
    assert [(out.request_id, out.reason) for out in ended] == [("late", FinishReason.DEADLINE)]
    assert (ended[0].admitted_s is None) == (not running)
    assert late.block_tables == []
    assert rig.engine.cancel("late") == []


def test_a_deadline_in_the_future_changes_nothing() -> None:
    rig = build_rig()
    rig.add(build_request(prompt=5, deadline_s=time.monotonic() + 1000))
    rig.run()
    assert rig.finished("r").reason is FinishReason.LENGTH


def greedy_tokens(prompt: int, count: int) -> list[int]:
    request, _ = alone(lambda: build_request(prompt=prompt, sampling=SamplingParams(max_tokens=count)))
    return request.token_ids[prompt:]


def test_an_end_of_sequence_token_ends_it_without_text() -> None:
    tokens = greedy_tokens(20, 8)
    end = tokens[4]
    first = tokens.index(end)
    rig = build_rig(eos_token_ids=[end, 999])
    rig.add(build_request(prompt=20, sampling=SamplingParams(max_tokens=8)))
    rig.run()
    finished = rig.finished("r")
    assert finished.reason is FinishReason.STOP
    assert list(finished.token_ids[20:]) == tokens[: first + 1]
    assert rig.text("r") == LetterDecoder().decode(tokens[:first])


def test_an_end_of_sequence_token_is_ignored_on_demand() -> None:
    tokens = greedy_tokens(20, 8)
    rig = build_rig(eos_token_ids=tokens)
    rig.add(build_request(prompt=20, sampling=SamplingParams(max_tokens=8, ignore_eos=True)))
    rig.run()
    assert rig.finished("r").reason is FinishReason.LENGTH
    assert rig.text("r") == LetterDecoder().decode(tokens)


def test_a_stop_string_over_two_tokens_ends_it_and_is_not_in_the_text() -> None:
    text = LetterDecoder().decode(greedy_tokens(20, 8))
    stop = text[3:5]
    rig = build_rig()
    rig.add(build_request(prompt=20, sampling=SamplingParams(max_tokens=8, stop=("never", stop))))
    rig.run()
    assert rig.finished("r").reason is FinishReason.STOP
    assert rig.text("r") == text[: text.index(stop)]


def test_max_tokens_ends_it() -> None:
    rig = build_rig()
    rig.add(build_request(prompt=20, sampling=SamplingParams(max_tokens=1)))
    rig.run()
    finished = rig.finished("r")
    assert (finished.reason, len(finished.token_ids), finished.num_computed_tokens) == (FinishReason.LENGTH, 21, 20)


def test_the_last_output_says_what_happened() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=16, block_size_tokens=8))
    started = time.monotonic()
    rig.add(build_request(prompt=100, recipe=Recipe(window=9), sampling=SamplingParams(max_tokens=4)))
    rig.run()
    finished = rig.finished("r")
    assert finished.admitted_s is not None
    assert finished.first_token_s is not None
    times = [started, finished.arrival_s, finished.admitted_s, finished.first_token_s, time.monotonic()]
    assert times == sorted(times)
    assert finished.num_computed_tokens == 103
    assert finished.num_restored_tokens == 0
    assert finished.peak_blocks == 3 * 3, "window and chunk: tokens [88, 104) or so in each of three layers"
    assert finished.resident_blocks == 3 * 2
    progress = [out for out in rig.outputs if isinstance(out, PrefillProgress)]
    assert [out.num_computed_tokens for out in progress] == [16, 32, 48, 64, 80, 96, 100]
    assert {(out.prompt_stop, out.num_restored_tokens) for out in progress} == {(100, 0)}


# Pausing.


def test_a_paused_request_stands_still_while_others_go_on_and_then_ends_as_if_never_paused() -> None:
    rig = build_rig()
    paused, other = mixed_requests(max_tokens=10)[:2]
    rig.add(paused)
    rig.add(other)
    for _ in range(4):
        rig.step()
    rig.engine.set_paused("r0", True)
    then, held = list(paused.token_ids), [list(table) for table in paused.block_tables]
    rig.run()
    assert paused.token_ids == then
    assert [list(table) for table in paused.block_tables] == held
    assert other.status is Status.FINISHED
    assert not rig.engine.has_work
    rig.engine.set_paused("r0", False)
    rig.run()
    assert paused.token_ids == alone(lambda: mixed_requests(max_tokens=10)[0])[0].token_ids
    rig.engine.set_paused("r0", True)


# Capacity.


def test_a_full_queue_refuses_and_the_id_stays_free() -> None:
    rig = build_rig(config=engine_config(max_waiting=1))
    rig.add(build_request("a", 5))
    with pytest.raises(OutOfCapacity, match="waiting already"):
        rig.add(build_request("b", 5))
    rig.step()
    rig.add(build_request("b", 5))
    rig.run()
    assert rig.finished("b").reason is FinishReason.LENGTH


def test_a_request_that_could_never_fit_is_refused_and_one_that_fits_alone_runs() -> None:
    rig = build_rig(config=engine_config(num_blocks=31, block_size_tokens=8))
    with pytest.raises(OutOfCapacity, match="needs 33 KV blocks of 8 tokens, the pool has 30"):
        rig.add(build_request("a", 80, sampling=SamplingParams(max_tokens=2)))
    rig.add(build_request("a", 80, sampling=SamplingParams(max_tokens=1)))
    rig.run()
    assert rig.finished("a").peak_blocks == 30


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.sampled_from(MIX), st.integers(-1, 1)), min_size=2, max_size=6),
    st.integers(40, 120),
)
def test_admission_never_promises_more_than_there_is_and_everybody_gets_a_turn(
    asked: list[tuple[int, Recipe, int]], num_blocks: int
) -> None:
    """In a pool that holds only some of them at a time."""
    loaded = tiny_model()
    rig = build_rig(loaded, engine_config(num_blocks=num_blocks, block_size_tokens=8, max_step_tokens=16))
    for index, (length, recipe, priority) in enumerate(asked):
        rig.add(build_request(f"r{index}", random_tokens(length, seed=index), recipe, priority=priority))
    while rig.engine.has_work:
        rig.step()
        assert rig.engine.manager.num_reserved_blocks <= num_blocks - 1
        assert rig.engine.manager.pool.num_used_blocks <= rig.engine.manager.num_reserved_blocks
    for request in rig.requests.values():
        assert_equals_oracle(rig, loaded, request)


# Requests that are wrong.


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_token_that_the_model_lacks_is_refused(token: int) -> None:
    rig = build_rig()
    with pytest.raises(InvalidRequest) as caught:
        rig.add(build_request(prompt=[1, token, 2]))
    assert (caught.value.field, caught.value.value) == ("token_ids", token)
    assert not rig.engine.has_work


def test_a_request_longer_than_the_limit_is_refused_and_one_at_the_limit_runs() -> None:
    rig = build_rig(config=engine_config(max_model_tokens=24))
    with pytest.raises(InvalidRequest, match="must not exceed 24"):
        rig.add(build_request(prompt=20, sampling=SamplingParams(max_tokens=5)))
    rig.add(build_request(prompt=20, sampling=SamplingParams(max_tokens=4)))
    rig.run()
    assert len(rig.finished("r").token_ids) == 24


def test_an_id_in_use_is_refused_until_it_has_ended() -> None:
    rig = build_rig()
    rig.add(build_request("a", 5))
    with pytest.raises(InvalidRequest, match="is in use"):
        rig.engine.add(build_request("a", 6))
    rig.run()
    rig.add(build_request("a", 5))
    rig.run()


# Sampling through the engine.


def sampled(seed: int | None, **batch: Any) -> list[int]:
    rig = build_rig()
    request = rig.add(build_request(prompt=10, sampling=SamplingParams(max_tokens=30, temperature=1.2, seed=seed)))
    if batch:
        rig.add(build_request("other", 40, sampling=SamplingParams(max_tokens=30, temperature=1.2, seed=3)))
    rig.run()
    return request.token_ids


def test_a_seed_repeats_whoever_else_is_in_the_batch_and_another_differs() -> None:
    first = sampled(1)
    assert first == sampled(1, other=True)
    assert first != sampled(2)
    assert sampled(None) != sampled(None)


@pytest.mark.parametrize("num_top", [0, 3])
def test_logprobs_are_those_of_the_models_logits(num_top: int) -> None:
    rig = build_rig()
    params = SamplingParams(max_tokens=6, temperature=1.5, top_k=5, seed=1, logprobs=num_top)
    request = rig.add(build_request(prompt=10, sampling=params))
    rig.run()
    want = rig.runner.recorded(request)[9:].log_softmax(dim=-1)
    outputs = rig.tokens("r")
    assert [out.token_id for out in outputs] == request.token_ids[10:]
    for row, out in zip(want, outputs, strict=True):
        assert out.logprob is not None
        assert out.logprob.logprob == pytest.approx(float(row[out.token_id]), abs=1e-6)
        assert list(out.logprob.top_token_ids) == row.topk(num_top).indices.tolist()


def test_without_asking_there_are_no_logprobs() -> None:
    rig = build_rig()
    rig.add(build_request(prompt=10))
    rig.run()
    assert [out.logprob for out in rig.outputs if isinstance(out, TokenOutput)] == [None] * 4


# Sessions.


@pytest.mark.parametrize("recipe", MIX)
def test_a_later_turn_exports_only_what_was_not_saved_and_the_parts_make_up_the_state(recipe: Recipe) -> None:
    loaded = tiny_model()
    rig = build_rig(loaded, engine_config(max_step_tokens=256))
    first = rig.add(build_request("one", 2 * SLICE_TOKENS + 20, recipe, continues=True))
    rig.run()
    state = rig.state("one")
    saved = {part.key for part in state.slices}

    second = rig.add(next_turn("two", first, random_tokens(40, seed=1), continues=True), state, saved)
    rig.run()
    later = rig.state("two", state)
    keys = {part.key for part in later.slices}
    assert later.num_tokens == len(second.token_ids) - 1
    assert {part.key for part in rig.exported("two")} == keys - saved
    assert {key.start for key in keys & saved} >= {0}, "sinks and whole slices are saved once"

    third = rig.add(next_turn("three", second, random_tokens(5, seed=2)), later)
    rig.run()
    assert third.num_restored_tokens == later.num_tokens
    assert_equals_oracle(rig, loaded, third)


def test_restored_tokens_are_counted_and_not_computed_again() -> None:
    rig = build_rig()
    first = rig.add(build_request("one", 40, SLIDING, continues=True))
    rig.run()
    second = rig.add(next_turn("two", first, random_tokens(10)), rig.state("one"))
    rig.run()
    progress = [out for out in rig.outputs if isinstance(out, PrefillProgress) and out.request_id == "two"]
    assert {out.num_restored_tokens for out in progress} == {43}
    assert rig.finished("two").num_restored_tokens == second.num_restored_tokens == 43
    assert rig.runner.recorded(second).shape[0] == 1 + 10 + 3


def test_a_request_that_nothing_follows_exports_nothing() -> None:
    rig = build_rig()
    rig.add(build_request(prompt=10))
    rig.run()
    assert rig.finished("r").state is None


def run_to(rig: Rig, request: Request, num_tokens: int) -> None:
    """Step until a request has computed so many tokens."""
    while request.num_computed_tokens < num_tokens:
        rig.step()


def test_a_large_state_leaves_in_parts_while_others_go_on() -> None:
    loaded = tiny_model()
    rig = build_rig(loaded, engine_config(max_step_tokens=1024, export_step_bytes=1))
    rig.add(build_request("big", 4 * SLICE_TOKENS - 3, continues=True, sampling=SamplingParams(max_tokens=2)))
    other = rig.add(build_request("other", 5, sampling=SamplingParams(max_tokens=50)))
    rig.run()
    exports = [out for out in rig.outputs if isinstance(out, StateSlices)]
    assert len(exports) == len(rig.state("big").slices) == 4, "one slice a step"
    kinds = [type(out).__name__ for out in rig.outputs if out.request_id in ("other", "big")]
    between = kinds[kinds.index("StateSlices") : kinds.index("Finished")]
    assert between.count("TokenOutput") >= 3, "the other request's tokens came meanwhile"
    assert_equals_oracle(rig, loaded, other)


def test_a_request_cancelled_while_its_state_leaves_is_gone() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=1024, export_step_bytes=1))
    rig.add(build_request("r", 3 * SLICE_TOKENS, continues=True, sampling=SamplingParams(max_tokens=1)))
    rig.step()
    assert [out.request_id for out in rig.tokens("r")] == ["r"]
    [finished] = rig.engine.cancel("r")
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.CANCELLED
    assert not rig.engine.has_work
    assert rig.engine.manager.pool.num_used_blocks == 0
    assert "r" not in rig.engine.parked


def test_a_state_above_the_bound_is_not_exported() -> None:
    rig = build_rig(config=engine_config(max_state_bytes=3 * 2 * 2 * 8 * 4 * 20))
    for name, length in (("small", 10), ("large", 100)):
        rig.add(build_request(name, length, continues=True, checkpoint_tokens=50))
    rig.run()
    assert rig.finished("small").state is not None
    assert rig.finished("large").state is None
    assert rig.exported("large") == []
    assert "large" not in rig.engine.parked


def test_parked_states_go_oldest_first_when_memory_is_needed() -> None:
    rig = build_rig(config=engine_config(num_blocks=1 + 3 * 12))
    requests = [rig.add(build_request(name, 20, continues=True)) for name in ("one", "two", "three")]
    rig.run()
    assert all(request.request_id in rig.engine.parked for request in requests)
    rig.add(build_request("big", 50))
    rig.run()
    assert [request.request_id for request in rig.engine.parked.requests] == ["three"]
    assert not rig.resume(next_turn("later", requests[0], [1, 2]), "one")
    assert rig.resume(next_turn("late", requests[2], [1, 2]), "three")
    rig.run()
    assert rig.engine.manager.pool.num_used_blocks == 0


def test_a_parked_state_is_not_taken_before_those_who_wait() -> None:
    rig = build_rig(config=engine_config(max_running=1))
    first = rig.add(build_request("first", 20, continues=True))
    rig.run()
    rig.add(build_request("running", 20))
    rig.step()
    later = next_turn("later", first, [1, 2])
    assert not rig.resume(later, "first")
    rig.run()
    assert rig.resume(later, "first")
    rig.run()


def test_a_dropped_state_frees_its_blocks() -> None:
    rig = build_rig()
    rig.add(build_request("r", 20, continues=True))
    rig.run()
    assert rig.engine.manager.pool.num_used_blocks > 0
    rig.engine.drop_parked("r")
    rig.engine.drop_parked("r")
    assert rig.engine.manager.pool.num_used_blocks == 0
    rig.engine.check_integrity()


def test_slices_of_a_parked_state_can_be_had_again() -> None:
    rig = build_rig()
    rig.add(build_request("r", 2 * SLICE_TOKENS + 20, continues=True))
    rig.run()
    slices = rig.state("r").slices
    again = rig.engine.export_parked("r", [part.key for part in slices])
    assert again is not None
    assert [part.key for part in again] == [part.key for part in slices]
    assert all(torch.equal(part.data, first.data) for part, first in zip(again, slices, strict=True))
    rig.engine.drop_parked("r")
    assert rig.engine.export_parked("r", [slices[0].key]) is None


def test_what_a_store_has_lost_is_exported_again() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=2 * SLICE_TOKENS))
    request = rig.add(build_request("r", 3 * SLICE_TOKENS, continues=True, checkpoint_tokens=2 * SLICE_TOKENS))
    run_to(rig, request, 2 * SLICE_TOKENS)
    [checkpoint] = rig.checkpoints("r")
    lost, kept = (part.key for part in checkpoint.slices)
    rig.engine.confirm_saved("r", [lost, kept])
    rig.engine.confirm_saved("r", (), [lost])
    rig.run()
    exported = [part.key for part in rig.exported("r")]
    assert (exported.count(lost), exported.count(kept)) == (2, 1)


def test_a_checkpoint_on_its_way_holds_up_no_further_one() -> None:
    rig = build_rig(config=engine_config(max_step_tokens=16))
    request = rig.add(build_request("r", 100, continues=True, checkpoint_tokens=16))
    run_to(rig, request, 40)
    [first] = rig.checkpoints("r")
    assert first.num_tokens == 16
    rig.engine.confirm_saved("r", [part.key for part in first.slices])
    rig.run()
    [first, second] = rig.checkpoints("r")
    assert second.num_tokens == 64
    assert rig.state("r").num_tokens == 103


def test_a_slice_that_is_not_expected_is_refused() -> None:
    rig = build_rig()
    first = rig.add(build_request("one", 40, continues=True))
    rig.run()
    state = rig.state("one")
    rig.add(next_turn("two", first, [1]), state, place=False)
    rig.engine.place("two", state.slices)
    with pytest.raises(InvalidRequest, match="slice"):
        rig.engine.place("two", state.slices)
    rig.engine.place("nobody", state.slices)


@pytest.mark.parametrize("recipe", MIX)
@pytest.mark.parametrize("abandoned", [False, True])
def test_a_mixed_restore_computes_the_start_while_the_rest_arrives(recipe: Recipe, abandoned: bool) -> None:
    loaded = tiny_model()
    rig = build_rig(loaded, engine_config(max_step_tokens=100))
    first = rig.add(build_request("one", 3 * SLICE_TOKENS + 20, recipe, continues=True))
    rig.run()
    state = rig.state("one")
    second = rig.add(next_turn("two", first, [1, 2, 3]), state, compute_stop=SLICE_TOKENS, place=False)
    run_to(rig, second, SLICE_TOKENS)
    for _ in range(3):
        rig.step()
    assert second.num_computed_tokens == SLICE_TOKENS, "it waits for the rest"
    *parts, last = state.from_token(SLICE_TOKENS, second.rules)
    assert len(parts) + 1 < len(state.slices) or recipe.window
    rig.engine.place("two", parts)
    rig.step()
    if abandoned:
        rig.engine.abandon_restore("two")
    else:
        rig.engine.place("two", [last])
    rig.run()
    assert second.num_restored_tokens == (0 if abandoned else state.num_tokens - SLICE_TOKENS)
    assert_equals_oracle(rig, loaded, second)


# Going on from tokens that were generated elsewhere.


def uninterrupted(sampling: SamplingParams, recipe: Recipe, eos_token_ids: Sequence[int] = ()) -> Rig:
    rig = build_rig(eos_token_ids=eos_token_ids)
    rig.add(build_request("r", 30, recipe, sampling=sampling, continues=True))
    rig.run()
    return rig


def gone_on(sampling: SamplingParams, recipe: Recipe, sent: Sequence[int], eos_token_ids: Sequence[int] = ()) -> Rig:
    rig = build_rig(config=engine_config(max_step_tokens=7), eos_token_ids=eos_token_ids)
    rig.add(build_request("r", 30, recipe, sampling=sampling, continues=True, sent_token_ids=sent))
    rig.run()
    return rig


@pytest.mark.parametrize("recipe", MIX)
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=12),
        SamplingParams(max_tokens=12, temperature=1.5, seed=7),
        SamplingParams(max_tokens=12, temperature=1.5, top_k=9, top_p=0.9, seed=8),
    ],
)
def test_a_turn_goes_on_after_any_token_as_if_it_had_never_stopped(recipe: Recipe, sampling: SamplingParams) -> None:
    whole = uninterrupted(sampling, recipe)
    tokens, texts = ([getattr(out, name) for out in whole.tokens("r")] for name in ("token_id", "text"))
    for count in range(1, len(tokens) + 1):
        rest = gone_on(sampling, recipe, tokens[:count])
        assert [out.token_id for out in rest.tokens("r")] == tokens[count - 1 :], "the last sent token comes once more"
        assert [out.text for out in rest.tokens("r")] == texts[count - 1 :]
        assert rest.finished("r").token_ids == whole.finished("r").token_ids
        assert rest.finished("r").reason is FinishReason.LENGTH
        assert rest.state("r").num_tokens == whole.state("r").num_tokens
        assert_equals_oracle(rest, tiny_model(), rest.requests["r"])


def test_a_turn_whose_last_token_was_sent_just_ends() -> None:
    sampling = SamplingParams(max_tokens=12)
    tokens = [out.token_id for out in uninterrupted(sampling, Recipe()).tokens("r")]
    ended = gone_on(sampling, Recipe(), tokens[:5], eos_token_ids=[tokens[4]])
    assert [out.token_id for out in ended.tokens("r")] == [tokens[4]]
    assert ended.finished("r").reason is FinishReason.STOP


def test_a_stop_string_may_have_begun_before_the_cut() -> None:
    plain = uninterrupted(SamplingParams(max_tokens=12), Recipe())
    text, tokens = plain.text("r"), [out.token_id for out in plain.tokens("r")]
    sampling = SamplingParams(max_tokens=12, stop=(text[3:6],))
    whole = uninterrupted(sampling, Recipe())
    rest = gone_on(sampling, Recipe(), tokens[:5])
    assert rest.finished("r").reason is whole.finished("r").reason is FinishReason.STOP
    assert rest.finished("r").token_ids == whole.finished("r").token_ids
