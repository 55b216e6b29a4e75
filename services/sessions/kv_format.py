"""KV tensors as bytes, in one of the formats of `store.KVFormat`. Knows nothing of sessions, layers or tokens.

    raw    the tensor's little-endian memory
    zstd   one Zstandard frame of the same in byte planes: the first byte of every element, then all second ones, ...
    int8   "KVI8", one float32 scale per vector, one int8 code per element; an element is code * scale
    fp8    "KVF8", one float32 scale per vector, one float8 (e4m3) code per element; likewise

A vector is the last dimension of the tensor: K or V of one layer, token and head. raw and zstd give back every bit.
Scales are float32, as bfloat16 KV has its range and float16 has not. (On the default model both give int8 the same
root mean square error, 0.0170; float16 would save 3 % of a segment.) Codes are rounded against the scale as stored, so
with u the unit roundoff of the model's dtype (2**-8 for bfloat16), in which the result x' is rounded once more:

    int8   |x' - x| <= scale / 2 + u |x'|                        scale = max |x| of the vector / 127
    fp8    |x' - x| <= max(2**-4 |x|, 2**-10 scale) + u |x'|     scale = max |x| of the vector / 448

A vector with an infinity or a NaN in it has no scale: it is stored, and comes back, as NaN throughout, which attention
would have made of it anyway. Nothing here runs code that is in the bytes, or allocates what only the bytes ask for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import zstandard

from services.errors import SessionCorrupt
from services.sessions.kv_sizes import stored_bytes
from services.sessions.store import KVFormat

ZSTD_LEVEL = 1
SCALE_DTYPE = torch.float32
SMALLEST_SCALE = torch.finfo(SCALE_DTYPE).tiny
"""Keeps scales normal numbers, whose rounding the error bounds rest on, and a vector of zeros from dividing by zero."""


class _Rounding(NamedTuple):
    """How a lossy format rounds: its mark, its codes' type, and the code that the largest element of a vector gets."""

    magic: bytes
    dtype: torch.dtype
    largest: float


_INT8 = _Rounding(b"KVI8", torch.int8, 127.0)
_FP8 = _Rounding(b"KVF8", torch.float8_e4m3fn, 448.0)


def pack(data: torch.Tensor, kv_format: KVFormat) -> memoryview | bytes:
    """The tensor's bytes. In raw format they are its own memory if it is contiguous, valid until it is written."""
    match kv_format:
        case "raw":
            return _memory(data)
        case "zstd":
            planes = _bytes_of(data).view(-1, data.itemsize).T
            return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(_memory(planes))
        case "int8":
            return _pack_rounded(data, _INT8)
        case "fp8":
            return _pack_rounded(data, _FP8)


def unpack(data: bytes, shape: Sequence[int], dtype: torch.dtype, kv_format: KVFormat) -> torch.Tensor:
    """The tensor of this shape and dtype that `pack` made `data` of. It may be `data` itself: it is not to be written.

    Raises:
        SessionCorrupt: if it was not made of such a tensor in this format. Digests of the data are for others to check:
            what raw, int8 and fp8 hold is taken as it is if only its size and mark are right.
    """
    expected_bytes = stored_bytes(shape, dtype.itemsize, kv_format)
    if len(data) > expected_bytes or (len(data) < expected_bytes and kv_format != "zstd"):
        raise SessionCorrupt(f"{len(data)} bytes of format {kv_format}, expected {expected_bytes}")
    match kv_format:
        case "raw":
            return _view(data).view(dtype).view(*shape)
        case "zstd":
            planes = np.frombuffer(_decompress(data, stored_bytes(shape, dtype.itemsize, "raw")), np.uint8)
            elements = planes.reshape(dtype.itemsize, -1).T.copy()
            return torch.from_numpy(elements).view(-1).view(dtype).view(*shape)
        case "int8":
            return _unpack_rounded(data, shape, _INT8).to(dtype)
        case "fp8":
            return _unpack_rounded(data, shape, _FP8).to(dtype)


class _ReadOnlyBytes:
    """Bytes, to numpy as memory that may be written, which nobody does: torch takes no other without a complaint."""

    def __init__(self, data: bytes) -> None:
        self._data = data  # kept alive by whoever looks at them
        address = np.frombuffer(data, np.uint8).ctypes.data
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (len(data),), "data": (address, False)}


def _view(data: bytes) -> torch.Tensor:
    """The bytes as they lie there, uint8; never to be written to. A copy would cost half of what fetching costs."""
    return torch.from_numpy(np.asarray(_ReadOnlyBytes(data)))


def _decompress(frame: bytes, expected_bytes: int) -> bytes:
    """Exactly so many bytes, of a frame that holds nothing else; what it claims is checked before it is read."""
    try:
        claims = zstandard.get_frame_parameters(frame)
        # A writer that knows the size needs no window beyond it; the reader would allocate whatever is claimed.
        if claims.content_size != expected_bytes or claims.window_size > expected_bytes:
            raise SessionCorrupt(f"a Zstandard frame of {claims.content_size} bytes, expected {expected_bytes}")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise SessionCorrupt(f"not a Zstandard frame: {exc}") from exc
    if len(content) != expected_bytes:
        raise SessionCorrupt(f"a Zstandard frame held {len(content)} bytes, expected {expected_bytes}")
    return content


def _pack_rounded(data: torch.Tensor, rounding: _Rounding) -> bytes:
    values = data.detach().to(SCALE_DTYPE)
    scales = (values.abs().amax(-1, keepdim=True) / rounding.largest).clamp_min(SMALLEST_SCALE)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    codes = (values / scales).nan_to_num_(0.0).clamp_(-rounding.largest, rounding.largest)
    if not rounding.dtype.is_floating_point:
        codes.round_()
    return b"".join((rounding.magic, _memory(scales), _memory(codes.to(rounding.dtype))))


def _unpack_rounded(data: bytes, shape: Sequence[int], rounding: _Rounding) -> torch.Tensor:
    start = len(rounding.magic)
    if data[:start] != rounding.magic:
        raise SessionCorrupt(f"bytes do not begin with {rounding.magic!r}")
    memory = _view(data).numpy()
    num_vectors = math.prod(shape[:-1])
    codes_at = start + num_vectors * SCALE_DTYPE.itemsize
    scales = torch.frombuffer(memory, dtype=SCALE_DTYPE, offset=start, count=num_vectors)
    codes = torch.frombuffer(memory, dtype=rounding.dtype, offset=codes_at)
    return codes.view(*shape).to(SCALE_DTYPE) * scales.view(*shape[:-1], 1)


def _bytes_of(data: torch.Tensor) -> torch.Tensor:
    return data.detach().contiguous().view(-1).view(torch.uint8)


def _memory(data: torch.Tensor) -> memoryview:
    return _bytes_of(data).numpy().data  # numpy has neither bfloat16 nor float8, but bytes are bytes
