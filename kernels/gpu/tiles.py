# ruff: noqa: ANN001, ANN201, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Tiles of a matrix, as device functions: their addresses, their masks, their numbers and their noise.

A tile is a tuple of its first row and column in the matrix, and of the rows `(ROWS, 1)` and columns `(1, COLUMNS)` in
it. In the comments below, `data` is the dtype of a tensor and `number` the dtype of sums: float32, or float64 for
float64.
"""

import triton
import triton.language as tl

from .noise import normal_tile


@triton.jit
def tile_at(row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # row: int32; column: int64
    """Return the tile whose first row and column are these."""
    return row, column, tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]


@triton.jit
def pointers(base, stride, tile, VECTOR: tl.constexpr):  # base: of a matrix; stride: of its rows; tile: of tile_at
    """Return pointers to a tile, `(ROWS, COLUMNS)`. Each group of VECTOR pointers is aligned to its size in bytes."""
    row, column, r, c = tile
    BYTES: tl.constexpr = VECTOR * base.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(base + (row.to(tl.int64) * stride + column) + (r * stride + c), (1, BYTES))


@triton.jit
def in_matrix(rows, columns, tile, MASKED: tl.constexpr, VECTOR: tl.constexpr):  # rows, columns: of the matrix
    """Return which elements of the tile lie in the matrix, `(ROWS, COLUMNS)`: unless MASKED, a constant True."""
    row, column, r, c = tile
    if MASKED:
        columns_left = tl.minimum(columns - column, c.shape[1]).to(tl.int32)
        return (r < rows - row) & tl.max_constancy(c < columns_left, (1, VECTOR))
    else:
        return tl.full((r.shape[0], c.shape[1]), True, tl.int1)


@triton.jit
def widen(x):  # any shape, of data
    """Convert half precision to float32. For bfloat16 a shift needs one instruction, and a conversion two."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def draw_noise(
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    rows,  # rows of the matrix
    columns,  # columns of the matrix
    rows_per_seed,  # rows that draw from one seed
    tile,  # as tile_at returns it
    ONE_SEED: tl.constexpr,  # all rows draw from one seed
    VECTOR: tl.constexpr,  # neighbouring columns that a thread holds
):
    """Return the noise of a tile, `(ROWS, COLUMNS)`, float32. The seed is the Philox key."""
    row, column, r, c = tile
    counters_per_row = ((columns - 1) >> 2) + 1
    if ONE_SEED:
        key = tl.load(seed_ptr)
        first_counter = (row.to(tl.int64) * counters_per_row + (column >> 2)) + r * counters_per_row
    else:
        group = (row + r) // rows_per_seed
        key = tl.load(seed_ptr + group, mask=r < rows - row, other=0)
        first_counter = (row + r - group * rows_per_seed).to(tl.int64) * counters_per_row + (column >> 2)
    return normal_tile(key, first_counter, c.shape[1], VECTOR)
