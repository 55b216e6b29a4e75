"""Locks are whole: all that is installed from them is in them, in one version, with hashes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from deps.compile import EXTRAS, applies, for_us
from deps.lock import AUDIT, CPU, CUDA, MAIN, NODEPS, PIP, REPOSITORY, Locked, parse, read, write

ALL = (MAIN, NODEPS, CPU, CUDA, PIP, AUDIT)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = f"six==1.17.0 ; python_version < '3.13' \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_package_has_one_version_and_hashes(path: Path) -> None:
    packages = read(path)
    assert packages
    assert len({package.name for package in packages}) == len(packages)
    for package in packages:
        assert package.version
        assert package.hashes, package.name
        assert not package.requirement.url, "only what an index has"


def needs() -> Iterator[tuple[str, Requirement]]:
    """(who, what): of the project, and of all that is installed of its lock."""
    for line in (
        *PROJECT["dependencies"],
        *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]),
    ):
        yield "pyproject.toml", Requirement(line)
    for package in read(MAIN):
        try:
            lines = distribution(package.name).requires or ()
        except PackageNotFoundError:
            continue  # for other Pythons
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield package.name, requirement


def test_whatever_is_needed_is_locked_in_a_version_that_will_do() -> None:
    versions = {package.name: package.version for path in (MAIN, CUDA) for package in read(path)}
    seen = 0
    for who, requirement in needs():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{who} needs {requirement}, not {version}"
        seen += 1
    assert seen > 200


def test_carriers_are_those_of_the_extra() -> None:
    carriers = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["embedded"]}
    assert {package.name for package in read(NODEPS)} == carriers


def test_torch_may_be_the_public_build_or_the_cpu_one() -> None:
    [torch] = [package for package in read(MAIN) if package.name == "torch"]
    [cpu] = read(CPU)
    assert torch.requirement.specifier.contains(cpu.version), "pip does not install the other one over it"
    main = {package.name: package for package in read(MAIN)}
    both = [package for package in read(CUDA) if package.name in main]
    assert both == [main[package.name] for package in both], "pip does not change what the first lock installed"


def test_setup_installs_nothing_without_a_hash() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    installs = [
        line for line in makefile.splitlines() if "$(PIP_INSTALL)" in line or re.search(r"pip install.* -r ", line)
    ]
    assert len(installs) == 7
    assert [line for line in installs if "--require-hashes" not in line] == [
        "\t$(PIP_INSTALL) --no-build-isolation --editable ."
    ]


def test_pip_is_the_one_that_is_audited() -> None:
    assert read(PIP) == [package for package in read(AUDIT) if package.name == "pip"]


def test_a_lock_is_read_as_it_is_written(tmp_path: Path) -> None:
    [six] = parse("# a comment\n" + ENTRY)
    assert (six.name, six.version, len(six.hashes)) == ("six", "1.17.0", 2)
    path = tmp_path / "lock"
    write(path, "says", [six, six])
    assert read(path) == [six, six]


def test_what_is_not_exact_or_no_package_is_refused() -> None:
    with pytest.raises(ValueError, match="not an exact version"):
        _ = parse("six>=1")[0].version
    with pytest.raises(InvalidRequirement):
        parse("--index-url https://example.org\n")


def test_conditions_that_always_hold_are_left_out() -> None:
    def locked(marker: str) -> Locked:
        return parse(f"six==1.17.0 ; {marker}")[0]

    assert for_us(locked("sys_platform == 'linux'")).requirement.marker is None
    assert for_us(locked("python_full_version < '3.13'")).requirement.marker is not None
    assert not applies(locked("sys_platform == 'win32'"), {"sys_platform": "linux"})
