"""Every header: what it may be, what it does, and what is said of it when it is wrong."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.sla import HEADERS, IDEMPOTENCY_HEADER, Objective, TenantPolicy, parse_headers
from swaa_runtime.errors import InvalidRequest

from .builders import CLASSES

INTEGER_BOUND = "must be an integer"
MS_BOUND = "must be a number of milliseconds above 0"
QUALITY_BOUND = "must be a number in 0..1"


def parse(*metadata: tuple[str, str | bytes], tenant: TenantPolicy = TenantPolicy()) -> Objective:  # noqa: B008
    return parse_headers(metadata, CLASSES, tenant)


def test_without_headers_the_balanced_class_holds() -> None:
    assert parse() == Objective("balanced", 1000.0, 100.0, 0.5, 10, strict=False, recipe_name=None, session_id=None)


def test_headers_of_others_are_ignored() -> None:
    assert parse(("user-agent", "grpc"), ("authorization", "x"), ("x-request-id", "7"), ("x-sla", "no")) == parse()


def test_a_class_is_taken_whole() -> None:
    assert parse(("x-swaa-sla", "interactive")) == Objective("interactive", 100.0, 10.0, 0.0, 20)


def test_each_header_overrides_its_part_of_the_class() -> None:
    objective = parse(
        ("x-slo-ttft-ms", "0.5"),
        ("x-slo-tpot-ms", "1e3"),
        ("x-swaa-min-quality", "1"),
        ("x-swaa-session", "new"),
        ("x-swaa-priority", "-3"),
        ("x-swaa-recipe", "full"),
        ("x-swaa-strict", "true"),
    )
    assert objective == Objective("balanced", 0.5, 1000.0, 1.0, -3, True, "full", "new")


@pytest.mark.parametrize("header", ["x-slo-ttft-ms", "x-slo-tpot-ms"])
@pytest.mark.parametrize("value", ["", "fast", "10ms", "0", "-0.0", "-5", "nan", "inf", "-inf", "1,5", "0x10"])
def test_latencies_are_numbers_above_0(header: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse((header, value))
    assert (caught.value.field, caught.value.value, caught.value.bound) == (header, value, MS_BOUND)


@pytest.mark.parametrize("value", ["", "high", "-0.01", "1.01", "nan", "inf", "-inf", "50%"])
def test_quality_is_a_number_in_0_to_1(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(("x-swaa-min-quality", value))
    assert (caught.value.field, caught.value.value, caught.value.bound) == ("x-swaa-min-quality", value, QUALITY_BOUND)


@pytest.mark.parametrize(("value", "expected"), [("0", 0.0), ("1", 1.0), ("0.25", 0.25)])
def test_the_ends_of_the_quality_range_are_allowed(value: str, expected: float) -> None:
    assert parse(("x-swaa-min-quality", value)).min_quality == expected


@pytest.mark.parametrize("value", ["", "first", "1.5", "nan", "inf", str(2**31), str(-(2**31)), "9" * 5000])
def test_priority_is_an_integer_of_32_bits(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(("x-swaa-priority", value))
    assert caught.value.field == "x-swaa-priority"
    assert caught.value.bound.startswith(INTEGER_BOUND)


@pytest.mark.parametrize(("value", "expected"), [("-100", -100), ("0", 0), ("9", 9), ("10", 10), ("11", 10)])
def test_priority_is_only_lowered(value: str, expected: int) -> None:
    assert parse(("x-swaa-priority", value)).priority == expected


def test_a_tenants_priority_is_capped() -> None:
    capped = TenantPolicy(max_priority=5)
    assert parse(("x-swaa-sla", "interactive"), tenant=capped).priority == 5
    assert parse(("x-swaa-sla", "quality"), tenant=capped).priority == 0
    assert parse(("x-swaa-priority", "3"), tenant=capped).priority == 3
    assert parse(("x-swaa-priority", "9"), tenant=capped).priority == 5


def test_a_class_that_is_not_the_tenants_is_refused_and_its_own_are_named() -> None:
    tenant = TenantPolicy(sla_classes=frozenset({"quality", "interactive"}))
    assert parse(("x-swaa-sla", "quality"), tenant=tenant).sla_class == "quality"
    with pytest.raises(InvalidRequest) as caught:
        parse(tenant=tenant)  # the class that holds without a header is a class as well
    assert (caught.value.field, caught.value.value) == ("x-swaa-sla", "balanced")
    assert caught.value.bound == "not open to this tenant, which may use interactive, quality"
    with pytest.raises(InvalidRequest, match=r"known are interactive, quality$"):
        parse(("x-swaa-sla", "gold"), tenant=tenant)


@pytest.mark.parametrize("value", ["", "True", "TRUE", "1", "yes", "strict", " true"])
def test_strict_is_true_or_false(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"x-swaa-strict is '.*': must be 'true' or 'false'"):
        parse(("x-swaa-strict", value))
    assert parse(("x-swaa-strict", "false")).strict is False


@pytest.mark.parametrize("value", ["", "Balanced", "gold"])
def test_an_unknown_class_is_refused_and_the_known_ones_are_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match="balanced, interactive, quality") as caught:
        parse(("x-swaa-sla", value))
    assert (caught.value.field, caught.value.value) == ("x-swaa-sla", value)


@pytest.mark.parametrize("name", ["x-swaa-foo", "x-slo-itl-ms", "x-swaa-", "x-slo-", "x-swaa-sla-bin", "x-slo-ttft"])
def test_an_unknown_header_of_ours_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="unknown header; known are x-swaa-sla, x-slo-ttft-ms") as caught:
        parse((name, b"\x00" if name.endswith("-bin") else "1"))
    assert caught.value.field == name


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_given_twice_is_refused_even_if_equal(name: str) -> None:
    valid = {"x-swaa-sla": "quality", "x-swaa-strict": "true"}.get(name, "1")
    parse((name, valid))
    with pytest.raises(InvalidRequest, match=f"{name} is '{valid}': is given twice"):
        parse((name, valid), ("user-agent", "x"), (name, valid))


anything = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=8),
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(["quality", "true", "false", "new"]),
)
names = st.one_of(st.sampled_from([*HEADERS, "x-swaa-nope", "user-agent"]), st.text(max_size=12))


tenants = st.builds(
    TenantPolicy,
    max_priority=st.integers(-100, 100),
    sla_classes=st.none() | st.frozensets(st.sampled_from(sorted(CLASSES))),
)


@given(st.lists(st.tuples(names, anything), max_size=6), tenants)
@example([("x-swaa-priority", "1" * 5000)], TenantPolicy())
@example([("x-slo-ttft-ms", b"\xff\xfe")], TenantPolicy())
def test_any_headers_give_an_objective_within_bounds_or_a_refusal(
    metadata: list[tuple[str, str | bytes]], tenant: TenantPolicy
) -> None:
    refusal = None
    try:
        objective = parse_headers(metadata, CLASSES, tenant)
    except InvalidRequest as exc:
        refusal = exc
    if refusal is not None:
        assert refusal.field.startswith(("x-swaa-", "x-slo-"))
        return
    sla = CLASSES[objective.sla_class]
    assert 0 < objective.ttft_ms < float("inf")
    assert 0 < objective.tpot_ms < float("inf")
    assert 0 <= objective.min_quality <= 1
    assert -(2**31) < objective.priority <= min(sla.priority, tenant.max_priority)
    assert tenant.allows(objective.sla_class)


@given(st.text(alphabet=[chr(code) for code in range(0x20, 0x7F)], min_size=1, max_size=128))
def test_a_printable_key_is_kept(key: str) -> None:
    assert parse((IDEMPOTENCY_HEADER, key)).idempotency_key == key


@given(st.text().filter(lambda key: not (1 <= len(key) <= 128 and key.isascii() and key.isprintable())))
def test_any_other_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match=r"must be 1\.\.128 printable ASCII characters") as caught:
        parse((IDEMPOTENCY_HEADER, key))
    assert caught.value.field == IDEMPOTENCY_HEADER
