"""What would not be safe to run or to stop is found."""

from __future__ import annotations

import re

import pytest

from tests.k8s import operation
from tests.k8s.broken import Case, checks_of, cluster, container, environment, one, problems, serve, template
from tests.k8s.manifests import GATEWAY, HEAD, REDIS, WORKER, pod, ray_service
from tests.k8s.operation import (
    check_disruption,
    check_drain,
    check_exposure,
    check_labels,
    check_privileges,
    check_probes,
    check_resources,
    check_sizes,
)

pytestmark = pytest.mark.k8s

CASES: dict[str, Case] = {
    "root": (
        check_privileges,
        lambda m: template(m, GATEWAY)["securityContext"].update(runAsUser=0),
        r"swaa-gateway may run as root",
    ),
    "no seccomp": (
        check_privileges,
        lambda m: template(m, HEAD)["securityContext"].pop("seccompProfile"),
        r"swaa-replica-head has no seccomp profile",
    ),
    "an image that can be written": (
        check_privileges,
        lambda m: container(m, WORKER)["securityContext"].update(readOnlyRootFilesystem=False),
        r"swaa-replica-replicas: the container's security context",
    ),
    "a token for the API server": (
        check_privileges,
        lambda m: template(m, REDIS).pop("automountServiceAccountToken"),
        r"swaa-redis gets a token",
    ),
    "an autoscaler with privileges": (
        check_privileges,
        lambda m: cluster(m)["autoscalerOptions"].pop("securityContext"),
        r"Ray's autoscaler: its security context",
    ),
    "no memory limit": (
        check_resources,
        lambda m: container(m, REDIS)["resources"]["limits"].pop("memory"),
        r"swaa-redis: limits has no memory",
    ),
    "an unlimited emptyDir": (
        check_resources,
        lambda m: template(m, HEAD)["volumes"][0].update(emptyDir={}),
        r"swaa-replica-head: volume tmp has no size limit",
    ),
    "no name label": (
        check_labels,
        lambda m: pod(m, WORKER).labels.pop("app.kubernetes.io/part-of"),
        r"swaa-replica-replicas has no label app\.kubernetes\.io/part-of",
    ),
    "a probe that TLS would refuse": (
        check_probes,
        lambda m: container(m, GATEWAY).update(livenessProbe={"grpc": {"port": 50051}}),
        r"swaa-gateway: livenessProbe does not ask for /healthz",
    ),
    "a probe for liveness that fails without replicas": (
        check_probes,
        lambda m: container(m, GATEWAY)["livenessProbe"]["httpGet"].update(path="/readyz"),
        r"swaa-gateway: livenessProbe does not ask for /healthz",
    ),
    "a gateway without TLS": (
        check_exposure,
        lambda m: container(m, GATEWAY).update(
            env=[v for v in container(m, GATEWAY)["env"] if not v["name"].startswith("SWAA_TLS_")]
        ),
        r"swaa-gateway: listen is '0\.0\.0\.0:50051': can be reached from other machines, which needs TLS",
    ),
    "a gateway for whoever comes": (
        check_exposure,
        lambda m: container(m, GATEWAY).update(
            env=[v for v in container(m, GATEWAY)["env"] if v["name"] != "SWAA_API_KEYS_FILE"]
        ),
        r"swaa-gateway: listen is .*needs clients that show who they are",
    ),
    "a replica without TLS": (
        check_exposure,
        lambda m: container(m, WORKER).update(
            env=[v for v in container(m, WORKER)["env"] if not v["name"].startswith("SWAA_REPLICA_TLS_")]
        ),
        r"swaa-replica-replicas: replica_host is .*needs TLS at both ends",
    ),
    "a probe in KubeRay's way": (
        check_probes,
        lambda m: container(m, WORKER).update(readinessProbe={"tcpSocket": {"port": 9100}}),
        r"swaa-replica-replicas: readinessProbe stands in the way",
    ),
    "a gateway killed while it drains": (
        check_drain,
        lambda m: template(m, GATEWAY).update(terminationGracePeriodSeconds=30),
        r"swaa-gateway is killed before its drain of 10 \+ 120 s",
    ),
    "a worker drained too fast": (
        check_drain,
        lambda m: container(m, WORKER)["lifecycle"]["preStop"]["exec"].update(
            command=["ray drain-node --deadline-remaining-seconds 60"]
        ),
        r"swaa-replica-replicas is drained by Ray before",
    ),
    "a worker killed while it drains": (
        check_drain,
        lambda m: template(m, WORKER).update(terminationGracePeriodSeconds=100),
        r"swaa-replica-replicas is killed before Ray's drain of 150 s",
    ),
    "a worker that goes unannounced": (
        check_drain,
        lambda m: container(m, WORKER).pop("lifecycle"),
        r"swaa-replica-replicas does not tell Ray",
    ),
    "an old cluster deleted while it drains": (
        check_drain,
        lambda m: ray_service(m)["spec"].update(rayClusterDeletionDelaySeconds=60),
        r"a replaced Ray cluster is deleted before",
    ),
    "no spread": (
        check_disruption,
        lambda m: template(m, WORKER).pop("topologySpreadConstraints"),
        r"swaa-replica-replicas is not spread",
    ),
    "a budget that lets nothing go": (
        check_disruption,
        lambda m: one(m, "PodDisruptionBudget", "swaa-replica")["spec"].update(minAvailable=2),
        r"swaa-replica-replicas: its disruption budget lets no node be drained",
    ),
    "sessions that fill Redis": (
        check_sizes,
        environment(WORKER, "SWAA_SESSION_QUOTA_MIB", "30000"),
        r"sessions may take 30000 MiB and Redis 28672",
    ),
    "no room to rewrite the log": (
        check_sizes,
        environment(REDIS, "MAXMEMORY", "40gb"),
        r"twice its maxmemory",
    ),
    "more replicas than workers": (
        check_sizes,
        serve(lambda config, deployment: config["applications"][0]["args"].update(max_replicas="9")),
        r"max_replicas of swaa is not maxReplicas",
    ),
    "a replica without its GPU": (
        check_sizes,
        serve(lambda config, deployment: config["applications"][0]["args"].update(num_gpus="0")),
        r"device, num_gpus and the worker's 1 GPUs do not fit",
    ),
    "two GPUs' model on one": (
        check_sizes,
        serve(lambda config, deployment: config["applications"][0]["args"].update(tensor_parallel="2")),
        r"tensor_parallel leaves some of the worker's 1 GPUs idle, or wants more",
    ),
    "two replicas of a pod": (
        check_sizes,
        serve(lambda config, deployment: deployment.update(max_replicas_per_node=2)),
        r"two replicas of one pod",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_broken_manifest_is_found(case: Case) -> None:
    check, change, problem = case
    found = problems(check, change)
    assert any(re.search(problem, text) for text in found), found


def test_every_check_has_a_case() -> None:
    assert {check for check, _, _ in CASES.values()} == set(checks_of(operation))
