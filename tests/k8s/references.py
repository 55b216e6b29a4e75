"""Whether what the manifests name is there: objects, ports, pods behind selectors, images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.k8s.manifests import (
    GATEWAY,
    HEAD,
    WORKER,
    Manifest,
    Pod,
    of_kind,
    pod,
    pods,
    ray_service,
    selects,
    serve_config,
)

CERTIFICATE = {"tls.crt", "tls.key", "ca.crt"}
SECRETS = {
    "swaa-redis": {"sessions-password", "ray-password"},
    "swaa-gateway-tls": CERTIFICATE,
    "swaa-replica-tls": CERTIFICATE,
    "swaa-api-keys": ("keys.json",),
}
"""Made by hand, as the README says; none is in the manifests."""

IMAGES = {"swaa-gateway", "swaa-replica", "redis"}


def check_namespaces(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Everything is in the one namespace, which is there too; policies and selectors hold nowhere else."""
    (namespace,) = of_kind(manifests, "Namespace")
    for manifest in manifests:
        if manifest is not namespace and manifest["metadata"].get("namespace") != namespace["metadata"]["name"]:
            yield f"{manifest['kind']} {manifest['metadata']['name']} is in another namespace"


def check_objects(manifests: Sequence[Manifest]) -> Iterator[str]:
    """ConfigMaps, service accounts and keys of Secrets that pods name are there; Secrets are never in the manifests."""
    for secret in of_kind(manifests, "Secret"):
        yield f"Secret {secret['metadata']['name']} is in the manifests"
    config_maps = {config_map["metadata"]["name"] for config_map in of_kind(manifests, "ConfigMap")}
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    for owner in manifests:
        for reference in _values(owner, "secretKeyRef"):
            if reference["key"] not in SECRETS.get(reference["name"], ()):
                yield f"{owner['metadata']['name']}: no Secret {reference['name']} with the key {reference['key']}"
        for reference in _values(owner, "secret"):
            if reference["secretName"] not in SECRETS:
                yield f"{owner['metadata']['name']}: no Secret {reference['secretName']}"
        for reference in [*_values(owner, "configMapRef"), *_values(owner, "configMap")]:
            if reference["name"] not in config_maps:
                yield f"{owner['metadata']['name']}: no ConfigMap {reference['name']}"
    for one in pods(manifests):
        account = one.spec.get("serviceAccountName")
        if account is not None and account not in accounts:
            yield f"{one.name}: no ServiceAccount {account}"


def _values(node: Any, name: str) -> Iterator[Any]:
    """Values of a field wherever it is."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            else:
                yield from _values(value, name)
    elif isinstance(node, list):
        for part in node:
            yield from _values(part, name)


def check_volumes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is mounted is a volume of the pod, and every volume is mounted."""
    for one in pods(manifests):
        claims = one.owner["spec"].get("volumeClaimTemplates", ())
        volumes = {volume["name"] for volume in one.spec.get("volumes", ())} | {c["metadata"]["name"] for c in claims}
        mounted = {mount["name"] for mount in one.container.get("volumeMounts", ())}
        for name in sorted(volumes ^ mounted):
            yield f"{one.name}: {name} is {'mounted, but no volume' if name in mounted else 'not mounted'}"


