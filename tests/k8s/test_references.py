"""A name that nothing has is found."""

from __future__ import annotations

import re

import pytest

from tests.k8s import references
from tests.k8s.broken import Case, checks_of, cluster, container, environment, one, problems, serve, template, without
from tests.k8s.manifests import GATEWAY, HEAD, REDIS, WORKER, pod
from tests.k8s.references import (
    check_addresses,
    check_files,
    check_images,
    check_monitors,
    check_namespaces,
    check_objects,
    check_selectors,
    check_volumes,
)

pytestmark = pytest.mark.k8s

CASES: dict[str, Case] = {
    "another namespace": (
        check_namespaces,
        lambda m: one(m, "Service", GATEWAY)["metadata"].update(namespace="default"),
        r"Service swaa-gateway is in another namespace",
    ),
    "a Secret in git": (
        check_objects,
        lambda m: m.append({"kind": "Secret", "metadata": {"name": "swaa-redis"}}),
        r"Secret swaa-redis is in the manifests",
    ),
    "a Secret's key that nobody makes": (
        check_objects,
        lambda m: cluster(m)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"].update(key="x"),
        r"swaa-replica: no Secret swaa-redis with the key x",
    ),
    "a Secret that nobody makes": (
        check_objects,
        lambda m: template(m, GATEWAY)["volumes"][0]["secret"].update(secretName="tls"),
        r"swaa-gateway: no Secret tls",
    ),
    "a certificate that is not mounted": (
        check_files,
        lambda m: container(m, WORKER)["volumeMounts"].pop(),
        r"swaa-replica-replicas: SWAA_REPLICA_TLS_CERT_FILE is /run/swaa/replica-tls/tls\.crt, and no Secret",
    ),
    "a file that the Secret does not have": (
        check_files,
        environment(GATEWAY, "SWAA_TLS_CERT_FILE", "/run/swaa/tls/cert.pem"),
        r"swaa-gateway: SWAA_TLS_CERT_FILE is /run/swaa/tls/cert\.pem, and no Secret",
    ),
    "a ConfigMap that is not there": (
        check_objects,
        lambda m: container(m, WORKER)["envFrom"][0]["configMapRef"].update(name="swaa-settings"),
        r"swaa-replica: no ConfigMap swaa-settings",
    ),
    "a service account that is not there": (
        check_objects,
        without("ServiceAccount", REDIS),
        r"swaa-redis: no ServiceAccount swaa-redis",
    ),
    "a mount without a volume": (
        check_volumes,
        lambda m: template(m, GATEWAY).update(volumes=[]),
        r"swaa-gateway: tmp is mounted, but no volume",
    ),
    "a workload that does not find its pods": (
        check_selectors,
        lambda m: pod(m, GATEWAY).labels.update({"app.kubernetes.io/name": "gateway"}),
        r"swaa-gateway: its selector does not find its own pods",
    ),
    "a budget that finds no pod": (
        check_selectors,
        lambda m: pod(m, WORKER).labels.update({"app.kubernetes.io/component": "replica"}),
        r"PodDisruptionBudget swaa-replica finds no pod",
    ),
    "a policy that finds no pod": (
        check_selectors,
        lambda m: pod(m, HEAD).labels.update({"app.kubernetes.io/component": "ray"}),
        r"NetworkPolicy autoscaler finds no pod",
    ),
    "a Service of a port that is not there": (
        check_selectors,
        lambda m: one(m, "Service", REDIS)["spec"]["ports"][0].update(targetPort="valkey"),
        r"Service swaa-redis: swaa-redis has no port valkey",
    ),
    "an autoscaler of nothing": (
        check_selectors,
        lambda m: one(m, "HorizontalPodAutoscaler", GATEWAY)["spec"]["scaleTargetRef"].update(name="gateway"),
        r"HorizontalPodAutoscaler swaa-gateway: no Deployment gateway",
    ),
    "a monitor that finds nothing": (
        check_monitors,
        without("Service", "swaa-replica-metrics"),
        r"ServiceMonitor swaa-replica finds no Service with the port metrics",
    ),
    "a monitor of engines that finds nothing": (
        check_monitors,
        without("Service", "swaa-engine-metrics"),
        r"ServiceMonitor swaa-engine finds no Service with the port swaa-metrics",
    ),
    "metrics on another port": (
        check_addresses,
        environment(WORKER, "SWAA_METRICS_LISTEN", "0.0.0.0:8082"),
        r"swaa-replica-replicas: SWAA_METRICS_LISTEN is 0\.0\.0\.0:8082",
    ),
    "metrics of gateways on another port": (
        check_addresses,
        environment(GATEWAY, "SWAA_METRICS_LISTEN", "0.0.0.0:8082"),
        r"swaa-gateway: SWAA_METRICS_LISTEN is 0\.0\.0\.0:8082",
    ),
    "a gateway that asks the wrong port": (
        check_addresses,
        environment(GATEWAY, "SWAA_REPLICAS", "swaa-replica-serve-svc:8000"),
        r"SWAA_REPLICAS is swaa-replica-serve-svc:8000",
    ),
    "Serve on another port": (
        check_addresses,
        serve(lambda config, deployment: config["grpc_options"].update(port=9001)),
        r"swaa-replica-head: serve-grpc is not Serve's gRPC port 9001",
    ),
    "a replica on another port": (
        check_addresses,
        environment(WORKER, "SWAA_REPLICA_PORT", "9101"),
        r"port replica is not SWAA_REPLICA_PORT",
    ),
    "a gateway on another port": (
        check_addresses,
        environment(GATEWAY, "SWAA_LISTEN", "0.0.0.0:50052"),
        r"SWAA_LISTEN is 0\.0\.0\.0:50052",
    ),
    "a gateway's HTTP on another port": (
        check_addresses,
        environment(GATEWAY, "SWAA_HTTP_LISTEN", "0.0.0.0:8081"),
        r"SWAA_HTTP_LISTEN is 0\.0\.0\.0:8081",
    ),
    "a Redis that is not there": (
        check_addresses,
        environment(WORKER, "SWAA_REDIS_URL", "redis://swaa:x@redis:6379/0"),
        r"redis:6379/0 is no Service",
    ),
    "another image": (
        check_images,
        lambda m: container(m, REDIS).update(image="busybox:1.37"),
        r"swaa-redis: busybox:1\.37 is not one of",
    ),
    "an image whose tag moves": (
        check_images,
        lambda m: container(m, WORKER).update(image="swaa-replica:latest"),
        r"swaa-replica:latest needs a tag of its own",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_broken_manifest_is_found(case: Case) -> None:
    check, change, problem = case
    found = problems(check, change)
    assert any(re.search(problem, text) for text in found), found


def test_every_check_has_a_case() -> None:
    assert {check for check, _, _ in CASES.values()} == set(checks_of(references))
