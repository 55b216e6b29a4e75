"""The overlays pass all checks."""

from __future__ import annotations

import importlib

import pytest

from tests.k8s import network, operation, references, schemas
from tests.k8s.broken import Check, checks_of
from tests.k8s.manifests import GATEWAY, OVERLAYS, installed_tool, pod, render, rendered, serve_config

pytestmark = pytest.mark.k8s

CHECKS = [check for module in (schemas, references, network, operation) for check in checks_of(module)]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_overlay(overlay: str, check: Check) -> None:
    assert list(check(rendered(overlay))) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_can_build_the_application(overlay: str) -> None:
    for application in serve_config(rendered(overlay))["applications"]:
        module, _, name = application["import_path"].partition(":")
        built = getattr(importlib.import_module(module), name)(application["args"])
        assert [deployment["name"] for deployment in application["deployments"]] == [built._bound_deployment.name]


def test_only_a_laptop_does_without_tls() -> None:
    told = {overlay: pod(rendered(overlay), GATEWAY).environment(rendered(overlay)) for overlay in OVERLAYS}
    assert [overlay for overlay in OVERLAYS if "SWAA_INSECURE_PUBLIC" in told[overlay]] == ["cpu-dev"]


def test_what_cannot_be_checked_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="kubectl9 is not installed: run `make setup`"):
        installed_tool("kubectl9")
    with pytest.raises(RuntimeError, match="kubectl kustomize nowhere: error: "):
        render("nowhere")