def check_files(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Files in settings are keys of Secrets that are mounted there."""
    for one in pods(manifests):
        secrets = {v["name"]: v["secret"]["secretName"] for v in one.spec.get("volumes", ()) if "secret" in v}
        mounts = {mount["mountPath"]: secrets.get(mount["name"]) for mount in one.container.get("volumeMounts", ())}
        for name, value in one.environment(manifests).items():
            folder, _, file = value.rpartition("/")
            if name.endswith("_FILE") and file not in SECRETS.get(mounts.get(folder) or "", ()):
                yield f"{one.name}: {name} is {value}, and no Secret is mounted there that has it"


def check_selectors(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every selector finds pods, a workload's its own; and every port of a Service is one of theirs."""
    everything = pods(manifests)
    for one in everything:
        selector = one.owner["spec"].get("selector")
        if selector is not None and not selects(selector["matchLabels"], one.labels):
            yield f"{one.name}: its selector does not find its own pods"
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        if not any(selects(selector, one.labels) for one in everything):
            yield f"PodDisruptionBudget {budget['metadata']['name']} finds no pod"
    for policy in of_kind(manifests, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        if not any(selects(selector, one.labels) for one in everything):
            yield f"NetworkPolicy {policy['metadata']['name']} finds no pod"
    for service in of_kind(manifests, "Service"):
        name = f"Service {service['metadata']['name']}"
        found = [one for one in everything if selects(service["spec"]["selector"], one.labels)]
        if not found:
            yield f"{name} finds no pod"
        for port in service["spec"]["ports"]:
            yield from (f"{name}: {one.name} has no port {port['targetPort']}" for one in found if not _has(one, port))
    for autoscaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = autoscaler["spec"]["scaleTargetRef"]
        if not any(one["metadata"]["name"] == target["name"] for one in of_kind(manifests, target["kind"])):
            yield f"HorizontalPodAutoscaler {autoscaler['metadata']['name']}: no {target['kind']} {target['name']}"


def _has(one: Pod, port: dict[str, Any]) -> bool:
    return any(own["name"] == port["targetPort"] for own in one.container["ports"])


def check_monitors(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every ServiceMonitor finds a Service with the port that it scrapes."""
    for monitor in of_kind(manifests, "ServiceMonitor"):
        name = f"ServiceMonitor {monitor['metadata']['name']}"
        selector = monitor["spec"]["selector"]["matchLabels"]
        found = [s for s in of_kind(manifests, "Service") if selects(selector, s["metadata"]["labels"])]
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                yield f"{name} finds no Service with the port {endpoint['port']}"


def check_addresses(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The addresses in settings are those of Services, with ports that the pods behind them have.

    KubeRay makes <RayService>-serve-svc, with the head's ports that are called serve or serve-<something>.
    """
    gateway, head, worker = (pod(manifests, name) for name in (GATEWAY, HEAD, WORKER))
    settings = gateway.environment(manifests)
    grpc_port = serve_config(manifests)["grpc_options"]["port"]
    proxy = f"{ray_service(manifests)['metadata']['name']}-serve-svc:{grpc_port}"
    if settings["SWAA_REPLICAS"] != proxy:
        yield f"SWAA_REPLICAS is {settings['SWAA_REPLICAS']}, and Serve's gRPC proxy is {proxy}"
    for one in (head, worker):
        if one.port("serve-grpc") != grpc_port:
            yield f"{one.name}: serve-grpc is not Serve's gRPC port {grpc_port}"
    if str(worker.port("replica")) != worker.environment(manifests)["SWAA_REPLICA_PORT"]:
        yield f"{worker.name}: port replica is not SWAA_REPLICA_PORT"
    for name, port in (("SWAA_LISTEN", "grpc"), ("SWAA_HTTP_LISTEN", "http")):
        if not settings[name].endswith(f":{gateway.port(port)}"):
            yield f"{name} is {settings[name]}, and the port {port} is {gateway.port(port)}"
    for one in (gateway, worker):
        metrics_listen, metrics_port = one.environment(manifests)["SWAA_METRICS_LISTEN"], one.port("swaa-metrics")
        if not metrics_listen.endswith(f":{metrics_port}"):
            yield f"{one.name}: SWAA_METRICS_LISTEN is {metrics_listen}, and the port swaa-metrics {metrics_port}"
    cluster = ray_service(manifests)["spec"]["rayClusterConfig"]
    redis_urls = {one.name: one.environment(manifests)["SWAA_REDIS_URL"] for one in (gateway, worker)}
    redis_urls[head.name] = cluster["gcsFaultToleranceOptions"]["redisAddress"]
    stores = {
        f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        for service in of_kind(manifests, "Service")
    }
    for name, url in redis_urls.items():
        if re.sub(r"^redis://([^@]*@)?|/\d+$", "", url) not in stores:
            yield f"{name}: {url} is no Service"


def check_images(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Only the three images are used, and each with a tag that stays."""
    for one in pods(manifests):
        for container in [*one.spec.get("initContainers", ()), *one.spec["containers"]]:
            path, _, tag = container["image"].rpartition(":")
            if path.rpartition("/")[2] not in IMAGES:
                yield f"{one.name}: {container['image']} is not one of {', '.join(sorted(IMAGES))}"
            if not tag or tag == "latest":
                yield f"{one.name}: {container['image']} needs a tag of its own"
