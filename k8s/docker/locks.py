"""What the two images install: those lines of requirements.lock that they need.

    make k8s-locks      # after a change of requirements.lock

Looks at what is installed here, so run it after `make setup`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]

PYTHON = "3.11"
"""The images' Python: some packages need others only on some versions."""

MODEL_ONLY = {"torch", "accelerate", "gguf", "safetensors"}
"""What a gateway does without: it has a tokenizer, and no model."""

BUILD = "setuptools"
"""Builds the project's own wheel inside the image."""


def images() -> dict[str, list[str]]:
    """The lines of each image's lock, by its name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    service = [Requirement(line) for line in project["dependencies"]]
    cluster = [Requirement(line) for line in project["optional-dependencies"]["cluster"]]
    return {
        "gateway": locked(needed(part for part in service if part.name not in MODEL_ONLY)),
        "replica": locked(needed([*service, *cluster])),
    }


def needed(requirements: Iterable[Requirement]) -> set[str]:
    """Names of packages that requirements need, all the way down, as far as they are installed here by the lock."""
    known, found, todo = set(lock()), {BUILD}, list(requirements)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if name not in known or key in found:
            continue
        found |= {name, key}
        todo.extend(_dependencies(requirement))
    return found & known


def _dependencies(requirement: Requirement) -> Iterator[Requirement]:
    for line in distribution(requirement.name).requires or ():
        dependency = Requirement(line)
        environments = [{"python_version": PYTHON, "extra": extra} for extra in ("", *requirement.extras)]
        if dependency.marker is None or any(dependency.marker.evaluate(each) for each in environments):
            yield dependency


def lock() -> dict[str, str]:
    """Lines of requirements.lock by the package's name."""
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if not line.startswith("#")}


def locked(names: set[str]) -> list[str]:
    """Lines of requirements.lock for these packages, in its order."""
    return [line for name, line in lock().items() if name in names]


def path(image: str) -> Path:
    """Where an image's lock is."""
    return FOLDER / f"requirements-{image}.lock"


def main() -> None:
    """Write both."""
    for image, lines in images().items():
        text = "\n".join(
            [f"# What the {image} image installs, made from requirements.lock by `make k8s-locks`.", *lines]
        )
        path(image).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
