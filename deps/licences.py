"""Licences of all that is locked: what was found on review, held to what the packages say, and to what is allowed.

`data/licences.toml` is the review. Licences are SPDX expressions. A package that is locked and not in it, one whose own
metadata says something else, and one under a licence that is not allowed are problems, and fail a test.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from deps.lock import AUDIT, CUDA, MAIN, NODEPS, Locked, read

REVIEW = Path(__file__).parent / "data" / "licences.toml"

ALLOWED = frozenset(
    (
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"),
        *("LLVM-exception", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
    )
)
"""Permissive; and MPL-2.0, which asks for changed files of its own only, and we change none."""

SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "GPLv2": "GPL-2.0-only",
    "GPL-3.0": "GPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""How packages write licences that have no expression yet."""


@dataclass(frozen=True, slots=True)
class Review:
    """What was found.

    Attributes:
        licences: by the package's name.
        by_hand: why what a package says of itself does not tell its licence, by name.
        exempt: why one that is not allowed may be used all the same, by name.
    """

    licences: Mapping[str, str]
    by_hand: Mapping[str, str]
    exempt: Mapping[str, str]


def review(path: Path = REVIEW) -> Review:
    """The review as it stands. Raises TypeError for a section that it does not have."""
    sections = tomllib.loads(path.read_text(encoding="utf-8"))
    return Review(**{name.replace("-", "_"): section for name, section in sections.items()})


def locked() -> list[tuple[str, Locked]]:
    """All packages of all locks, each with the lock that it is in."""
    return [(path.name, package) for path in (MAIN, NODEPS, CUDA, AUDIT) for package in read(path)]


def stated(metadata: Message) -> str | None:
    """The licence that a package's own metadata gives, as an expression; None if that cannot be told from it."""
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if "License ::" in line]
    for text in (metadata.get("License-Expression"), metadata.get("License"), *classifiers):
        if text and (known := _expression(text.strip())):
            return known
    return None


def _expression(text: str) -> str | None:
    try:
        return canonicalize_license_expression(SPELLINGS.get(text, text))
    except InvalidLicenseExpression:
        return None


def forbidden(expression: str) -> list[str]:
    """Licences of an expression that are not allowed. A choice counts as all that can be chosen."""
    names = re.findall(r"[\w.+-]+", expression)
    return [name for name in names if name not in ("AND", "OR", "WITH") and name not in ALLOWED]


def problems(found: Review, packages: Iterable[Locked], metadata: Mapping[str, Message]) -> list[str]:
    """All that is wrong, a line each; `metadata` is of those packages that are installed, by name."""
    told: dict[str, None] = {}
    for package in packages:
        name = package.name
        expression = found.licences.get(name)
        if expression is None:
            told[f"{name}: nobody has looked at its licence yet; add it to {REVIEW.name}"] = None
            continue
        if (bad := forbidden(expression)) and name not in found.exempt:
            told[f"{name}: {', '.join(bad)} is not allowed"] = None
        says = stated(metadata[name]) if name in metadata else expression
        if name not in found.by_hand and says != expression:
            told[f"{name}: reviewed as {expression}, its metadata says {says}"] = None
    return list(told)


def installed(packages: Iterable[Locked]) -> dict[str, Message]:
    """Metadata of those packages that are installed here in their locked version, by name."""
    found: dict[str, Message] = {}
    for package in packages:
        try:
            here = distribution(package.name)
        except PackageNotFoundError:
            continue
        if here.version.partition("+")[0] == package.version:
            found[package.name] = here.metadata  # type: ignore[assignment]
    return found
