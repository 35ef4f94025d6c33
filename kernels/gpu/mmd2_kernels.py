# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Squared maximum mean discrepancy and its gradient without a matrix of pairs, as Triton kernels.

The points p are the rows of x followed by the rows of y, each padded with zeros to whole blocks of SIDE rows. They are
relative to a centre among them, so that an offset of both samples costs no digits. For a pair of blocks a program
holds the squared distances |p_i|^2 + |p_j|^2 - 2 p_i . p_j in registers. The products have full precision, because
tf32 has a thousandth of the digits that the error bound needs. With W_ij the weight of a pair (1 / N^2 or 1 / N(N-1)
within x, -1 / NM across),

    value      MMD^2 = sum_ij W_ij k(d_ij^2). A program takes one pair of blocks on or above the diagonal and writes
               the sum of its pairs, counted twice above the diagonal. The sums are added up in float64.
    gradient   dMMD^2 / dp_i = 4 sum_j W_ij k'(d_ij^2) (p_i - p_j). A program owns WIDTH columns of a block of rows i
               and walks a strip of the rows j, STEP rows at a time. The strips are added up in a fixed order.

mmd2.py launches the kernels. In the comments, `number` is the dtype of sums: float32, or float64 for float64.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["N", "M", "blocks"])
def value_kernel(
    points_ptr,  # p, (blocks * SIDE, stride) of number
    squares_ptr,  # |p|^2, (blocks * SIDE,) of number
    bandwidths_ptr,  # c, (BANDWIDTHS,) of float64
    sums_ptr,  # written: the weighted sum of each program, (programs,) of float64
    N,  # rows of x
    M,  # rows of y
    blocks,  # blocks of SIDE rows in points
    stride,  # row stride and padded columns of points
    RBF: tl.constexpr,  # kernel "rbf"; otherwise "imq"
    UNBIASED: tl.constexpr,  # estimator "u", which leaves out the pairs of a point and itself
    BANDWIDTHS: tl.constexpr,  # number of bandwidths
    SIDE: tl.constexpr,  # rows of a block
    DEPTH: tl.constexpr,  # columns of one matrix product; divides stride
):
    """Write the weighted sum of one pair of blocks (I, J) with I <= J.

    A row of the grid holds rows r and blocks - 1 - r of the triangle, which together have blocks + 1 pairs.
    """
    row, position = tl.program_id(0) // (blocks + 1), tl.program_id(0) % (blocks + 1)
    in_first_row = position < blocks - row
    I = tl.where(in_first_row, row, blocks - 1 - row)
    J = I + tl.where(in_first_row, position, position - (blocks - row))
    i, j = I * SIDE + tl.arange(0, SIDE), J * SIDE + tl.arange(0, SIDE)

    d2 = _squared_distances(points_ptr, squares_ptr, i, j, stride, DEPTH)
    k, _ = _kernel_and_slope(d2, bandwidths_ptr, RBF, BANDWIDTHS)
    k = tl.where(_pair_mask(i, j, N, M, UNBIASED, SIDE), k, 0)
    is_repeated = (2 * row == blocks - 1) & (position >= blocks - row)  # the middle row of an odd triangle comes twice
    times = tl.where(is_repeated, 0, tl.where(I == J, 1, 2))
    weight = _weight(I * SIDE, J * SIDE, N, M, UNBIASED, SIDE) * times
    tl.store(sums_ptr + tl.program_id(0), weight * tl.sum(k).to(tl.float64))


@triton.jit(do_not_specialize=["N", "M", "blocks", "first", "rows", "strip_length"])
def gradient_kernel(
    points_ptr,  # p, (blocks * SIDE, stride) of number
    squares_ptr,  # |p|^2, (blocks * SIDE,) of number
    bandwidths_ptr,  # c, (BANDWIDTHS,) of float64
    gradients_ptr,  # written: the share of each strip in dMMD^2 / dp, (strips, rows, stride) of number
    N,  # rows of x
    M,  # rows of y
    blocks,  # blocks of SIDE rows in points
    stride,  # row stride and padded columns of points and of gradients
    first,  # first block that needs a gradient
    rows,  # rows that need a gradient
    strip_length,  # rows j of a strip; a multiple of SIDE
    RBF: tl.constexpr,  # kernel "rbf"; otherwise "imq"
    UNBIASED: tl.constexpr,  # estimator "u", which leaves out the pairs of a point and itself
    BANDWIDTHS: tl.constexpr,  # number of bandwidths
    SIDE: tl.constexpr,  # rows i of a program
    DEPTH: tl.constexpr,  # columns of one matrix product; divides stride
    STEP: tl.constexpr,  # rows j at a time; divides SIDE
    WIDTH: tl.constexpr,  # columns of a program; divides stride
):
    """Write the share of one strip in the gradient of one block's rows, in WIDTH of its columns."""
    block, strip = tl.program_id(0), tl.program_id(2)
    i = (first + block) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    dtype: tl.constexpr = points_ptr.dtype.element_ty
    repulsion = tl.zeros((SIDE,), dtype)
    attraction = tl.zeros((SIDE, WIDTH), dtype)
    for start in range(strip * strip_length, tl.minimum(strip * strip_length + strip_length, blocks * SIDE), STEP):
        j = start + tl.arange(0, STEP)
        d2 = _squared_distances(points_ptr, squares_ptr, i, j, stride, DEPTH)
        _, slope = _kernel_and_slope(d2, bandwidths_ptr, RBF, BANDWIDTHS)
        slope *= (4 * _weight((first + block) * SIDE, start, N, M, UNBIASED, SIDE)).to(dtype)
        slope = tl.where(_pair_mask(i, j, N, M, True, SIDE), slope, 0)
        p_j = tl.load(points_ptr + j.to(tl.int64)[:, None] * stride + column[None, :])
        repulsion += tl.sum(slope, 1)
        attraction = tl.dot(slope, p_j, attraction, input_precision="ieee", out_dtype=dtype)
    p_i = tl.load(points_ptr + i.to(tl.int64)[:, None] * stride + column[None, :])
    row = strip.to(tl.int64) * rows + block * SIDE + tl.arange(0, SIDE)
    tl.store(gradients_ptr + row[:, None] * stride + column[None, :], repulsion[:, None] * p_i - attraction)


