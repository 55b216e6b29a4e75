"""Objective and figures in, recipe and reason out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.backlog import Backlog, DecodingTurn, PendingTurn
from services.cost import CostProfile
from services.errors import SlaUnattainable
from services.forecast import Forecast
from services.gateway.catalog import Catalog
from services.gateway.planner import Candidate, Plan, Prediction, Scene, Work, choose, misses, plan, steps_of
from services.gateway.sla import Objective
from services.restore_plan import SavedState
from swaa_runtime.errors import InvalidRequest

from .builders import BYTES_PER_TOKEN_LAYER, COST, NUM_LAYERS, make_catalog, make_manifest, make_objective, make_work

BEST = "best quality of those predicted to meet the SLA"
FASTEST = "none is predicted to meet the SLA: the fastest of sufficient quality"
NONE_GOOD = "none has sufficient quality: the best there is"


def make_plan(objective: Objective, work: Work) -> Plan:
    return plan(objective, work, make_catalog(), COST, BYTES_PER_TOKEN_LAYER)


def make_scene(work: Work, catalog: Catalog | None = None, cost: CostProfile = COST, **objective: Any) -> Scene:
    forecast = Forecast(work.backlog, steps_of(cost))
    return Scene(make_objective(**objective), work, forecast, catalog or make_catalog(), cost, BYTES_PER_TOKEN_LAYER)


def predicted(name: str, work: Work, cost: CostProfile = COST, **objective: Any) -> Prediction:
    return weighed(make_scene(work, cost=cost, **objective), name).prediction


def weighed(scene: Scene, name: str) -> Candidate:
    [candidate] = scene.ranked([scene.catalog.recipes[name]])
    return candidate


def test_without_a_bound_full_attention_wins() -> None:
    made = make_plan(make_objective(), make_work())
    assert (made.chosen.named.name, made.reason) == ("full", BEST)
    assert made.chosen.misses == ()


def test_the_best_of_those_that_are_fast_enough_wins() -> None:
    work = make_work(4000)
    bound = predicted("tail", work).ttft_ms
    assert bound < predicted("full", work).ttft_ms
    made = make_plan(make_objective(ttft_ms=bound), work)
    assert (made.chosen.named.name, made.reason) == ("tail", BEST)
    assert make_plan(make_objective(ttft_ms=bound * 0.999), work).chosen.named.name == "sliding"


def test_time_per_token_counts_as_well() -> None:
    work = make_work(4000)
    assert predicted("sliding", work).tpot_ms < predicted("tail", work).tpot_ms == predicted("full", work).tpot_ms
    made = make_plan(make_objective(tpot_ms=predicted("sliding", work).tpot_ms), work)
    assert (made.chosen.named.name, made.reason) == ("sliding", BEST)


def test_when_none_is_fast_enough_the_fastest_that_is_good_enough_runs() -> None:
    work = make_work(4000)
    made = make_plan(make_objective(ttft_ms=1.0, min_quality=0.5), work)
    assert (made.chosen.named.name, made.reason) == ("tail", FASTEST)
    [miss] = made.chosen.misses
    assert miss == f"ttft {predicted('tail', work).ttft_ms:.0f} ms is above 1 ms"
    assert make_plan(make_objective(ttft_ms=1.0), work).chosen.named.name == "sliding"


def test_when_none_is_good_enough_the_best_runs() -> None:
    catalog = make_catalog()
    quality = replace(catalog.quality, recall={**catalog.quality.recall, "full": (1.0, 1.0)})
    recipes = {name: named for name, named in catalog.recipes.items() if name != "full"}
    made = plan(
        make_objective(min_quality=0.99),
        make_work(),
        replace(catalog, recipes=recipes, quality=quality),
        COST,
        BYTES_PER_TOKEN_LAYER,
    )
    assert (made.chosen.named.name, made.reason) == ("tail", NONE_GOOD)
    assert made.chosen.misses == ("quality 0.90 is below 0.99",)


def test_all_candidates_are_told_best_quality_first() -> None:
    made = make_plan(make_objective(min_quality=0.5), make_work())
    assert [c.named.name for c in made.candidates] == ["full", "tail", "sliding"]
    assert [c.meets for c in made.candidates] == [True, True, False]
    assert made.chosen in made.candidates


def test_no_more_recipes_are_weighed_than_the_choice_needs() -> None:
    """Each is a look into the future, and a gateway makes hundreds a second."""
    looked: list[str] = []

    def ranked(objective: Objective) -> Iterator[Candidate]:
        scene = make_scene(make_work(), **asdict(objective))
        for candidate in scene.ranked(scene.catalog.recipes.values()):
            looked.append(candidate.named.name)
            yield candidate

    assert choose(ranked(make_objective())) == (weighed(make_scene(make_work()), "full"), BEST)
    assert looked == ["full"]
    looked.clear()
    choose(ranked(make_objective(ttft_ms=0.0)))
    assert looked == ["full", "tail", "sliding"]


def test_among_equals_in_quality_the_least_work_wins() -> None:
    catalog = make_catalog()
    same = replace(catalog.quality, recall=dict.fromkeys(catalog.recipes, (1.0, 1.0)))
    made = plan(make_objective(), make_work(4000), replace(catalog, quality=same), COST, BYTES_PER_TOKEN_LAYER)
    assert made.chosen.named.name == "sliding"
    assert [c.prediction.work_ms for c in made.candidates] == sorted(c.prediction.work_ms for c in made.candidates)


def refused(objective: Objective, work: Work) -> SlaUnattainable:
    with pytest.raises(SlaUnattainable) as caught:
        make_plan(objective, work)
    return caught.value


def test_strict_refuses_what_even_an_idle_replica_would_miss_without_a_time_to_ask_again() -> None:
    objective = make_objective(ttft_ms=1.0, min_quality=0.5, strict=True)
    error = refused(objective, make_work(4000))
    assert str(error).startswith("strict: no recipe ever meets it here; 'tail' is the nearest, but its predicted ttft")
    assert str(error).endswith("ms is above 1 ms, even if idle")
    assert error.wait_ms == pytest.approx(0.0)
    assert error.retry_after_ms is None
    assert refused(objective, make_work(4000, backlog=BUSY)).retry_after_ms is None
    bound = predicted("tail", make_work(4000)).ttft_ms
    made = make_plan(make_objective(ttft_ms=bound, min_quality=0.5, strict=True), make_work(4000))
    assert made.chosen.named.name == "tail"


def test_strict_refuses_what_would_wait_too_long_and_says_when_it_would_not() -> None:
    alone = predicted("full", make_work(4000)).ttft_ms
    work = make_work(4000, backlog=BUSY)
    objective = make_objective(ttft_ms=alone + 1.0, min_quality=1.0, strict=True, priority=0)
    error = refused(objective, work)
    assert error.retry_after_ms == pytest.approx(max(Forecast(BUSY, steps_of(COST)).first_tokens_ms))
    assert "'full' is the nearest recipe, but its predicted ttft" in str(error)
    assert f"with a wait of {error.wait_ms:.0f} ms; try again in {error.retry_after_ms:.0f} ms" in str(error)
    assert make_plan(replace(objective, strict=False), work).reason == FASTEST


def test_strict_refuses_what_would_break_a_promise_and_lower_ones_do_not_count() -> None:
    promised = PendingTurn("a", 1000, 1000.0, 6000.0, 5)
    work = make_work(4000, backlog=Backlog((promised,)))
    alone = predicted("full", make_work(4000)).ttft_ms
    objective = make_objective(ttft_ms=alone + 3000.0, min_quality=1.0, priority=5, strict=True)
    assert "harm to 1 promised before" in str(refused(objective, work))
    assert make_plan(replace(objective, priority=6), work).chosen.prediction.num_harmed == 0


def test_answers_that_are_in_the_way_end_nobody_knows_when() -> None:
    slow = Backlog(decoding=(DecodingTurn("d", None, 0),), decode_step_ms=400.0)
    bound = predicted("full", make_work(1000)).tpot_ms
    error = refused(make_objective(tpot_ms=bound, min_quality=1.0, strict=True), make_work(1000, backlog=slow))
    assert error.retry_after_ms == 1000.0


def test_a_named_recipe_skips_the_choice_but_not_the_figures() -> None:
    made = make_plan(make_objective(recipe_name="sliding", min_quality=0.5), make_work())
    assert (made.chosen.named.name, made.reason) == ("sliding", "asked for by x-swaa-recipe")
    assert made.chosen.misses == ("quality 0.20 is below 0.50",)
    with pytest.raises(SlaUnattainable, match="'sliding'"):
        make_plan(make_objective(recipe_name="sliding", min_quality=0.5, strict=True), make_work())
    with pytest.raises(InvalidRequest, match="x-swaa-recipe is 'best'"):
        make_plan(make_objective(recipe_name="best"), make_work())


def test_the_figures_of_a_first_turn() -> None:
    figures = predicted("full", make_work(1000, max_tokens=200))
    pairs = NUM_LAYERS * 1000 * 1001 // 2
    assert figures.ttft_ms == pytest.approx(10.0 + 1000 * 0.1 + pairs * 1e-3)
    assert figures.tpot_ms == pytest.approx(5.0 + NUM_LAYERS * 1101 * 1e-3)  # half way through the answer
    assert figures.kv_bytes == NUM_LAYERS * 1000 * BYTES_PER_TOKEN_LAYER
    assert figures.computed_tokens == 1000
    assert figures.quality == 1.0


BUSY = Backlog((PendingTurn("a", 5000, 5000.0, None, 10), PendingTurn("b", 3000, 3000.0, 90_000.0, 10)))


def test_others_and_time_that_has_passed_put_the_first_token_off() -> None:
    alone, behind = predicted("tail", make_work()), predicted("tail", make_work(backlog=BUSY))
    assert alone.wait_ms == pytest.approx(0.0)
    assert behind.work_ms == alone.work_ms
    assert behind.wait_ms > 1000.0
    assert behind.ttft_ms == pytest.approx(alone.ttft_ms + behind.wait_ms)
    assert behind.tpot_ms == alone.tpot_ms
    later = predicted("tail", make_work(spent_ms=300.0))
    assert later.ttft_ms == pytest.approx(alone.ttft_ms + 300.0)
    assert later.wait_ms == pytest.approx(300.0)
    beside = predicted("tail", make_work(spent_ms=300.0, beside_ms=40.0))
    assert beside.ttft_ms == pytest.approx(later.ttft_ms + 40.0)
    assert beside.wait_ms == pytest.approx(340.0)


def test_answers_that_run_make_each_token_slower() -> None:
    batch = Backlog(decoding=(DecodingTurn("d", None, 0),), decode_step_ms=50.0)
    alone, beside = predicted("tail", make_work()), predicted("tail", make_work(backlog=batch))
    assert beside.tpot_ms == pytest.approx(50.0 + alone.tpot_ms - COST.decode_step_ms)
    assert beside.ttft_ms > alone.ttft_ms


def test_a_backlog_steps_quality_down_but_not_below_the_floor() -> None:
    bound = predicted("full", make_work(4000)).ttft_ms + 1.0
    assert make_plan(make_objective(ttft_ms=bound), make_work(4000)).chosen.named.name == "full"
    work = make_work(4000, backlog=BUSY)
    busy = make_plan(make_objective(ttft_ms=bound), work)
    assert (busy.chosen.named.name, busy.reason) == ("tail", f"{BEST}, as 2 wait less time counts, too")
    floor = make_plan(make_objective(ttft_ms=bound, min_quality=1.0), work)
    assert (floor.chosen.named.name, floor.reason) == ("full", FASTEST)


def waiting(count: int) -> Backlog:
    """Turns that are in nobody's way: each is as good as done, and due at no particular time."""
    return Backlog(tuple(PendingTurn(str(index), 1, 1.0, None, 0) for index in range(count)))


