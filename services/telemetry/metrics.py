"""What a gateway counts of its answers, and any process of its store. One registry a process, passed by hand.

Labels have few values: recipes and classes by the catalogue's names, kinds and results by names that stand here.
Nothing that a client writes becomes a label. Units are base units: seconds, bytes, tokens.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120)
TPOT_BUCKETS_S = (0.002, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)
STORE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RATIO_BUCKETS = (0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)

RESTORES = ("none", "hot", "restored", "mixed", "prefix", "recomputed", "replayed", "recovered")
"""How a turn's history came back: the first word of what `Finish` tells of it."""


class AnswerMetrics:
    """Of a gateway."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Raises ValueError if the registry has them already."""
        by = ("recipe", "sla_class")
        self.requests = Counter(
            "swaa_requests", "Turns that ended, by gRPC's name of how", ("status", "sla_class"), registry=registry
        )
        self.running = Gauge("swaa_answers_running", "Turns that this gateway is busy with", registry=registry)
        self.ttft_s = Histogram(
            "swaa_ttft_seconds", "From arrival to the first token", by, buckets=TTFT_BUCKETS_S, registry=registry
        )
        self.tpot_s = Histogram(
            "swaa_tpot_seconds", "Per token after the first, mean", by, buckets=TPOT_BUCKETS_S, registry=registry
        )
        self.queue_s = Histogram(
            "swaa_queue_seconds", "Waited for the engine", ("sla_class",), buckets=TTFT_BUCKETS_S, registry=registry
        )
        self.prompt_tokens = Counter("swaa_prompt_tokens", "New tokens of prompts", ("recipe",), registry=registry)
        self.generated_tokens = Counter("swaa_generated_tokens", "Tokens of answers", ("recipe",), registry=registry)
        self.restored_tokens = Counter(
            "swaa_restored_tokens", "Tokens whose KV was not computed again", ("recipe",), registry=registry
        )
        self.sla = Counter(
            "swaa_sla_requests", "Turns that ended well, by whether they met their SLA", (*by, "met"), registry=registry
        )
        self.prediction = Histogram(
            "swaa_ttft_prediction_ratio",
            "Predicted over measured time to first token",
            ("recipe",),
            buckets=RATIO_BUCKETS,
            registry=registry,
        )
        self.refusals = Counter("swaa_refusals", "Turns not taken, and why", ("sla_class", "reason"), registry=registry)
        self.restores = Counter("swaa_restores", "How turns of sessions got their KV", ("kind",), registry=registry)
        self.saves = Counter(
            "swaa_session_saves", "Turns of sessions, by whether they are saved", ("result",), registry=registry
        )
        self.saved_bytes = Counter("swaa_session_saved", "Stored for sessions", unit="bytes", registry=registry)
        self.replicas_lost = Counter("swaa_replicas_lost", "Replicas lost under a turn", registry=registry)
        self.failovers = Counter("swaa_failovers", "Turns that went on on another replica", registry=registry)


class AuthenticationMetrics:
    """Of a gateway that asks for credentials."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Raises ValueError if the registry has them already."""
        self.refused = Counter(
            "swaa_unauthenticated", "Requests refused for want of valid credentials", ("reason",), registry=registry
        )


class QuotaMetrics:
    """Of a gateway that holds tenants to their quotas. Those that the catalogue does not name are told as "other"."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Raises ValueError if the registry has them already."""
        self.refused = Counter(
            "swaa_quota_refusals", "Requests refused by a quota", ("tenant", "quota"), registry=registry
        )
        self.unchecked = Counter(
            "swaa_quota_unchecked", "Requests taken unchecked, as Redis did not answer", ("tenant",), registry=registry
        )


class StoreMetrics:
    """Of a store of sessions, as this process sees it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Raises ValueError if the registry has them already."""
        self.duration_s = Histogram(
            "swaa_store_seconds",
            "Calls of the session store",
            ("operation",),
            buckets=STORE_BUCKETS_S,
            registry=registry,
        )
        self.errors = Counter(
            "swaa_store_errors", "Calls that the store did not answer", ("operation",), registry=registry
        )


def restore_kind(history: str) -> str:
    """The kind of a turn's restore, of RESTORES, from what is told in words."""
    kind = history.partition(":")[0]
    return kind if kind in RESTORES else "other"
