# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Blocks of a matrix of any strides and dtype, read into contiguous numbers and written back.

A block has `rows` rows of `columns` columns. In memory that is in the cache, it lies row by row with `pitch` numbers a
row, and what is beyond `columns` is 0. Numbers are float32, or float64 for float64. numba has no half precision:
bfloat16 and float16 are read and written as bits, and rounded to nearest, ties to even.
"""

import numba
import numpy as np
import torch

from .math import FASTMATH, array_at, bits_float, float_bits

NATIVE, BFLOAT16, FLOAT16 = 0, 1, 2
KINDS = {torch.float32: NATIVE, torch.float64: NATIVE, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}

_SHORT = np.uint16(0)
_2_TO_112 = np.float32(2.0**112)


@numba.njit(inline="always")
def lies_like_block(kind, row_stride, column_stride, rows, pitch):
    """Return whether the numbers of a block lie in memory as in the cache, so that a copy is not needed."""
    return kind == NATIVE and column_stride == 1 and (rows == 1 or row_stride == pitch)


@numba.njit(fastmath=FASTMATH)
def read_block(address, kind, row_stride, column_stride, rows, columns, pitch, scratch):
    """Return a block as a contiguous array: the memory itself where it is one, otherwise a copy in `scratch`."""
    zero = scratch[0]
    if lies_like_block(kind, row_stride, column_stride, rows, pitch):
        return array_at(address, rows * pitch, zero)
    length = (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    for r in range(rows):
        line = scratch[r * pitch : r * pitch + columns]
        if kind == NATIVE:
            numbers = array_at(address, length, zero)
            if column_stride == 1:
                line[:] = numbers[r * row_stride : r * row_stride + columns]
            else:
                for c in range(columns):
                    line[c] = numbers[r * row_stride + c * column_stride]
        else:
            words = array_at(address, length, _SHORT)
            for c in range(columns):
                word = words[r * row_stride + c * column_stride]
                line[c] = _widen_bfloat16(word) if kind == BFLOAT16 else _widen_float16(word)
        scratch[r * pitch + columns : (r + 1) * pitch] = 0
    return scratch[: rows * pitch]


@numba.njit(inline="always")
def block_to_write(address, kind, row_stride, column_stride, rows, pitch, scratch):
    """Return where to compute a block that `write_block` then writes: in place, or in `scratch`."""
    if lies_like_block(kind, row_stride, column_stride, rows, pitch):
        return array_at(address, rows * pitch, scratch[0])
    return scratch[: rows * pitch]


@numba.njit(fastmath=FASTMATH)
def write_block(block, address, kind, row_stride, column_stride, rows, columns, pitch):
    """Write a block whose numbers are in a scratch of `block_to_write`."""
    if lies_like_block(kind, row_stride, column_stride, rows, pitch):
        return
    length = (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    for r in range(rows):
        line = block[r * pitch : r * pitch + columns]
        if kind == NATIVE:
            numbers = array_at(address, length, block[0])
            for c in range(columns):
                numbers[r * row_stride + c * column_stride] = line[c]
        else:
            words = array_at(address, length, _SHORT)
            for c in range(columns):
                word = _round_to_bfloat16(line[c]) if kind == BFLOAT16 else _round_to_float16(line[c])
                words[r * row_stride + c * column_stride] = word


@numba.njit(inline="always")
def _widen_bfloat16(word):
    return bits_float(np.int32(np.int32(word) << 16))


@numba.njit(inline="always")
def _widen_float16(word):
    """Shift exponent and mantissa into place, and correct the exponent by a product, which subnormals survive."""
    magnitude = np.int32(np.int32(word & 0x7FFF) << 13)
    finite = bits_float(magnitude) * _2_TO_112
    bits = float_bits(finite) if magnitude < 0x0F800000 else np.int32(magnitude | 0x7F800000)
    return bits_float(np.int32(bits | np.int32(np.int32(word & 0x8000) << 16)))


@numba.njit(inline="always")
def _round_to_bfloat16(x):
    x = np.float32(x)
    bits = float_bits(x)
    rounded = np.int32((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return np.uint16(rounded if x == x else (bits >> 16) | 0x40)


@numba.njit(inline="always")
def _round_to_float16(x):
    """Round normals in their bits, and subnormals by adding 1/2, whose last place is that of subnormals."""
    x = np.float32(x)
    bits = float_bits(x)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    sign = np.int32((bits >> 16) & 0x8000)
    normal = np.int32((magnitude + 0xFFF + ((magnitude >> 13) & 1) - 0x38000000) >> 13)
    subnormal = np.int32(float_bits(bits_float(magnitude) + np.float32(0.5)) - 0x3F000000)
    finite = normal if magnitude >= 0x38800000 else subnormal
    overflow = np.int32(0x7C00) if magnitude <= 0x7F800000 else np.int32(0x7E00)
    return np.uint16((finite if magnitude < 0x477FF000 else overflow) | sign)
