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

from swaa_runtime.kernels import elementwise, paged_attention, skinny

HOPPER = GPUTarget("cuda", 90, 32)
BF16, FP32 = "*bf16", "*fp32"


def compiled(
    kernel: Any, arguments: Mapping[str, str], known: Mapping[str, object], options: Mapping[str, object]
) -> Any:
    """The kernel with arguments of these types; integers and pointers are divisible by 16 where that counts."""
    names = kernel.arg_names
    signature = {name: arguments.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in known.items()}
    whole = [
        name
        for name, kind in arguments.items()
        if kind != "fp32" and not kind.startswith("tensordesc") and name not in kernel.do_not_specialize
    ]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in whole}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=HOPPER, options=dict(options))


def report(
    kernel: Any,
    arguments: Mapping[str, str],
    known: Mapping[str, object],
    num_warps: int,
    num_stages: int = 1,
    *,
    overlaps: bool = True,
) -> None:
    """Compile with pointers and sizes that 16 divides, as those of models are."""
    options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": overlaps}
    made = compiled(kernel, arguments, {**known, "PDL": True} if overlaps else known, options)
    ptx = made.asm["ptx"]
    found = {
        "kernel": kernel.__name__,
        "overlaps": overlaps,
        "wide_loads": ptx.count("ld.global.v4.b32") + ptx.count("cp.async.cg.shared.global"),
        "waits": ptx.count("griddepcontrol.wait"),
        "shared_bytes": made.metadata.shared,
    }
    print(json.dumps(found))


def report_attention(kept_in: str, rows: int, *, is_shared: bool) -> None:
    """The attention kernel as a decoding step (few rows, shared keys) and as a prompt's chunk launch it."""
    block, head_dim = 64, 128
    partial = FP32 if is_shared else BF16
    tiles = f"tensordesc<{kept_in}[{block},{head_dim}]>"
    arguments = {"query_ptr": BF16, "key_rows": tiles, "value_rows": tiles, "out_ptr": BF16}
    arguments |= {"partial_ptr": partial, "lse_ptr": partial, "tiles_ptr": "*i32", "rules_ptr": "*i32"}
    arguments |= {"offsets_ptr": "*i64", "table_ptr": "*i32", "scale_log2": "fp32"}
    arguments |= dict.fromkeys(("num_partial", "query_row", "query_head", "out_row", "out_head"), "i32")
    known: dict[str, object] = {"HEADS": 32, "GROUP": 4, "PACKED": 4, "HEAD_DIM": head_dim, "ROWS": rows, "FIELDS": 5}
    known |= {"TILE_KEYS": block, "BLOCK_SIZE": block, "SHARED": is_shared}
    scales = ("key_scales", "value_scales")
    if kept_in == "bf16":
        known |= dict.fromkeys(scales)
    else:
        arguments |= dict.fromkeys(scales, FP32)
    made = compiled(paged_attention._attend_kernel, arguments, known, {"num_warps": 4, "num_stages": 3})
    ptx = made.asm["ptx"]
    found = {
        "kernel": "_attend_kernel",
        "kept_in": kept_in,
        "tile_loads": ptx.count("cp.async.bulk.tensor"),
        "bf16_products": ptx.count(".f32.bf16.bf16"),
        "shared_bytes": made.metadata.shared,
    }
    print(json.dumps(found))


def main() -> None:
    """All kernels, at Qwen3-4B's shapes."""
    rows = dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "out_ptr"), BF16) | {"eps": "fp32"}
    report(elementwise._norm_kernel, rows, {"SIZE": 2560, "ADD": True, "BLOCK": 4096}, 8)
    silu = {"x_ptr": BF16, "out_ptr": BF16, "size": "i32"}
    report(elementwise._silu_and_mul_kernel, silu, {"BLOCK": 1024}, 4, overlaps=False)
    pointers = ("qkv_ptr", "cos_ptr", "sin_ptr", "q_norm_ptr", "k_norm_ptr", "keys_ptr", "values_ptr")
    heads = dict.fromkeys(pointers, BF16) | {"slots_ptr": "*i64", "num_tokens": "i32", "eps": "fp32"}
    known: dict[str, object] = {"HEADS": 32, "KV_HEADS": 8, "HALF": 64, "NORM": True, "TOKENS": 16, "TILE_HEADS": 8}
    known |= {"BLOCK_SIZE": 64, "key_scales_ptr": None, "value_scales_ptr": None, "LARGEST": None}
    report(elementwise._norm_rope_store_kernel, heads, known, 4)
    for kept_in, largest in (("*i8", 127.0), ("*fp8e4nv", 448.0)):
        low = heads | {"keys_ptr": kept_in, "values_ptr": kept_in, "key_scales_ptr": FP32, "value_scales_ptr": FP32}
        scaled = {name: value for name, value in known.items() if name not in low} | {"LARGEST": largest}
        report(elementwise._norm_rope_store_kernel, low, scaled, 4)
    shapes = ((1, 2560, 9728, False), (1, 19456, 2560, True), (16, 6144, 2560, False), (16, 2560, 9728, False))
    for num_rows, columns, depth, gated in shapes:
        tiles = skinny.choose_tiles(num_rows, columns, depth)
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
            known |= {"M_TILE": skinny.MAX_ROWS, "SPLIT": tiles.split, "WIDEN": False}
            matmul |= {"rows": "i32"} | ({"out_ptr": FP32} if tiles.split > 1 else {})
            report(skinny._rows_kernel, matmul, known, tiles.num_warps, tiles.num_stages)
    summed = {"partial_ptr": FP32, "out_ptr": BF16, "rows": "i32", "columns": "i32"}
    known = {"bias_ptr": None, "BIAS": False, "GATED": True, "SPLIT": 6, "N_TILE": skinny.SUM_TILE}
    report(skinny._sum_kernel, summed, known, 2)
    normed = {
        "partial_ptr": FP32,
        "residual_ptr": BF16,
        "norm_ptr": BF16,
        "out_ptr": BF16,
        "eps": "fp32",
        "rows": "i32",
    }
    known = {"bias_ptr": None, "BIAS": False, "SPLIT": 6, "SIZE": 2560, "BLOCK": 4096}
    report(skinny._sum_norm_kernel, normed, known, 8)
    for kept_in in ("bf16", "i8", "fp8e4nv"):
        report_attention(kept_in, rows=16, is_shared=True)
        report_attention(kept_in, rows=128, is_shared=False)


if __name__ == "__main__":
    main()
