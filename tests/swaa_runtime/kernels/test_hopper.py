"""Kernels compile for Hopper, which the interpreter says nothing of; here, where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
HALF_OF_SHARED_BYTES = 114 << 10


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What `hopper` and then `variants` print, of JSON: in one process, as importing what they need takes long."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    code = "from tests.swaa_runtime.kernels import hopper, variants; hopper.main(); variants.main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_kernels_compile_and_load_16_bytes_at_a_time(lines: list[Any]) -> None:
    *found, _ = lines
    attention = [kernel for kernel in found if kernel["kernel"] == "_attend_kernel"]
    others = [kernel for kernel in found if kernel not in attention]
    assert (len(attention), len(others)) == (6, 10)
    for kernel in attention:
        assert kernel["tile_loads"] > 0, kernel
        assert kernel["bf16_products"] > 0, "keys and values of 8 bits are multiplied as the queries are"
        assert kernel["shared_bytes"] <= HALF_OF_SHARED_BYTES, kernel
    for kernel in others:
        assert kernel["wide_loads"] > 0, kernel
        assert kernel["waits"] == kernel["overlaps"], kernel
        assert kernel["shared_bytes"] <= HALF_OF_SHARED_BYTES, kernel
        if kernel["kernel"] == "_vector_kernel":
            assert kernel["shared_bytes"] < 1024, "x goes through shared memory: its layout is not the weight's"


def test_no_step_needs_a_variant_that_the_warm_up_did_not_compile(lines: list[Any]) -> None:
    *_, found = lines
    assert len(found) == 8
    assert {name: new for name, (_, new) in found.items()} == dict.fromkeys(found, 0)
    assert found["_attend_kernel"][0] == 2 * 2 * 4, "of K and V in two dtypes: shared or not, by rows"
