# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The points of mmd2 as its kernel needs them: in blocks, relative to a centre, with squares, and twice in memory.

The points p are the rows of x and then those of y, in blocks of SIDE rows; no block has rows of both. They are relative
to a centre among them: an offset of both samples then costs no digits.

A block lies in memory in chunks of columns, row by row, and in panels of rows, column by column. Both have the columns
of a tile of products.py as their width W, and are padded with zeros, so that a product reads neighbouring numbers.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

from .blocks import lies_like_block, read_block
from .math import JIT, array_at
from .products import columns_per_tile

SIDE = 128  # measured: 64 takes a third longer; 256 takes a tenth less, but leaves few tiles for several threads

_NOTHING = np.float32(0)


class Points(NamedTuple):
    """The points of all blocks, padded with zeros, and for each point its square and a mark.

    A mark is 0, and NaN for a point with a NaN or an infinity. Infinities are 0 in the panels: the distance from such a
    point to others is then infinite by its square alone, and not NaN.
    """

    chunks: Any  # (blocks, K / W, SIDE, W) of number
    panels: Any  # (blocks, SIDE / W, K, W) of number
    squares: Any  # (blocks, SIDE) of number
    marks: Any  # (blocks, SIDE) of number


class Sums(NamedTuple):
    """The two terms of a gradient: it is repulsion times the point, minus attraction."""

    repulsion: Any  # sum_j G_ij, (blocks, SIDE) of number
    attraction: Any  # sum_j G_ij p_j, in chunks, (blocks, K / W, SIDE, W) of number


class Sizes(NamedTuple):
    """Sizes of the blocks of both samples."""

    blocks_of_x: int
    blocks: int
    width: int  # W
    chunks: int  # numbers of a block in chunks
    panels: int  # numbers of a block in panels


@numba.njit(forceinline=True, error_model="numpy")
def divide_up(n, size):
    return (n + size - 1) // size


@numba.njit(forceinline=True, error_model="numpy")
def block_sizes(shape, numbers):
    N, M, K = shape
    width, blocks_of_x = columns_per_tile(numbers), divide_up(N, SIDE)
    blocks = blocks_of_x + divide_up(M, SIDE)
    return Sizes(blocks_of_x, blocks, width, SIDE * width * divide_up(K, width), SIDE * K)


@numba.njit(error_model="numpy")
def allocate(shape, gradient_needed, bandwidths, members, zero):
    """Return memory for `divide_memory`, the total of each block, and the bandwidths as numbers."""
    number = type(zero)
    sizes, c = block_sizes(shape, np.empty(1, number)), np.empty(members, number)
    for n in range(members):
        c[n] = array_at(bandwidths, members, np.float64(0))[n]
    length = sizes.panels + 3 * SIDE + sizes.chunks * (2 if gradient_needed else 1)
    return np.zeros(sizes.blocks * length, number), np.zeros(sizes.blocks), c


@numba.njit(error_model="numpy")
def divide_memory(memory, sizes):
    """Return the points and the sums that lie in one array. Without a gradient there is no room for attraction."""
    blocks = sizes.blocks
    after_chunks = blocks * sizes.chunks
    after_panels = after_chunks + blocks * sizes.panels
    chunks, panels, rest = memory[:after_chunks], memory[after_chunks:after_panels], memory[after_panels:]
    squares, marks, repulsion = (
        rest[: blocks * SIDE],
        rest[blocks * SIDE : 2 * blocks * SIDE],
        rest[2 * blocks * SIDE : 3 * blocks * SIDE],
    )
    return Points(chunks, panels, squares, marks), Sums(repulsion, rest[3 * blocks * SIDE :])


@numba.njit(forceinline=True, error_model="numpy")
def block_rows(block, shape):
    """Return the first row of a block in its sample, and how many rows it has."""
    blocks_of_x = divide_up(shape[0], SIDE)
    first, rows = (block * SIDE, shape[0]) if block < blocks_of_x else ((block - blocks_of_x) * SIDE, shape[1])
    return first, min(SIDE, rows - first)


