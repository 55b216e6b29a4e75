"""Who asks, when a command asks a service. No key stands on a command line: others can read it there."""

from __future__ import annotations

import os
from pathlib import Path

from swaa_runtime.errors import InvalidRequest

KEY_VARIABLE, KEY_FILE_VARIABLE = "SWAA_API_KEY", "SWAA_API_KEY_FILE"


def api_key() -> str | None:
    """The caller's key, from the environment or from the file that it names; None: without.

    Raises InvalidRequest if both are given, or the file cannot be read.
    """
    key, file = os.environ.get(KEY_VARIABLE), os.environ.get(KEY_FILE_VARIABLE)
    if key and file:
        raise InvalidRequest(KEY_FILE_VARIABLE, file, f"give either it or {KEY_VARIABLE}")
    if not file:
        return key or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise InvalidRequest(KEY_FILE_VARIABLE, file, f"must be a readable file: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(KEY_FILE_VARIABLE, file, "must be UTF-8") from None
