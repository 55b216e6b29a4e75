"""A connection that is missing, or open without need, is found."""

from __future__ import annotations

import re

import pytest

from tests.k8s import network
from tests.k8s.broken import Case, checks_of, one, problems, without
from tests.k8s.network import check_connections

pytestmark = pytest.mark.k8s

CASES: dict[str, Case] = {
    "no way to DNS": (
        check_connections,
        without("NetworkPolicy", "dns"),
        r"swaa-gateway to dns, UDP 53 is not allowed",
    ),
    "no way to Redis": (
        check_connections,
        without("NetworkPolicy", "redis"),
        r"swaa-replica-replicas to swaa-redis, TCP 6379 is not allowed",
    ),
    "no way to replicas": (
        check_connections,
        lambda m: one(m, "NetworkPolicy", "gateway")["spec"]["egress"][0]["ports"].pop(),
        r"swaa-gateway to swaa-replica-replicas, TCP 9100 is not allowed",
    ),
    "no way between Ray's pods": (
        check_connections,
        lambda m: one(m, "NetworkPolicy", "replica")["spec"]["ingress"].pop(0),
        r"swaa-replica-head to swaa-replica-replicas, TCP 20000 is not allowed",
    ),
    "no way for Prometheus": (
        check_connections,
        without("NetworkPolicy", "metrics"),
        r"prometheus to swaa-replica-replicas, TCP 8080 is not allowed",
    ),
    "no way for Prometheus to the engines' metrics": (
        check_connections,
        lambda m: one(m, "NetworkPolicy", "metrics")["spec"]["ingress"][0]["ports"].pop(),
        r"prometheus to swaa-replica-replicas, TCP 8081 is not allowed",
    ),
    "no way for Prometheus to gateways": (
        check_connections,
        without("NetworkPolicy", "gateway-metrics"),
        r"prometheus to swaa-gateway, TCP 8081 is not allowed",
    ),
    "metrics of gateways for everybody": (
        check_connections,
        lambda m: one(m, "NetworkPolicy", "gateway")["spec"]["ingress"][0]["ports"].append(
            {"protocol": "TCP", "port": 8081}
        ),
        r"client to swaa-gateway, TCP 8081 is allowed",
    ),
    "no way for the autoscaler": (
        check_connections,
        without("NetworkPolicy", "autoscaler"),
        r"swaa-replica-head to internet, TCP 443 is not allowed",
    ),
    "nothing denied": (
        check_connections,
        lambda m: m.__setitem__(slice(None), [x for x in m if x["kind"] != "NetworkPolicy"]),
        r"client to swaa-redis, TCP 6379 is allowed",
    ),
    "a dashboard for everybody": (
        check_connections,
        lambda m: one(m, "NetworkPolicy", "replica")["spec"]["ingress"].append({}),
        r"client to swaa-replica-head, TCP 8265 is allowed",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_broken_manifest_is_found(case: Case) -> None:
    check, change, problem = case
    found = problems(check, change)
    assert any(re.search(problem, text) for text in found), found


def test_every_check_has_a_case() -> None:
    assert {check for check, _, _ in CASES.values()} == set(checks_of(network))
