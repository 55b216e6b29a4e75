"""Request headers to an objective. Pure: no gRPC types, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.quota import NO_QUOTA, Quota
from swaa_runtime.errors import InvalidRequest

SLA_HEADER = "x-swaa-sla"
TTFT_HEADER = "x-slo-ttft-ms"
TPOT_HEADER = "x-slo-tpot-ms"
MIN_QUALITY_HEADER = "x-swaa-min-quality"
SESSION_HEADER = "x-swaa-session"
PRIORITY_HEADER = "x-swaa-priority"
RECIPE_HEADER = "x-swaa-recipe"
STRICT_HEADER = "x-swaa-strict"
IDEMPOTENCY_HEADER = "x-swaa-idempotency-key"
HEADERS = (
    SLA_HEADER,
    TTFT_HEADER,
    TPOT_HEADER,
    MIN_QUALITY_HEADER,
    SESSION_HEADER,
    PRIORITY_HEADER,
    RECIPE_HEADER,
    STRICT_HEADER,
    IDEMPOTENCY_HEADER,
)
MAX_KEY_CHARACTERS = 128
NEW_SESSION = "new"
DEFAULT_SLA_CLASS = "balanced"
DEFAULT_TENANT = "default"
MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SlaClass:
    """A named objective."""

    name: str
    description: str
    ttft_ms: float
    tpot_ms: float
    min_quality: float
    priority: int


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What a tenant may ask for.

    Attributes:
        max_priority: the highest priority its requests run at, whatever their class has.
        sla_classes: names of the classes it may name; None: all.
        quota: how much of the service it may use.
    """

    max_priority: int = MAX_PRIORITY
    sla_classes: frozenset[str] | None = None
    quota: Quota = NO_QUOTA

    def allows(self, sla_class: str) -> bool:
        """Whether the tenant may ask for this class."""
        return self.sla_classes is None or sla_class in self.sla_classes


@dataclass(frozen=True, slots=True)
class Objective:
    """What one request asks for: its class, with its own headers over it; its idempotency key, empty without."""

    sla_class: str
    ttft_ms: float
    tpot_ms: float
    min_quality: float
    priority: int
    strict: bool = False
    recipe_name: str | None = None
    session_id: str | None = None
    idempotency_key: str = ""


def parse_headers(
    metadata: Iterable[tuple[str, str | bytes]], classes: Mapping[str, SlaClass], tenant: TenantPolicy
) -> Objective:
    """The objective that a request's headers state, within what its tenant may ask for.

    Raises:
        InvalidRequest: naming the header, for a value out of bounds, a class that is unknown or not the tenant's to
            use, or a header of ours that is unknown or given twice.
    """
    given: dict[str, str] = {}
    for name, value in metadata:
        if not name.startswith(("x-swaa-", "x-slo-")):
            continue
        if name not in HEADERS:
            raise InvalidRequest(name, value, f"unknown header; known are {', '.join(HEADERS)}")
        if name in given:
            raise InvalidRequest(name, value, "is given twice")
        given[name] = value if isinstance(value, str) else value.decode("utf-8", "replace")
    sla = _sla_class(given.get(SLA_HEADER, DEFAULT_SLA_CLASS), classes, tenant)
    return Objective(
        sla_class=sla.name,
        ttft_ms=_number(given, TTFT_HEADER, sla.ttft_ms),
        tpot_ms=_number(given, TPOT_HEADER, sla.tpot_ms),
        min_quality=_quality(given, sla.min_quality),
        priority=min(tenant.max_priority, sla.priority, _integer(given, PRIORITY_HEADER, sla.priority)),
        strict=_boolean(given, STRICT_HEADER),
        recipe_name=given.get(RECIPE_HEADER),
        session_id=given.get(SESSION_HEADER),
        idempotency_key=_key(given),
    )


def _sla_class(name: str, classes: Mapping[str, SlaClass], tenant: TenantPolicy) -> SlaClass:
    allowed = ", ".join(sorted(filter(tenant.allows, classes)))
    if name not in classes:
        raise InvalidRequest(SLA_HEADER, name, f"unknown SLA class; known are {allowed}")
    if not tenant.allows(name):
        raise InvalidRequest(SLA_HEADER, name, f"not open to this tenant, which may use {allowed}")
    return classes[name]


def _number(given: Mapping[str, str], header: str, default: float) -> float:
    if header not in given:
        return default
    try:
        value = float(given[header])
    except ValueError:
        raise InvalidRequest(header, given[header], "must be a number of milliseconds above 0") from None
    if not (value > 0 and math.isfinite(value)):
        raise InvalidRequest(header, given[header], "must be a number of milliseconds above 0")
    return value


def _quality(given: Mapping[str, str], default: float) -> float:
    if MIN_QUALITY_HEADER not in given:
        return default
    text = given[MIN_QUALITY_HEADER]
    try:
        value = float(text)
    except ValueError:
        raise InvalidRequest(MIN_QUALITY_HEADER, text, "must be a number in 0..1") from None
    if not 0.0 <= value <= 1.0:
        raise InvalidRequest(MIN_QUALITY_HEADER, text, "must be a number in 0..1")
    return value


def _integer(given: Mapping[str, str], header: str, default: int) -> int:
    try:
        value = int(given.get(header, default))
    except ValueError:
        raise InvalidRequest(header, given[header], "must be an integer") from None
    if abs(value) >= 2**31:
        raise InvalidRequest(header, given[header], "must be an integer of 32 bits")
    return value


def _key(given: Mapping[str, str]) -> str:
    if IDEMPOTENCY_HEADER not in given:
        return ""
    key = given[IDEMPOTENCY_HEADER]
    if not (1 <= len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise InvalidRequest(IDEMPOTENCY_HEADER, key, f"must be 1..{MAX_KEY_CHARACTERS} printable ASCII characters")
    return key


def _boolean(given: Mapping[str, str], header: str) -> bool:
    text = given.get(header, "false")
    if text not in ("true", "false"):
        raise InvalidRequest(header, text, "must be 'true' or 'false'")
    return text == "true"