def test_the_more_wait_the_more_quality_is_given_for_their_time() -> None:
    """Full attention does better by 0.25, and takes 32 s where the other takes 1 s."""
    objective, alone = make_objective(ttft_ms=300_000.0, min_quality=0.5), make_work(4000)
    assert predicted("full", alone).work_ms - predicted("tail", alone).work_ms == pytest.approx(31_637.0, rel=0.01)
    chosen = [make_plan(objective, make_work(4000, backlog=waiting(count))).chosen.named.name for count in range(5)]
    assert chosen == ["full", "full", "full", "tail", "tail"]
    assert (
        make_plan(replace(objective, min_quality=0.9), make_work(4000, backlog=waiting(9))).chosen.named.name == "full"
    )
    patient = replace(objective, ttft_ms=3e6)
    assert make_plan(patient, make_work(4000, backlog=waiting(4))).chosen.named.name == "full"


def test_on_an_idle_replica_those_count_who_come_while_a_turn_runs() -> None:
    objective, work = make_objective(ttft_ms=40_000.0), make_work(4000)
    assert make_plan(objective, work).chosen.named.name == "full", "nobody comes"
    coming = make_plan(objective, replace(work, backlog=Backlog(arrivals_per_s=0.001)))
    assert coming.reason == f"{BEST}, as others come less time counts, too"
    names = []
    for rate in (0.01, 1.0, 1000.0):
        [*ranked] = make_scene(replace(work, backlog=Backlog(arrivals_per_s=rate)), ttft_ms=40_000.0).ranked(
            make_catalog().recipes.values()
        )
        names.append(ranked[0].named.name)
    assert names[0] == "full"
    assert names[-1] == min(ranked, key=lambda candidate: candidate.prediction.work_ms).named.name