@triton.jit
def _squared_distances(
    points_ptr,  # p, (rows, stride) of number
    squares_ptr,  # |p|^2, (rows,) of number
    i,  # rows of the left block, (SIDE,)
    j,  # rows of the right block, (SIDE,) or (STEP,)
    stride,  # row stride and padded columns of points
    DEPTH: tl.constexpr,  # columns of one matrix product; divides stride
):
    """Return |p_i - p_j|^2 for the points of two blocks."""
    i_ptr, j_ptr = points_ptr + i.to(tl.int64) * stride, points_ptr + j.to(tl.int64) * stride
    products = tl.zeros((i.shape[0], j.shape[0]), points_ptr.dtype.element_ty)
    for start in range(0, stride, DEPTH):
        column = start + tl.arange(0, DEPTH)
        p_i, p_j = tl.load(i_ptr[:, None] + column[None, :]), tl.load(j_ptr[None, :] + column[:, None])
        products = tl.dot(p_i, p_j, products, input_precision="ieee", out_dtype=products.dtype)
    d2 = (tl.load(squares_ptr + i)[:, None] - 2 * products) + tl.load(squares_ptr + j)[None, :]
    return tl.where(i[:, None] == j[None, :], 0, tl.maximum(d2, 0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _kernel_and_slope(
    d2,  # squared distances, any shape, of number
    bandwidths_ptr,  # c, (BANDWIDTHS,) of float64
    RBF: tl.constexpr,  # kernel "rbf"; otherwise "imq"
    BANDWIDTHS: tl.constexpr,  # number of bandwidths
):
    """Return k and dk / dd^2, averaged over the bandwidths."""
    k, slope = tl.zeros_like(d2), tl.zeros_like(d2)
    for s in tl.static_range(BANDWIDTHS):
        c = tl.load(bandwidths_ptr + s)
        factor = (-1 / (c * BANDWIDTHS)).to(d2.dtype)
        if RBF:
            member = tl.exp2(d2 * (-1 / c * _LOG2_E).to(d2.dtype))
            slope += factor * member
        else:
            c = c.to(d2.dtype)
            member = c / (c + d2)
            slope += factor * (member * member)
        k += member
    return k / BANDWIDTHS, slope


@triton.jit
def _pair_mask(
    i,  # rows of the left block, (SIDE,)
    j,  # rows of the right block, (SIDE,) or (STEP,)
    N,  # rows of x
    M,  # rows of y
    UNEQUAL: tl.constexpr,  # leave out the pairs of a point and itself
    SIDE: tl.constexpr,  # rows of a block
):
    """Return which pairs of rows are pairs of points, not of padding."""
    start_of_y = tl.cdiv(N, SIDE) * SIDE
    i_is_point = i < tl.where(i < start_of_y, N, start_of_y + M)
    j_is_point = j < tl.where(j < start_of_y, N, start_of_y + M)
    mask = i_is_point[:, None] & j_is_point[None, :]
    if UNEQUAL:
        mask &= i[:, None] != j[None, :]
    return mask


@triton.jit
def _weight(
    i,  # first row of the left block
    j,  # first row of the right block
    N,  # rows of x
    M,  # rows of y
    UNBIASED: tl.constexpr,  # estimator "u", which leaves out the pairs of a point and itself
    SIDE: tl.constexpr,  # rows of a block
):
    """Return the weight W of the pairs of two blocks, in float64."""
    start_of_y = tl.cdiv(N, SIDE) * SIDE
    n = tl.where(i < start_of_y, N, M).to(tl.int64)
    m = tl.where(j < start_of_y, N, M).to(tl.int64)
    is_within = (i < start_of_y) == (j < start_of_y)
    pairs = n * (m - tl.where(is_within, 1, 0) if UNBIASED else m)
    return tl.where(is_within, 1.0, -1.0).to(tl.float64) / pairs.to(tl.float64)
