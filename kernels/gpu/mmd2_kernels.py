# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Squared maximum mean discrepancy and its gradient without a matrix of pairs, as Triton kernels.

The rows of x and of y, each padded with zeros to whole blocks of SIDE rows, stand one after the other as points p,
seen from a centre amid them, so that an offset of the samples costs no digits. Of a pair of blocks a program holds the
squared distances |p_i|^2 + |p_j|^2 - 2 p_i . p_j in registers, with products in full precision: tf32 has a thousandth
of the digits that the error bound asks for. With W_ij the weight of a pair (1 / N^2 or 1 / N(N-1) within x, -1 / NM
across),

    value      MMD^2 = sum_ij W_ij k(d_ij^2). A program takes one pair of blocks, of those above and on the diagonal,
               and writes the sum of its pairs, which above the diagonal count twice; the sums are added up in float64.
    gradient   dMMD^2 / dp_i = 4 sum_j W_ij k'(d_ij^2) (p_i - p_j). A program owns a block of rows, WIDTH of their
               columns, and walks a strip of all rows j, REACH of them at a time; the strips are added up in order.

fused_mmd_op.py launches the kernels and makes them operators of PyTorch.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["N", "M", "blocks"])
def value_kernel(
    points_ptr,
    squares_ptr,
    bandwidths_ptr,
    sums_ptr,
    N,
    M,
    blocks,
    pitch,
    RBF: tl.constexpr,
    ALONE: tl.constexpr,
    SCALES: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Write the weighted sum of one pair of blocks; rows r and blocks - 1 - r of the triangle fill a row of the grid.

    points_ptr: p with zeros to the right, `(blocks * SIDE, pitch)`. squares_ptr: |p|^2. sums_ptr: float64, one for
    each program.
    """
    row, place = tl.program_id(0) // (blocks + 1), tl.program_id(0) % (blocks + 1)
    longer = place < blocks - row
    I = tl.where(longer, row, blocks - 1 - row)
    J = I + tl.where(longer, place, place - (blocks - row))
    i, j = I * SIDE + tl.arange(0, SIDE), J * SIDE + tl.arange(0, SIDE)

    d2 = _squared_distances(points_ptr, squares_ptr, i, j, pitch, DEPTH)
    k, _ = _kernel_and_slope(d2, bandwidths_ptr, RBF, SCALES)
    k = tl.where(_counted(i, j, N, M, ALONE, SIDE), k, 0)
    visited = (2 * row == blocks - 1) & (place >= blocks - row)
    times = tl.where(visited, 0, tl.where(I == J, 1, 2))
    weight = _weight(I * SIDE, J * SIDE, N, M, ALONE, SIDE) * times
    tl.store(sums_ptr + tl.program_id(0), weight * tl.sum(k).to(tl.float64))


@triton.jit(do_not_specialize=["N", "M", "blocks", "first", "rows", "steps"])
def gradient_kernel(
    points_ptr,
    squares_ptr,
    bandwidths_ptr,
    gradients_ptr,
    N,
    M,
    blocks,
    pitch,
    first,
    rows,
    steps,
    RBF: tl.constexpr,
    ALONE: tl.constexpr,
    SCALES: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    REACH: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write what the blocks of one strip add to the gradient of one block's rows, in WIDTH of its columns.

    gradients_ptr: `(strips, rows, pitch)`, for the blocks from `first` on.
    """
    block, strip = tl.program_id(0), tl.program_id(2)
    i = (first + block) * SIDE + tl.arange(0, SIDE)
    width = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    dtype: tl.constexpr = points_ptr.dtype.element_ty
    repulsion = tl.zeros((SIDE,), dtype)
    attraction = tl.zeros((SIDE, WIDTH), dtype)
    for start in range(strip * steps, tl.minimum(strip * steps + steps, blocks * SIDE), REACH):
        j = start + tl.arange(0, REACH)
        d2 = _squared_distances(points_ptr, squares_ptr, i, j, pitch, DEPTH)
        _, slope = _kernel_and_slope(d2, bandwidths_ptr, RBF, SCALES)
        slope *= (4 * _weight((first + block) * SIDE, start, N, M, ALONE, SIDE)).to(dtype)
        slope = tl.where(_counted(i, j, N, M, True, SIDE), slope, 0)
        p_j = tl.load(points_ptr + j.to(tl.int64)[:, None] * pitch + width[None, :])
        repulsion += tl.sum(slope, 1)
        attraction = tl.dot(slope, p_j, attraction, input_precision="ieee", out_dtype=dtype)
    p_i = tl.load(points_ptr + i.to(tl.int64)[:, None] * pitch + width[None, :])
    place = strip.to(tl.int64) * rows + block * SIDE + tl.arange(0, SIDE)
    tl.store(gradients_ptr + place[:, None] * pitch + width[None, :], repulsion[:, None] * p_i - attraction)


@triton.jit
def _squared_distances(points_ptr, squares_ptr, i, j, pitch, DEPTH: tl.constexpr):
    """Return |p_i - p_j|^2 for the points of two blocks, from products over DEPTH columns at a time."""
    i_ptr, j_ptr = points_ptr + i.to(tl.int64) * pitch, points_ptr + j.to(tl.int64) * pitch
    products = tl.zeros((i.shape[0], j.shape[0]), points_ptr.dtype.element_ty)
    for column in range(0, pitch, DEPTH):
        depth = column + tl.arange(0, DEPTH)
        p_i, p_j = tl.load(i_ptr[:, None] + depth[None, :]), tl.load(j_ptr[None, :] + depth[:, None])
        products = tl.dot(p_i, p_j, products, input_precision="ieee", out_dtype=products.dtype)
    d2 = (tl.load(squares_ptr + i)[:, None] - 2 * products) + tl.load(squares_ptr + j)[None, :]
    return tl.where(i[:, None] == j[None, :], 0, tl.maximum(d2, 0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _kernel_and_slope(d2, bandwidths_ptr, RBF: tl.constexpr, SCALES: tl.constexpr):
    """Return k and dk / dd^2, averaged over the bandwidths."""
    k, slope = tl.zeros_like(d2), tl.zeros_like(d2)
    for s in tl.static_range(SCALES):
        c = tl.load(bandwidths_ptr + s)
        decline = (-1 / (c * SCALES)).to(d2.dtype)
        if RBF:
            member = tl.exp2(d2 * (-1 / c * _LOG2_E).to(d2.dtype))
            slope += decline * member
        else:
            c = c.to(d2.dtype)
            member = c / (c + d2)
            slope += decline * (member * member)
        k += member
    return k / SCALES, slope


@triton.jit
def _counted(i, j, N, M, ALONE: tl.constexpr, SIDE: tl.constexpr):
    """Return which pairs of rows are pairs of points, ALONE without those of a point and itself."""
    start_of_y = tl.cdiv(N, SIDE) * SIDE
    i_is_point = i < tl.where(i < start_of_y, N, start_of_y + M)
    j_is_point = j < tl.where(j < start_of_y, N, start_of_y + M)
    counted = i_is_point[:, None] & j_is_point[None, :]
    if ALONE:
        counted &= i[:, None] != j[None, :]
    return counted


@triton.jit
def _weight(i, j, N, M, ALONE: tl.constexpr, SIDE: tl.constexpr):
    """Return the weight of a pair of points, for blocks that begin with rows i and j, in float64."""
    start_of_y = tl.cdiv(N, SIDE) * SIDE
    n = tl.where(i < start_of_y, N, M).to(tl.int64)
    m = tl.where(j < start_of_y, N, M).to(tl.int64)
    within = (i < start_of_y) == (j < start_of_y)
    pairs = n * (m - tl.where(within, 1, 0) if ALONE else m)
    return tl.where(within, 1.0, -1.0).to(tl.float64) / pairs.to(tl.float64)
