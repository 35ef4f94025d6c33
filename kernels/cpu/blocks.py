# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Blocks of a matrix of any strides and dtype, read into contiguous numbers and written back.

A matrix is a tuple: its address, the stride of its rows, and the stride of its columns. A block has a shape of rows and
columns, and lies row by row in the cache. Numbers are float32, or float64 for float64. numba has no half precision:
bfloat16 and float16 are read and written as bits, and rounded to nearest, ties to even.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from .math import INLINED, JIT, array_at, bits_float, float_bits

NATIVE, BFLOAT16, FLOAT16 = 0, 1, 2
KINDS = {torch.float32: NATIVE, torch.float64: NATIVE, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
ZEROS = {torch.float32: np.float32(0), torch.float64: np.float64(0)}  # of the dtypes of numbers

Matrix = tuple[int, int, int]

_WORD = np.uint16(0)
_2_TO_112 = np.float32(2.0**112)


def locate(x: Tensor | None) -> Matrix:
    """Return a tensor `(rows, columns)`, or `(rows,)` as one column, as a matrix; for None one that is not read."""
    if x is None:
        return 0, 0, 0
    strides = x.stride()
    return x.data_ptr(), strides[0], strides[1] if len(strides) > 1 else 1


@numba.njit(forceinline=True, error_model="numpy")
def _address(matrix, kind, row, column, numbers):
    """Return the address of one element of a matrix; `numbers` is any array of numbers."""
    size = numbers.itemsize if kind == NATIVE else 2
    return matrix[0] + (row * matrix[1] + column * matrix[2]) * size


@numba.njit(forceinline=True, error_model="numpy")
def lies_like_block(matrix, kind, shape):
    """Return whether a block lies in memory as in the cache, so that a copy is not needed."""
    rows, columns = shape
    return kind == NATIVE and matrix[2] == 1 and (rows == 1 or matrix[1] == columns)


@numba.njit(**JIT)
def read_block(matrix, kind, row, column, shape, scratch):
    """Return the block at (row, column): the memory itself where it lies so, otherwise a copy in `scratch`."""
    rows, columns = shape
    address = _address(matrix, kind, row, column, scratch)
    if lies_like_block(matrix, kind, shape):
        return array_at(address, rows * columns, scratch[0])
    _, row_stride, column_stride = matrix
    length = (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    for r in range(rows):
        line = scratch[r * columns : (r + 1) * columns]
        if kind == NATIVE:
            numbers = array_at(address, length, scratch[0])
            for c in range(columns):
                line[c] = numbers[r * row_stride + c * column_stride]
        else:
            words = array_at(address, length, _WORD)
            for c in range(columns):
                word = words[r * row_stride + c * column_stride]
                line[c] = _widen_bfloat16(word) if kind == BFLOAT16 else _widen_float16(word)
    return scratch[: rows * columns]


@numba.njit(forceinline=True, error_model="numpy")
def block_to_write(matrix, kind, row, column, shape, scratch):
    """Return where to compute the block at (row, column) before `write_block`: in its own memory, or in `scratch`."""
    if lies_like_block(matrix, kind, shape):
        return array_at(_address(matrix, kind, row, column, scratch), shape[0] * shape[1], scratch[0])
    return scratch[: shape[0] * shape[1]]


@numba.njit(**JIT)
def write_block(block, matrix, kind, row, column, shape):
    """Write a block of `block_to_write` to its own memory, unless it is there."""
    if lies_like_block(matrix, kind, shape):
        return
    rows, columns = shape
    _, row_stride, column_stride = matrix
    address = _address(matrix, kind, row, column, block)
    length = (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    for r in range(rows):
        line = block[r * columns : (r + 1) * columns]
        if kind == NATIVE:
            numbers = array_at(address, length, block[0])
            for c in range(columns):
                numbers[r * row_stride + c * column_stride] = line[c]
        else:
            words = array_at(address, length, _WORD)
            for c in range(columns):
                word = _round_to_bfloat16(line[c]) if kind == BFLOAT16 else _round_to_float16(line[c])
                words[r * row_stride + c * column_stride] = word


@numba.njit(**JIT)
def sum_line(block, start, length, zero):
    """Return the sum of neighbouring numbers in the type of `zero`, always in one order: eight sums of each 64."""
    total = zero
    for first in range(start, start + length, 64):
        end = min(first + 64, start + length)
        total += _sum_some(block, first, end, zero)
    return total


@numba.njit(**INLINED)
def _sum_some(block, first, end, zero):
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
    whole = end - (end - first) % 8
    for i in range(first, whole, 8):
        s0 += type(zero)(block[i])
        s1 += type(zero)(block[i + 1])
        s2 += type(zero)(block[i + 2])
        s3 += type(zero)(block[i + 3])
        s4 += type(zero)(block[i + 4])
        s5 += type(zero)(block[i + 5])
        s6 += type(zero)(block[i + 6])
        s7 += type(zero)(block[i + 7])
    for i in range(whole, end):
        s0 += type(zero)(block[i])
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@numba.njit(forceinline=True, error_model="numpy")
def _widen_bfloat16(word):
    return bits_float(np.int32(np.int32(word) << 16))


@numba.njit(forceinline=True, error_model="numpy")
def _widen_float16(word):
    """Shift exponent and mantissa into place, and correct the exponent by a product, which subnormals survive."""
    magnitude = np.int32(np.int32(word & 0x7FFF) << 13)
    finite = bits_float(magnitude) * _2_TO_112
    bits = float_bits(finite) if magnitude < 0x0F800000 else np.int32(magnitude | 0x7F800000)
    return bits_float(np.int32(bits | np.int32(np.int32(word & 0x8000) << 16)))


@numba.njit(forceinline=True, error_model="numpy")
def _round_to_bfloat16(x):
    x = np.float32(x)
    bits = float_bits(x)
    rounded = np.int32((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return np.uint16(rounded if x == x else (bits >> 16) | 0x40)


@numba.njit(forceinline=True, error_model="numpy")
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
