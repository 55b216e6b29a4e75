"""Manifests broken in memory: each check has to find what it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import yaml

from tests.k8s.manifests import Manifest, of_kind, pod, ray_service, rendered, serve_config

Check = Callable[[Sequence[Manifest]], Iterator[str]]
Change = Callable[[list[Manifest]], Any]
Case = tuple[Check, Change, str]
"""A check, a change that it must find, and what it says then, as a regular expression."""


def checks_of(module: ModuleType) -> list[Check]:
    """All checks of a module."""
    return [check for name, check in vars(module).items() if name.startswith("check_")]


def problems(check: Check, change: Change) -> list[str]:
    """What a check says of the GPU overlay after a change."""
    broken = copy.deepcopy(rendered("gpu"))
    change(broken)
    return list(check(broken))


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """A manifest."""
    (found,) = [manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name]
    return found


def template(manifests: list[Manifest], name: str) -> dict[str, Any]:
    """The spec of a pod."""
    return pod(manifests, name).spec


def container(manifests: list[Manifest], name: str) -> dict[str, Any]:
    """The container of a pod."""
    return pod(manifests, name).container


def cluster(manifests: list[Manifest]) -> dict[str, Any]:
    """The Ray cluster."""
    config: dict[str, Any] = ray_service(manifests)["spec"]["rayClusterConfig"]
    return config


def serve(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Change:
    """A change of Serve's configuration; `change` is given all of it, and its one deployment."""

    def apply(manifests: list[Manifest]) -> None:
        config = serve_config(manifests)
        change(config, config["applications"][0]["deployments"][0])
        ray_service(manifests)["spec"]["serveConfigV2"] = yaml.safe_dump(config)

    return apply


def environment(name: str, variable: str, value: str) -> Change:
    """Sets a variable of a pod."""

    def apply(manifests: list[Manifest]) -> None:
        variables = container(manifests, name)["env"]
        variables[:] = [v for v in variables if v["name"] != variable] + [{"name": variable, "value": value}]

    return apply


def without(kind: str, name: str) -> Change:
    """Leaves a manifest out."""
    return lambda manifests: manifests.remove(one(manifests, kind, name))
