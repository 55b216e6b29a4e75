"""Compiles kernels for Hopper, where there need be no GPU, and prints a line of JSON for each: what test_hopper checks.

In a process of its own: Triton runs kernels in its interpreter, or compiles them, and cannot do both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from swaa_runtime.kernels import elementwise, skinny

HOPPER = GPUTarget("cuda", 90, 32)
BF16 = "*bf16"


def report(
    kernel: Any, arguments: Mapping[str, str], known: Mapping[str, object], num_warps: int, num_stages: int = 1
) -> None:
    """Compile with pointers and sizes that 16 divides, as those of models are."""
    names = kernel.arg_names
    signature = {name: arguments.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in {**known, "PDL": True}.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in arguments.items() if kind != "fp32"}
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": True}
    made = triton.compile(source, target=HOPPER, options=options)
    ptx = made.asm["ptx"]
    found = {
        "kernel": kernel.__name__,
        "wide_loads": ptx.count("ld.global.v4.b32") + ptx.count("cp.async.cg.shared.global"),
        "waits": ptx.count("griddepcontrol.wait"),
        "shared_bytes": made.metadata.shared,
    }
    print(json.dumps(found))


def main() -> None:
    """All kernels, at Qwen3-4B's shapes."""
    rows = dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "out_ptr"), BF16) | {"eps": "fp32"}
    report(elementwise._norm_kernel, rows, {"SIZE": 2560, "ADD": True, "BLOCK": 4096}, 8)
    report(elementwise._silu_and_mul_kernel, {"x_ptr": BF16, "out_ptr": BF16, "size": "i32"}, {"BLOCK": 1024}, 4)
    pointers = ("qkv_ptr", "cos_ptr", "sin_ptr", "q_norm_ptr", "k_norm_ptr", "keys_ptr", "values_ptr")
    heads = dict.fromkeys(pointers, BF16) | {"slots_ptr": "*i64", "num_tokens": "i32", "eps": "fp32"}
    known: dict[str, object] = {"HEADS": 32, "KV_HEADS": 8, "HALF": 64, "NORM": True, "TOKENS": 16, "TILE_HEADS": 8}
    report(elementwise._norm_rope_store_kernel, heads, known, 4)
    for num_rows, columns, depth, gated in ((1, 2560, 9728, False), (1, 19456, 2560, True), (16, 6144, 2560, False)):
        tiles = skinny.choose_tiles(num_rows, columns)
        matmul = dict.fromkeys(("x_ptr", "weight_ptr", "out_ptr"), BF16) | {"columns": "i32"}
        known = {"bias_ptr": None, "K": depth, "BIAS": False, "GATED": gated}
        known |= {"N_TILE": tiles.columns, "K_TILE": tiles.depth}
        if num_rows == 1:
            report(
                skinny._vector_kernel,
                matmul,
                known | {"UNROLL": skinny.choose_unroll(depth, tiles, peeled=True)},
                tiles.num_warps,
            )
        else:
            known |= {"M_TILE": skinny.MAX_ROWS, "WIDEN": False}
            report(skinny._rows_kernel, matmul | {"rows": "i32"}, known, tiles.num_warps, tiles.num_stages)


if __name__ == "__main__":
    main()