def test_candidates_are_told_by_quality_whoever_waits() -> None:
    made = make_plan(make_objective(ttft_ms=40_000.0), make_work(4000, backlog=waiting(9)))
    assert made.chosen.named.name != "full"
    assert [candidate.named.name for candidate in made.candidates] == ["full", "tail", "sliding"]


def test_a_saved_session_spares_its_own_recipe_the_history() -> None:
    history = make_manifest("tail", num_tokens=2000, num_bytes=3 << 20)
    work = make_work(100, history=history, continues=True)
    same, other = predicted("tail", work), predicted("sliding", work)
    assert same.computed_tokens == 100 + 1  # the last generated token has no KV
    assert other.computed_tokens == 2100
    seeing_all = NUM_LAYERS * (2000 + sum(range(2085, 2100 + 1)))  # that token, and the prompt's tail
    sliding = NUM_LAYERS * 84 * (64 + 4)
    assert same.ttft_ms == pytest.approx(3 * 2.0 + 10.0 + 101 * 0.1 + seeing_all * 1e-3 + sliding * 1e-4)
    slower = predicted("tail", work, replace(COST, restore_ms_per_mib=12.0))
    assert slower.ttft_ms == pytest.approx(same.ttft_ms + 3 * 10.0)
    assert predicted("sliding", work, replace(COST, restore_ms_per_mib=12.0)) == other


