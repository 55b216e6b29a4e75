"""What kustomize makes of an overlay, and the pods in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
OVERLAYS = ("cpu-dev", "gpu")
GATEWAY, HEAD, WORKER, REDIS = "swaa-gateway", "swaa-replica-head", "swaa-replica-replicas", "swaa-redis"
"""Names of the pods."""

Manifest = dict[str, Any]


def installed_tool(name: str) -> Path:
    """A program that a package put beside this Python.

    Raises:
        RuntimeError: if it is not there. Checks that cannot run have failed; they are not skipped.
    """
    tool = Path(sys.executable).parent / name
    if not tool.is_file():
        raise RuntimeError(f"{name} is not installed: run `make setup`")
    return tool


def render(overlay: str) -> list[Manifest]:
    """All manifests of an overlay, as `kubectl apply -k` sends them."""
    folder = REPOSITORY / "k8s" / "overlays" / overlay
    command = [str(installed_tool("kubectl")), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"kubectl kustomize {overlay}: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


rendered = cache(render)
"""The same, made once: not to be changed."""


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def ray_service(manifests: Sequence[Manifest]) -> Manifest:
    """The one RayService."""
    (found,) = of_kind(manifests, "RayService")
    return found


def serve_config(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What Ray Serve runs, not yet validated."""
    config: dict[str, Any] = yaml.safe_load(ray_service(manifests)["spec"]["serveConfigV2"])
    return config


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod template. `name` is the owner's, with Ray's group for pods of a RayService."""

    name: str
    owner: Manifest
    template: Manifest

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the pods made from it."""
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def spec(self) -> dict[str, Any]:
        """The pod's spec."""
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """Its one container."""
        container: dict[str, Any]
        (container,) = self.spec["containers"]
        return container

    def port(self, name: str) -> int:
        """A container port by its name."""
        (number,) = [port["containerPort"] for port in self.container["ports"] if port["name"] == name]
        return int(number)

    def environment(self, manifests: Sequence[Manifest]) -> dict[str, str]:
        """Environment variables by name; those that only the cluster knows are empty."""
        found: dict[str, str] = {}
        for source in self.container.get("envFrom", ()):
            for config_map in of_kind(manifests, "ConfigMap"):
                if config_map["metadata"]["name"] == source["configMapRef"]["name"]:
                    found |= config_map["data"]
        return found | {variable["name"]: variable.get("value", "") for variable in self.container.get("env", ())}


def pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """Every pod template: those of Deployments and StatefulSets, and those that KubeRay makes pods from."""
    return list(_pods(manifests))


def pod(manifests: Sequence[Manifest], name: str) -> Pod:
    """One of them by name."""
    (found,) = [pod for pod in pods(manifests) if pod.name == name]
    return found


def _pods(manifests: Sequence[Manifest]) -> Iterator[Pod]:
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield Pod(name, manifest, manifest["spec"]["template"])
        elif manifest["kind"] == "RayService":
            cluster = manifest["spec"]["rayClusterConfig"]
            yield Pod(f"{name}-head", manifest, cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield Pod(f"{name}-{group['groupName']}", manifest, group["template"])


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether labels have all that a `matchLabels` asks for."""
    return selector.items() <= labels.items()
