"""Every licence is known, allowed, and what the package says; offline, from what is installed."""

from __future__ import annotations

from email.message import Message

import pytest
from packaging.licenses import canonicalize_license_expression

from deps.licences import Review, forbidden, installed, locked, problems, review, stated
from deps.lock import Locked, parse

PACKAGES = [package for _, package in locked()]


def metadata(**fields: str) -> Message:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


def package(name: str) -> Locked:
    [only] = parse(f"{name}==1.0")
    return only


def test_all_that_is_locked_has_a_licence_that_is_allowed() -> None:
    here = installed(PACKAGES)
    assert len(here) > 100, "the check looks at what is installed"
    assert problems(review(), PACKAGES, here) == []


def test_the_review_has_nothing_that_is_not_locked() -> None:
    found, names = review(), {package.name for package in PACKAGES}
    assert set(found.licences) == names
    assert set(found.by_hand) | set(found.exempt) <= names


def test_the_review_is_of_expressions() -> None:
    for expression in review().licences.values():
        assert canonicalize_license_expression(expression) == expression


def test_what_nobody_has_looked_at_fails() -> None:
    [problem] = problems(Review({}, {}, {}), [package("new")], {})
    assert problem.startswith("new: nobody has looked")


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "MIT AND AGPL-3.0-or-later", "MIT OR GPL-2.0-only", "LicenseRef-Own"]
)
def test_copyleft_and_unknown_licences_fail_unless_there_is_a_reason(licence: str) -> None:
    [problem] = problems(Review({"new": licence}, {}, {}), [package("new")], {})
    assert problem.endswith("is not allowed")
    assert problems(Review({"new": licence}, {}, {"new": "a reason"}), [package("new")], {}) == []


def test_a_package_that_changed_its_licence_fails() -> None:
    says = {"new": metadata(License_Expression="Apache-2.0")}
    [problem] = problems(Review({"new": "MIT"}, {}, {}), [package("new")], says)
    assert problem == "new: reviewed as MIT, its metadata says Apache-2.0"


def test_a_licence_is_told_from_whatever_a_package_says() -> None:
    assert stated(metadata(License_Expression="mit")) == "MIT"
    assert stated(metadata(License="Apache 2.0")) == "Apache-2.0"
    assert stated(metadata(Classifier="License :: OSI Approved :: MIT License")) == "MIT"
    assert stated(metadata(Classifier="License :: OSI Approved :: BSD License")) is None, "which of them?"
    assert stated(metadata(License="do what you like")) is None


def test_a_choice_counts_as_all_that_can_be_chosen() -> None:
    assert forbidden("Apache-2.0 WITH LLVM-exception AND (MIT OR BSD-3-Clause)") == []
    assert forbidden("MIT OR GPL-2.0-only") == ["GPL-2.0-only"]
