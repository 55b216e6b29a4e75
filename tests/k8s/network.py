"""Who may talk to whom, by the NetworkPolicies; and who must, and must not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.manifests import GATEWAY, HEAD, REDIS, WORKER, Manifest, of_kind, pods, selects


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a connection. What is outside the cluster has neither namespace nor labels."""

    namespace: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connection:
    """From a peer to a port of another, both by name."""

    source: str
    target: str
    port: int
    protocol: str = "TCP"

    def __str__(self) -> str:
        return f"{self.source} to {self.target}, {self.protocol} {self.port}"


OUTSIDERS = {
    "internet": Peer(),
    "client": Peer("default"),
    "operator": Peer("kuberay", {"app.kubernetes.io/name": "kuberay-operator"}),
    "prometheus": Peer("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "dns": Peer("kube-system", {"k8s-app": "kube-dns"}),
}

SOME_RAY_PORT = 20000  # of those that Ray picks at random

NEEDED = (
    Connection("client", GATEWAY, 50051),
    Connection("client", GATEWAY, 8080),
    Connection(GATEWAY, WORKER, 9000),
    Connection(GATEWAY, WORKER, 9100),
    Connection(GATEWAY, REDIS, 6379),
    Connection(WORKER, REDIS, 6379),
    Connection(HEAD, REDIS, 6379),
    *(Connection(source, target, SOME_RAY_PORT) for source in (HEAD, WORKER) for target in (HEAD, WORKER)),
    Connection("operator", HEAD, 8265),
    Connection("operator", HEAD, 8000),
    Connection(HEAD, "internet", 443),  # the API server: policies cannot name it
    Connection(HEAD, "internet", 6443),
    *(Connection(source, "dns", 53, protocol) for source in (GATEWAY, HEAD, WORKER) for protocol in ("UDP", "TCP")),
)
NEEDED_BY_MONITORS = (
    Connection("prometheus", HEAD, 8080),
    Connection("prometheus", WORKER, 8080),
    Connection("prometheus", WORKER, 8081),
    Connection("prometheus", GATEWAY, 8081),
)

FORBIDDEN = (
    Connection("client", REDIS, 6379),
    Connection("client", GATEWAY, 8081),
    Connection("client", WORKER, 9100),
    Connection("client", WORKER, 9000),
    Connection("client", WORKER, 8081),
    Connection("client", HEAD, 8265),  # whoever submits a job there runs code
    Connection(GATEWAY, HEAD, 8265),
    Connection(REDIS, WORKER, 9100),
    *(Connection(source, "internet", 443) for source in (GATEWAY, WORKER, REDIS)),
)


def check_connections(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The policies allow what is needed, and not what must not be."""
    needed = NEEDED + (NEEDED_BY_MONITORS if of_kind(manifests, "ServiceMonitor") else ())
    yield from (f"{connection} is not allowed" for connection in needed if not allowed(manifests, connection))
    yield from (f"{connection} is allowed" for connection in FORBIDDEN if allowed(manifests, connection))


def allowed(manifests: Sequence[Manifest], connection: Connection) -> bool:
    """Whether policies at both ends let the connection through."""
    peers = OUTSIDERS | {pod.name: Peer("swaa", pod.labels) for pod in pods(manifests)}
    source, target = peers[connection.source], peers[connection.target]
    policies = of_kind(manifests, "NetworkPolicy")
    return _passes(policies, "Egress", source, target, connection) and _passes(
        policies, "Ingress", target, source, connection
    )


def _passes(policies: Sequence[Manifest], way: str, own: Peer, other: Peer, connection: Connection) -> bool:
    """Whether the policies of one end do. A peer that no policy selects may do everything."""
    specs = [
        policy["spec"]
        for policy in policies
        if policy["metadata"].get("namespace") == own.namespace
        and way in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"].get("matchLabels", {}), own.labels)
    ]
    others = "from" if way == "Ingress" else "to"
    return not specs or any(
        _allows(rule, others, own, other, connection) for spec in specs for rule in spec.get(way.lower(), ())
    )


def _allows(rule: dict[str, Any], others: str, own: Peer, other: Peer, connection: Connection) -> bool:
    """Whether one rule does; a rule without peers, or without ports, means all of them."""
    port = {"protocol": connection.protocol, "port": connection.port}
    return ("ports" not in rule or port in rule["ports"]) and (
        others not in rule or any(_is(peer, own, other) for peer in rule[others])
    )


def _is(peer: dict[str, Any], own: Peer, other: Peer) -> bool:
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        in_namespace = selects(
            peer["namespaceSelector"].get("matchLabels", {}), {"kubernetes.io/metadata.name": other.namespace}
        )
    else:
        in_namespace = other.namespace == own.namespace
    return in_namespace and selects(peer.get("podSelector", {}).get("matchLabels", {}), other.labels)