def test_a_state_in_memory_costs_nothing_to_restore_but_only_the_sessions_own() -> None:
    work = make_work(100, history=make_manifest("tail", num_tokens=2000, num_bytes=3 << 20), continues=True)
    hot = replace(work, is_hot=True)
    assert predicted("tail", hot).ttft_ms == pytest.approx(predicted("tail", work).ttft_ms - 3 * 2.0)
    assert predicted("tail", hot).restore.kind == "hot"
    assert predicted("sliding", hot) == predicted("sliding", work)


def test_a_prefix_spares_its_tokens() -> None:
    state = SavedState("prefix", 800, make_manifest("full", 800, 1 << 20).segments, "raw")
    alone, spared = make_work(1000), make_work(1000, states={"full": state})
    assert predicted("full", spared).computed_tokens == 200
    assert predicted("full", spared).ttft_ms < predicted("full", alone).ttft_ms
    assert predicted("tail", spared) == predicted("tail", alone)


def test_a_saved_session_changes_the_choice() -> None:
    history = make_manifest("full", num_tokens=4000)
    work = make_work(100, history=history, continues=True)
    bound = predicted("full", work).ttft_ms
    assert make_plan(make_objective(ttft_ms=bound), work).chosen.named.name == "full"
    assert make_plan(make_objective(ttft_ms=bound), make_work(4100)).chosen.named.name != "full"


