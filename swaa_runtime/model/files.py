"""Which files a model may come in: data only, unless whoever starts the service says otherwise.

Pickles run their maker's code when they are read.
"""

from __future__ import annotations

from pathlib import Path

from swaa_runtime.errors import ModelNotSupported

SAFE_SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

DATA_ONLY = {"trust_remote_code": False}
"""For every `from_pretrained`: without it transformers asks on stdin whether to run code from the folder."""


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """The files that hold a folder's weights: safetensors; or pickles if there are none, and they are allowed.

    Raises:
        ModelNotSupported: if there are none that may be read.
    """
    safe = sorted(folder.glob(f"*{SAFE_SUFFIX}"))
    pickled = sorted(path for path in folder.glob("*") if path.suffix in PICKLED_SUFFIXES)
    if safe:
        return safe
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise ModelNotSupported(
            f"{folder.name} has only pickled weights ({pickled[0].name}), which run code of whoever made them: convert "
            f"them to safetensors, or set SWAA_ALLOW_PICKLE_WEIGHTS=true if you trust them"
        )
    raise ModelNotSupported(f"{folder.name} has no weights: must have *{SAFE_SUFFIX}")