@numba.njit(error_model="numpy")
def _read(matrix, kind, row, rows, K, zero):
    """Return some rows of a sample as contiguous numbers."""
    shape = rows, K
    scratch = np.empty(1 if lies_like_block(matrix, kind, shape) else rows * K, type(zero))
    return read_block(matrix, kind, row, 0, shape, scratch)


@numba.njit(error_model="numpy")
def find_centre(x, y, shape, kind, rows, stride, zero):
    """Return the median of each column over some rows of x and y together, or 0 where it is not finite."""
    N, M, K = shape
    lines = np.empty(rows * K, type(zero))
    for r in range(rows):
        row = r * stride % (N + M)
        line = _read(x if row < N else y, kind, row if row < N else row - N, 1, K, zero)
        for column in range(K):
            lines[r * K + column] = line[column]
    return _median(lines, rows, K)


@numba.njit(**JIT)
def _median(lines, rows, K):
    """Return the median of each of K columns, or 0 where it is not finite. The rows are reordered."""
    for end in range(rows - 1, rows // 2 - 1, -1):  # moves the largest numbers so far to this row
        for r in range(end):
            line, following = lines[r * K : (r + 1) * K], lines[(r + 1) * K : (r + 2) * K]
            for column in range(K):
                low, high = line[column], following[column]
                line[column], following[column] = min(low, high), max(low, high)
    median = lines[rows // 2 * K : (rows // 2 + 1) * K]
    for column in range(K):
        median[column] = median[column] if abs(median[column]) < np.inf else _NOTHING
    return median


@numba.njit(**JIT)
def arrange(x, y, shape, kind, a, centre, memory):
    """Write the points of a block relative to the centre."""
    sizes = block_sizes(shape, memory)
    points, _ = divide_memory(memory, sizes)
    K, width, (first, rows) = shape[2], sizes.width, block_rows(a, shape)
    chunks = points.chunks[a * sizes.chunks : (a + 1) * sizes.chunks]
    panels = points.panels[a * sizes.panels : (a + 1) * sizes.panels]
    squares, marks = points.squares[a * SIDE : (a + 1) * SIDE], points.marks[a * SIDE : (a + 1) * SIDE]
    block = _read(x if a < sizes.blocks_of_x else y, kind, first, rows, K, memory[0])
    for start in range(0, K, width):
        for r in range(rows):
            line = chunks[start * SIDE + r * width : start * SIDE + (r + 1) * width]
            for column in range(min(width, K - start)):
                line[column] = block[r * K + start + column] - centre[start + column]
    _fill_panels(chunks, panels, squares, marks, rows, K, width)


@numba.njit(**JIT)
def _fill_panels(chunks, panels, squares, marks, rows, K, width):
    """Transpose a block, and add up squares and marks."""
    for start in range(0, rows, width):
        square, mark = np.zeros(width), marks[start : start + width]  # float64: eager's sums err less than one by one
        for column in range(K):
            line = panels[start * K + column * width : start * K + (column + 1) * width]
            first = column // width * width * SIDE + column % width + start * width
            for r in range(min(width, rows - start)):
                line[r] = chunks[first + r * width]
            for r in range(width):
                square[r] += np.float64(line[r]) * np.float64(line[r])
                mark[r] += line[r] * _NOTHING
        for r in range(width):
            squares[start + r] = square[r]
    total = _NOTHING
    for r in range(rows):
        total += marks[r]
    if total != 0:
        for n in range(len(panels)):
            panels[n] = _NOTHING if abs(panels[n]) == np.inf else panels[n]


@numba.njit(**JIT)
def write_gradient(address, shape, a, memory):
    """Write the gradient of the rows of a block."""
    sizes = block_sizes(shape, memory)
    points, sums = divide_memory(memory, sizes)
    K, width, (first, rows) = shape[2], sizes.width, block_rows(a, shape)
    gradient = array_at(address, (first + rows) * K, memory[0])
    for r in range(rows):
        repulsion, out = sums.repulsion[a * SIDE + r], gradient[(first + r) * K : (first + r + 1) * K]
        for start in range(0, K, width):
            place = a * sizes.chunks + start * SIDE + r * width
            point, attraction = points.chunks[place : place + width], sums.attraction[place : place + width]
            for column in range(min(width, K - start)):
                out[start + column] = repulsion * point[column] - attraction[column]
