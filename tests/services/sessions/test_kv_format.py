"""Each format against a slow twin of its definition, its error bound, and what its reader refuses."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from services.errors import SessionCorrupt
from services.sessions.kv_format import SMALLEST_SCALE, pack, unpack
from services.sessions.kv_sizes import stored_bytes
from services.sessions.store import KVFormat

FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPE = (2, 2, 3, 2, 8)
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
FLOAT32_SLACK = 1 + 2.0**-16
"""What the float32 arithmetic of scaling adds to the bounds."""

shapes = st.tuples(*(st.integers(1, 3) for _ in range(4)), st.integers(1, 9))
dtypes = st.sampled_from(DTYPES)


@st.composite
def tensors(draw: st.DrawFn, finite: bool = True) -> torch.Tensor:
    """Vectors of very different sizes, with zeros among them; unless `finite`, of any bits at all."""
    shape, dtype = draw(shapes), draw(dtypes)
    if not finite:
        size = stored_bytes(shape, dtype.itemsize, "raw")
        return unpack(draw(st.binary(min_size=size, max_size=size)), shape, dtype, "raw")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    exponents = torch.randint(-6, 4, (*shape[:-1], 1), generator=generator)
    values = torch.randn(shape, generator=generator) * 10.0**exponents
    zeros = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return values.masked_fill(zeros, 0.0).to(dtype)


def bits(data: torch.Tensor) -> bytes:
    return data.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def twin_zstd(data: torch.Tensor) -> bytes:
    """What is in the frame."""
    return b"".join(bits(data)[plane :: data.itemsize] for plane in range(data.itemsize))


FLOAT8 = [
    (-1) ** (code >> 7)
    * ((code & 7) * 2.0**-9 if code >> 3 & 15 == 0 else (8 + (code & 7)) * 2.0 ** ((code >> 3 & 15) - 10))
    for code in range(256)
    if code & 127 != 127
]
"""Values of e4m3 by code, without its two NaNs: a sign, four bits of exponent, three of mantissa."""
CODES = [code for code in range(256) if code & 127 != 127]


def twin_int8(value: float) -> int:
    return round(value) % 256  # Python rounds ties to even


def twin_fp8(value: float) -> int:
    sign = np.signbit(value)
    _, _, code = min(
        (abs(number - value), code & 1, code)
        for code, number in zip(CODES, FLOAT8, strict=True)
        if bool(code >> 7) == sign
    )
    return code


def twin_rounded(data: torch.Tensor, magic: bytes, largest: float, twin: Callable[[float], int]) -> bytes:
    scales, codes = b"", b""
    for vector in data.float().view(-1, data.shape[-1]).numpy():
        scale = max(np.abs(vector).max() / np.float32(largest), np.float32(SMALLEST_SCALE))
        scales += struct.pack("<f", scale)
        codes += bytes(twin(float(value / scale)) for value in vector)
    return magic + scales + codes


@given(tensors(finite=False), st.sampled_from(["raw", "zstd"]))
def test_lossless_formats_keep_every_bit(data: torch.Tensor, kv_format: KVFormat) -> None:
    packed = bytes(pack(data, kv_format))
    assert bits(unpack(packed, data.shape, data.dtype, kv_format)) == bits(data)


@given(tensors(finite=False))
def test_the_twins_of_the_lossless_formats(data: torch.Tensor) -> None:
    assert bytes(pack(data, "raw")) == bits(data)
    assert zstandard.decompress(pack(data, "zstd")) == twin_zstd(data)


@given(tensors())
def test_the_twins_of_the_lossy_formats(data: torch.Tensor) -> None:
    assert pack(data, "int8") == twin_rounded(data, b"KVI8", 127.0, twin_int8)
    assert pack(data, "fp8") == twin_rounded(data, b"KVF8", 448.0, twin_fp8)


@given(tensors())
def test_error_bounds(data: torch.Tensor) -> None:
    exact = data.double()
    largest = exact.abs().amax(-1, keepdim=True)
    for kv_format, divisor in (("int8", 127.0), ("fp8", 448.0)):
        back = unpack(bytes(pack(data, kv_format)), data.shape, data.dtype, kv_format).double()  # type: ignore[arg-type]
        scale = (largest / divisor).clamp_min(SMALLEST_SCALE)
        code = scale / 2 if kv_format == "int8" else torch.maximum(exact.abs() * 2.0**-4, scale * 2.0**-10)
        smallest = torch.finfo(data.dtype).smallest_normal * ROUNDOFF[data.dtype]  # below it float16 is coarser
        bound = code * FLOAT32_SLACK + back.abs() * ROUNDOFF[data.dtype] + smallest
        assert ((back - exact).abs() <= bound).all()


@pytest.mark.parametrize("kv_format", ["int8", "fp8"])
def test_zero_stays_zero_and_the_largest_element_keeps_its_value(kv_format: KVFormat) -> None:
    data = torch.tensor([[0.0, 0.0, 0.0], [0.0, -3.0, 1e-9], [1e-40, 0.0, 0.0]])
    back = unpack(bytes(pack(data, kv_format)), data.shape, data.dtype, kv_format)
    assert back[0].tolist() == [0.0, 0.0, 0.0]
    assert back[1].tolist() == pytest.approx([0.0, -3.0, 0.0], abs=1e-6)
    assert back[2].abs().max() <= SMALLEST_SCALE


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_spoils_its_own_vector_only(bad: float, dtype: torch.dtype) -> None:
    data = torch.ones(SHAPE, dtype=dtype)
    data[1, 0, 2, 1, 3] = bad
    for kv_format in FORMATS:
        back = unpack(bytes(pack(data, kv_format)), SHAPE, dtype, kv_format)
        spoiled = back[1, 0, 2, 1].clone()
        back[1, 0, 2, 1] = 1.0
        torch.testing.assert_close(back, torch.ones(SHAPE, dtype=dtype))
        if kv_format in ("raw", "zstd"):
            assert bits(spoiled) == bits(data[1, 0, 2, 1])
        else:
            assert spoiled.isnan().all()


@given(tensors(finite=False), st.sampled_from(FORMATS))
def test_the_size_is_known_before(data: torch.Tensor, kv_format: KVFormat) -> None:
    size = len(pack(data, kv_format))
    bound = stored_bytes(data.shape, data.dtype.itemsize, kv_format)
    assert size <= bound if kv_format == "zstd" else size == bound


@pytest.mark.parametrize("num_bytes", [1, 1000, 131072, 1 << 20])
def test_what_cannot_be_compressed_stays_in_its_bound(num_bytes: int) -> None:
    generator = torch.Generator().manual_seed(num_bytes)
    data = torch.randint(0, 256, (num_bytes,), generator=generator, dtype=torch.uint8)
    assert num_bytes < len(pack(data, "zstd")) <= stored_bytes(data.shape, data.dtype.itemsize, "zstd")


@given(tensors(), st.sampled_from(FORMATS), st.data())
def test_another_size_is_refused(data: torch.Tensor, kv_format: KVFormat, draws: st.DataObject) -> None:
    packed = bytes(pack(data, kv_format))
    cut = draws.draw(st.integers(0, len(packed) - 1))
    for damaged in (packed[:cut], packed + packed[cut:]):
        with pytest.raises(SessionCorrupt):
            unpack(damaged, data.shape, data.dtype, kv_format)


@given(tensors(), st.permutations(["zstd", "int8", "fp8"]))
def test_a_compressed_or_rounded_format_is_not_mistaken_for_another(
    data: torch.Tensor, kv_formats: list[KVFormat]
) -> None:
    with pytest.raises(SessionCorrupt):
        unpack(bytes(pack(data, kv_formats[0])), data.shape, data.dtype, kv_formats[1])


@given(st.sampled_from(FORMATS), st.binary(max_size=300))
def test_anything_else_is_corrupt_or_a_tensor_of_that_shape(kv_format: KVFormat, data: bytes) -> None:
    try:
        back = unpack(data, SHAPE, torch.bfloat16, kv_format)
    except SessionCorrupt:
        return
    assert back.shape == SHAPE
    assert back.dtype == torch.bfloat16


def frame(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)  # type: ignore[arg-type]


def resized(frame: bytes, claimed: int) -> bytes:
    """The frame with another content size in its header: two bytes after magic and descriptor, biased by 256."""
    assert frame[4] >> 6 == 1
    assert frame[4] & 32
    return frame[:5] + struct.pack("<H", claimed - 256) + frame[7:]


def windowed(content: bytes, window_log: int) -> bytes:
    """A frame of one raw block that asks its reader for a window of 2**window_log bytes."""
    header = struct.pack("<IBBH", zstandard.MAGIC_NUMBER, 1 << 6, (window_log - 10) << 3, len(content) - 256)
    return header + struct.pack("<I", len(content) << 3 | 1)[:3] + content


CONTENT = bytes(1024)
LIES = {
    "no size": frame(CONTENT, write_content_size=False),
    "larger content": frame(bytes(1025)),
    "bomb": frame(bytes(100 << 20)),
    "more content than it claims": resized(frame(bytes(30_000)), 1024),
    "less content than it claims": resized(frame(bytes(1000)), 1024),
    "two frames": frame(CONTENT[:512]) + frame(CONTENT[:512]),
    "a frame after it": frame(CONTENT) + frame(b""),
    "a skippable frame after it": frame(CONTENT) + struct.pack("<II", 0x184D2A50, 0),
    "a skippable frame before it": struct.pack("<II", 0x184D2A50, 0) + frame(CONTENT),
    "skippable, of that size": struct.pack("<II", 0x184D2A50, 1024) + CONTENT,
    "a byte after it": frame(CONTENT) + b"\0",
    "a large window": windowed(CONTENT, 27),
    "a huge window": windowed(CONTENT, 41),
    "damaged checksum": frame(CONTENT, write_checksum=True)[:-1] + b"\0",
    "empty": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_frame_that_lies_is_refused_and_allocates_nothing(lie: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SessionCorrupt):
            unpack(LIES[lie], (512,), torch.bfloat16, "zstd")
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()


def test_the_frames_above_are_only_wrong_where_they_lie() -> None:
    for good in (frame(CONTENT), resized(frame(CONTENT), 1024), windowed(CONTENT, 10)):
        assert unpack(good, (512,), torch.bfloat16, "zstd").eq(0).all()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_the_tensor_outlives_the_bytes(kv_format: KVFormat) -> None:
    """Raw, it is the bytes' own memory, which it keeps alive."""
    wanted = [torch.full(SHAPE, float(at)) for at in range(20)]
    tensors = [unpack(bytes(pack(data, kv_format)), SHAPE, torch.float32, kv_format) for data in wanted]
    gc.collect()
    for tensor, data in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(tensor, data, rtol=2**-4, atol=0)
