# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Squared maximum mean discrepancy and its gradient in one pass over all pairs of rows, each pair once.

With p the rows of x and y as in mmd2_points.py, and W_ij the weight of a pair (1 / N^2 or 1 / N(N-1) within x, -1 / NM
across),

    MMD^2 = sum_ij W_ij k(d_ij^2),    dMMD^2 / dp_i = sum_j G_ij (p_i - p_j),    G_ij = 4 W_ij k'(d_ij^2).

A pair of blocks is a tile. One product gives its distances |p_i|^2 + |p_j|^2 - 2 p_i . p_j, and two more give the sums
of G_ij p_j for the rows of one block, and the sums of G_ij p_i for those of the other.

Tiles with a block in common add to the same sums. Therefore each block occurs once in a round, as in a tournament, and
the tiles of a round run side by side. The rounds follow one another, so that the order of every sum is fixed.
"""

import numba
import numpy as np

from .blocks import sum_line
from .math import JIT, array_at, exp
from .mmd2_points import (
    SIDE,
    allocate,
    arrange,
    block_rows,
    block_sizes,
    divide_memory,
    divide_up,
    find_centre,
    write_gradient,
)
from .products import ROWS, VECTORS, add_product
from .threads import compile_kernel

DEPTH = 128  # columns of a product at a time: a panel stays in the innermost cache, and sums keep their digits
ROWS_SUMMED = 8  # rows that are added in float32: over many more, values of nearly 1 are all rounded to one side

_TWO, _NOTHING = np.float32(2), np.float32(0)


@compile_kernel
def mmd2_kernel(
    x,  # (N, K) of data
    y,  # (M, K) of data
    shape,  # N, M, K
    kind,  # of data, as in blocks.py
    rows,  # of x and y together, whose median is the centre
    stride,  # distance between two of them, modulo N + M
    bandwidths,  # address of c, (members,) of float64
    members,
    is_rbf,  # whether the kernel is "rbf"; otherwise "imq"
    is_unbiased,  # whether the estimator is "u", which leaves out the pairs of a point and itself
    value,  # written: address of MMD^2, () of number
    dx,  # written: address of the gradient, (N, K) of number, or 0 if it is not needed
    dy,  # written: address of the gradient, (M, K) of number, or 0 if it is not needed
    zero,  # of number
):
    """Write the value, and the gradients that are needed."""
    memory, totals, c = allocate(shape, dx != 0 or dy != 0, bandwidths, members, zero)
    centre = find_centre(x, y, shape, kind, rows, stride, zero)
    blocks_of_x, blocks = divide_up(shape[0], SIDE), len(totals)
    for a in numba.prange(blocks):
        arrange(x, y, shape, kind, a, centre, memory)
    players = blocks + blocks % 2
    for turn in range(players):
        # A name, since numba makes no parallel loop of a prange whose length is a conditional expression.
        tables = blocks if turn == players - 1 else players // 2
        for table in numba.prange(tables):
            a, b = _pair(turn, np.int64(table), players)
            if b < blocks:
                a_needed, b_needed = (dx if a < blocks_of_x else dy) != 0, (dx if b < blocks_of_x else dy) != 0
                totals[a] += _visit(a, b, shape, memory, c, is_rbf, is_unbiased, a_needed, b_needed)
    _write_sum(totals, value, zero)
    for a in numba.prange(blocks):
        out = dx if a < blocks_of_x else dy
        if out:
            write_gradient(out, shape, a, memory)


@numba.njit(forceinline=True, error_model="numpy")
def _pair(turn, table, players):
    """Return two blocks: in each turn but the last, each of an even number of players has another partner."""
    if turn == players - 1:
        return table, table
    if table == 0:
        return turn, players - 1
    return (turn + table) % (players - 1), (turn - table) % (players - 1)


@numba.njit(error_model="numpy")
def _write_sum(totals, address, zero):
    total = 0.0
    for n in range(len(totals)):
        total += totals[n]
    array_at(address, 1, zero)[0] = total


@numba.njit(error_model="numpy")
def _weight(shape, a, b, is_unbiased):
    """Return the weight W of the pairs of two blocks."""
    blocks_of_x = divide_up(shape[0], SIDE)
    n, m = np.float64(shape[0 if a < blocks_of_x else 1]), np.float64(shape[0 if b < blocks_of_x else 1])
    if (a < blocks_of_x) != (b < blocks_of_x):
        return -1 / (n * m)
    return 1 / (n * (n - 1 if is_unbiased else n))


@numba.njit(error_model="numpy")
def _visit(a, b, shape, memory, c, is_rbf, is_unbiased, a_needed, b_needed):
    """Return the share of a tile in the value, and add its shares to the gradients that are needed."""
    sizes = block_sizes(shape, memory)
    points, sums = divide_memory(memory, sizes)
    K, width, (_, n), (_, m) = shape[2], sizes.width, block_rows(a, shape), block_rows(b, shape)
    tile = np.zeros(divide_up(n, ROWS) * ROWS * SIDE, type(memory[0]))
    for start in range(0, K, DEPTH):
        depth = min(DEPTH, K - start)
        for j in range(0, m, width):
            right = (b * SIDE + j) * K + start * width
            for i in range(0, n, ROWS):
                left = (a * SIDE + i // width * width) * K + start * width + i % width
                out = i * SIDE + j
                add_product(VECTORS, tile, out, SIDE, points.panels, left, 1, width, points.panels, right, width, depth)
    weight = _weight(shape, a, b, is_unbiased) / len(c)
    total = _evaluate(
        tile, a, b, n, m, points, c, is_rbf, is_unbiased, 4 * weight, sums.repulsion, a_needed or b_needed
    )
    a_start, b_start = a * sizes.chunks, b * sizes.chunks
    if a_needed:
        _attract(sums.attraction, a_start, n, tile, SIDE, 1, points.chunks, b_start, m, K, width)
    if b_needed and a != b:
        _attract(sums.attraction, b_start, m, tile, 1, SIDE, points.chunks, a_start, n, K, width)
    return total * weight * (1 if a == b else 2)


@numba.njit(forceinline=True, error_model="numpy")
def _attract(out, out_start, rows, slopes, slopes_row, slopes_step, right, right_start, depth, K, width):
    """Add the products of slopes, or of their transpose, with the points of a block in chunks."""
    for column in range(0, K, width):
        start = right_start + column * SIDE
        for i in range(0, rows, ROWS):
            place, left = out_start + column * SIDE + i * width, i * slopes_row
            if 2 * (K - column) <= width:
                add_product(1, out, place, width, slopes, left, slopes_row, slopes_step, right, start, width, depth)
            else:
                add_product(2, out, place, width, slopes, left, slopes_row, slopes_step, right, start, width, depth)


@numba.njit(**JIT)
def _evaluate(tile, a, b, rows, columns, points, c, is_rbf, is_unbiased, scale, repulsion, slopes_needed):
    """Turn the products of a tile into slopes G, add their sums, and return the sum of the kernel in float64."""
    squares, marks = points.squares[b * SIDE : b * SIDE + columns], points.marks[a * SIDE : a * SIDE + rows]
    d2, values, across = np.zeros_like(squares), np.zeros_like(squares), np.zeros_like(squares)
    rates, factors = np.empty_like(c), np.empty_like(c)
    for n in range(len(c)):
        rates[n], factors[n] = -1 / c[n], -scale / c[n]
    total = 0.0
    for r in range(rows):
        line, square = tile[r * SIDE : r * SIDE + columns], points.squares[a * SIDE + r]
        for n in range(columns):
            distance = (square - _TWO * line[n]) + squares[n]
            d2[n] = _NOTHING if distance < 0 else distance
            line[n] = _NOTHING
        if a == b:
            d2[r] = marks[r] + (np.inf if is_unbiased else 0)
        for n in range(len(c)):
            if is_rbf:
                _add_rbf(d2, rates[n], factors[n], values, line, slopes_needed)
            else:
                _add_imq(d2, c[n], factors[n], values, line, slopes_needed)
        if r % ROWS_SUMMED == 0 or r == rows - 1:
            total += sum_line(values, 0, columns, values.dtype.type(0))
            values[:] = 0
        if slopes_needed:
            if a == b:
                line[r] = marks[r]  # exactly zero, where the terms of the gradient would leave a rounding error
            else:
                for n in range(columns):
                    across[n] += line[n]
            repulsion[a * SIDE + r] += sum_line(line, 0, columns, line.dtype.type(0))
    if slopes_needed and a != b:
        for n in range(columns):
            repulsion[b * SIDE + n] += across[n]
    return total


@numba.njit(**JIT)
def _add_imq(d2, c, factor, values, slopes, slopes_needed):
    """Add the kernel of one bandwidth to the values, and its scaled derivative to the slopes."""
    if slopes_needed:
        for n in range(len(d2)):
            k = c / (c + d2[n])
            values[n] += k
            slopes[n] += factor * (k * k)
    else:
        for n in range(len(d2)):
            values[n] += c / (c + d2[n])


@numba.njit(**JIT)
def _add_rbf(d2, rate, factor, values, slopes, slopes_needed):
    """Add the kernel of one bandwidth to the values, and its scaled derivative to the slopes."""
    if slopes_needed:
        for n in range(len(d2)):
            k = exp(d2[n] * rate)
            values[n] += k
            slopes[n] += factor * k
    else:
        for n in range(len(d2)):
            values[n] += exp(d2[n] * rate)
