"""Whether the PyTorch that is installed is whole as it is: its CPU build is, the CUDA one needs requirements.cuda.lock.

    python -m deps.torch_build || pip install -r requirements.cuda.lock

Of the public index's build the version says nothing; those of PyTorch's own indexes end in +cpu or +cu<digits>.
"""

from __future__ import annotations

import sys
from importlib.metadata import version


def is_cpu_build(torch_version: str) -> bool:
    """By its version."""
    return torch_version.partition("+")[2] == "cpu"


if __name__ == "__main__":
    sys.exit(not is_cpu_build(version("torch")))