def test_quality_is_that_of_history_and_prompt_together() -> None:
    work = make_work(2000, history=make_manifest(num_tokens=2000), continues=True)
    assert predicted("tail", work).quality == pytest.approx(0.6 / 0.8)


def test_a_session_keeps_what_its_next_turn_may_look_back_at() -> None:
    catalog = make_catalog()
    named = replace(catalog.recipes["tail"], recipe=replace(catalog.recipes["tail"].recipe, full_decode=False))
    named = replace(named, rules=named.recipe.resolve(NUM_LAYERS))
    once = make_scene(make_work(1000), catalog).alone(named)
    session = make_scene(make_work(1000, continues=True), catalog).alone(named)
    assert once.kv_bytes == NUM_LAYERS * (4 + 63) * BYTES_PER_TOKEN_LAYER
    assert session.kv_bytes == NUM_LAYERS * 1000 * BYTES_PER_TOKEN_LAYER


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((100.0, 10.0, 0.5), ()),
        ((100.01, 10.0, 0.5), ("ttft 100 ms is above 100 ms",)),
        ((99.0, 12.34, 0.5), ("tpot 12.3 ms is above 10.0 ms",)),
        ((99.0, 9.0, 0.25), ("quality 0.25 is below 0.50",)),
        ((99.0, 9.0, None), ()),
        (
            (200.0, 20.0, 0.0),
            ("ttft 200 ms is above 100 ms", "tpot 20.0 ms is above 10.0 ms", "quality 0.00 is below 0.50"),
        ),
    ],
)
def test_misses_are_told_in_words(figures: tuple[float, float, float | None], expected: tuple[str, ...]) -> None:
    objective = make_objective(ttft_ms=100.0, tpot_ms=10.0, min_quality=0.5)
    assert misses(objective, *figures) == expected


works = st.builds(
    make_work,
    st.integers(1, 6000),
    max_tokens=st.integers(1, 500),
    spent_ms=st.sampled_from([0.0, 200.0]),
    backlog=st.builds(
        Backlog,
        st.lists(
            st.builds(
                PendingTurn,
                st.just("p"),
                st.integers(1, 8000),
                st.floats(1.0, 8000.0),
                st.none() | st.floats(-10.0, 20_000.0),
                st.integers(0, 20),
            ),
            max_size=4,
        ).map(tuple),
        st.lists(
            st.builds(DecodingTurn, st.just("d"), st.none() | st.floats(5.0, 200.0), st.integers(0, 20)), max_size=2
        ).map(tuple),
        st.floats(0.0, 40.0),
        arrivals_per_s=st.floats(0.0, 2.0),
    ),
)
objectives = st.builds(
    make_objective,
    ttft_ms=st.floats(1.0, 60_000.0),
    tpot_ms=st.floats(1.0, 100.0),
    min_quality=st.sampled_from([0.0, 0.3, 0.7, 0.95]),
    priority=st.integers(0, 20),
)


def worth(candidate: Candidate, objective: Objective, work: Work) -> float:
    """Quality where nobody waits or comes; else less of it for what the turn takes of each other's time."""
    figures, backlog = candidate.prediction, work.backlog
    to_come = backlog.arrivals_per_s / 1e3 * (backlog.pending_ms + figures.work_ms / 2)
    return figures.quality * objective.ttft_ms - (len(backlog.pending) + to_come) * figures.work_ms


@settings(max_examples=60)
@given(objectives, works)
def test_the_choice_is_the_best_of_those_that_meet_and_strict_accepts_nothing_else(
    objective: Objective, work: Work
) -> None:
    made = make_plan(objective, work)
    meeting = [c for c in made.candidates if c.meets]
    if meeting:
        assert made.chosen.meets
        assert worth(made.chosen, objective, work) == max(worth(c, objective, work) for c in meeting)
        assert make_plan(replace(objective, strict=True), work).chosen == made.chosen
    else:
        assert made.reason in (FASTEST, NONE_GOOD)
        error = refused(replace(objective, strict=True), work)
        assert error.retry_after_ms is None or error.retry_after_ms >= 0.0
        assert error.wait_ms >= 0.0
