"""Whether the API server, KubeRay and Ray Serve would take the manifests."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pydantic
from jsonschema import Draft202012Validator

from deps.lock import MAIN, read
from services.config import PREFIX, ServeConfig
from tests.k8s.manifests import Manifest, pods, ray_service, serve_config

KUBERNETES_VERSIONS = ("1.32", "1.37")
"""Oldest and newest that the manifests are for."""

CUSTOM_KINDS = {
    "RayService": "rayservice.json",
    "ServiceMonitor": "servicemonitor.json",
    "PrometheusRule": "prometheusrule.json",
}


def check_schemas(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every manifest follows its kind's schema, and has no field that the schema does not know."""
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] in CUSTOM_KINDS:
            for error in _custom_validator(manifest["kind"]).iter_errors(manifest):
                yield f"{name}: {error.json_path}: {error.message}"
            continue
        for version in KUBERNETES_VERSIONS:
            if problem := _kubernetes_problem(json.dumps(manifest), version):
                yield f"{name}: Kubernetes {version}: {problem}"


@cache
def _kubernetes_problem(manifest: str, version: str) -> str:
    """What is wrong with a manifest, as JSON; empty if nothing is.

    Each that is looked at has all definitions of the version read again, and most are in several overlays and cases.
    """
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as exc:
        return str(exc)
    return ""


@cache
def _custom_validator(kind: str) -> Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "schemas" / CUSTOM_KINDS[kind]).read_text(encoding="utf-8"))
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return Draft202012Validator(strict)


def _strict(schema: Any) -> Any:
    """A CRD's structural schema as a JSON schema that refuses what the API server would silently drop."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items()}
    if strict.get("x-kubernetes-int-or-string") is True:
        strict["type"] = ["integer", "string"]
        strict.pop("anyOf", None)
    if (
        strict.get("type") == "object"
        and "additionalProperties" not in strict
        and not strict.get("x-kubernetes-preserve-unknown-fields")
    ):
        strict["additionalProperties"] = False
    return strict


def check_serve_config(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Ray Serve's own schema takes `serveConfigV2`, and there is nothing in it that it would ignore."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's modules warn of pydantic's newer ways
        from ray.serve.schema import ServeDeploySchema
    config = serve_config(manifests)
    try:
        parsed = ServeDeploySchema.model_validate(config)
    except pydantic.ValidationError as exc:
        yield f"serveConfigV2: {exc}"
        return
    yield from _ignored(config, parsed.model_dump(exclude_unset=True), "serveConfigV2")
    for function in parsed.grpc_options.grpc_servicer_functions:
        module, _, name = function.rpartition(".")
        if not hasattr(importlib.import_module(module), name):
            yield f"serveConfigV2: {function} does not exist"


def _ignored(given: Any, understood: Any, path: str) -> Iterator[str]:
    """Names in what was given that are not in what was understood."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for name, value in given.items():
            if name not in understood:
                yield f"{path}: {name!r} is unknown"
            else:
                yield from _ignored(value, understood[name], f"{path}.{name}")
    elif isinstance(given, list) and isinstance(understood, list):
        for index, (one, other) in enumerate(zip(given, understood, strict=True)):
            yield from _ignored(one, other, f"{path}[{index}]")


def check_settings(manifests: Sequence[Manifest]) -> Iterator[str]:
    """SWAA_ variables are settings of the service, and their values and the application's are within bounds."""
    for pod in pods(manifests):
        environment = pod.environment(manifests)
        settings = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
        settings = {name.removeprefix(PREFIX).lower(): value for name, value in settings.items()}
        for name in settings.keys() - ServeConfig.model_fields.keys():
            yield f"{pod.name}: there is no setting {name}"
        yield from _refused(pod.name, settings)
        if settings and pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name}: Kubernetes adds variables such as SWAA_REDIS_PORT, of the Service swaa-redis"
    for application in serve_config(manifests)["applications"]:
        yield from _refused(f"args of {application['name']}", application["args"])


def _refused(where: str, settings: dict[str, str]) -> Iterator[str]:
    known = {name: value for name, value in settings.items() if name in ServeConfig.model_fields}
    try:
        ServeConfig.model_validate(known)
    except pydantic.ValidationError as exc:
        yield f"{where}: {exc}"


def check_ray_version(manifests: Sequence[Manifest]) -> Iterator[str]:
    """KubeRay is told the version of Ray that the image has: it chooses probes and commands by it."""
    version = ray_service(manifests)["spec"]["rayClusterConfig"]["rayVersion"]
    if version not in {package.version for package in read(MAIN) if package.name == "ray"}:
        yield f"rayVersion is {version}, and that is not what requirements.lock has"
