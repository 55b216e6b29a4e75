"""Locks: files of exact versions, each with the hashes of the files that may be installed for it, as pip reads them.

In deps/locks:
requirements.lock           all of `make setup` that is resolved as one
requirements.nodeps.lock    packages that carry a file we use, and whose own dependencies we do not need
requirements.cpu.lock       PyTorch's CPU build, where pip's indexes have it
requirements.cuda.lock      what PyTorch's CUDA build needs more; its CPU build does without
requirements.fuzz.lock      what `make fuzz` needs more
requirements.pip.lock       the pip that `make setup` installs with: that of the tools, as Python's own may be old
requirements.audit.lock     tools that look at the other locks, in an environment of their own

k8s/docker/requirements-*.lock  what of the first two an image needs (`k8s.docker.locks`)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "deps" / "locks"
MAIN, NODEPS, CPU, CUDA, FUZZ, PIP, AUDIT = (
    FOLDER / f"requirements{kind}.lock" for kind in ("", ".nodeps", ".cpu", ".cuda", ".fuzz", ".pip", ".audit")
)

_HASH = re.compile(r" \\\n    --hash=(sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Locked:
    """A package of a lock. `hashes` are `sha256:` and hex digits, of any file of that version, for any platform."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """As package indexes normalise it."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The exact version. Raises ValueError if the lock does not give one."""
        (specifier,) = self.requirement.specifier
        if specifier.operator != "==":
            raise ValueError(f"{self.requirement} is not an exact version")
        return specifier.version

    def __str__(self) -> str:
        """As it stands in a lock."""
        marker = f" ; {self.requirement.marker}".replace('"', "'") if self.requirement.marker else ""
        return f"{self.name}=={self.version}{marker}" + "".join(f" \\\n    --hash={each}" for each in self.hashes)


def parse(text: str) -> list[Locked]:
    """The packages of a lock, in its order. Raises InvalidRequirement for what is no package."""
    bare = "".join(f"{line}\n" for line in text.splitlines() if line and not line.startswith("#"))
    entries = []
    for entry in re.split(r"\n(?=\S)", bare.rstrip("\n")):
        line = _HASH.sub("", entry)
        entries.append(Locked(Requirement(line), tuple(_HASH.findall(entry))))
    return entries


def read(path: Path) -> list[Locked]:
    """The packages of a lock file."""
    return parse(path.read_text(encoding="utf-8"))


def write(path: Path, says: str, packages: list[Locked]) -> None:
    """Write a lock; `says` is its first line."""
    lines = [f"# {says}", *map(str, packages)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
