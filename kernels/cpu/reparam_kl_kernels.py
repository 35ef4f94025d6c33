# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Reparameterisation and Kullback-Leibler divergence, forward and backward, as numba kernels.

Tensors `(B, ...)` are matrices of B rows and K columns with strides of their own. They are computed in blocks of at
most BLOCK numbers, which stay in the cache with their noise: several whole rows, or a part of one. Both passes draw the
noise from the seed. gaussians.py has the formulas.

In the comments, `data` is the dtype of mu, `number` that of sums, float32 or float64 for float64, and a matrix is a
tuple as in blocks.py.
"""

import numba
import numpy as np

from .blocks import NATIVE, block_to_write, read_block, sum_line, write_block
from .gaussians import differentiate, differentiate_with_prior, evaluate, evaluate_with_prior
from .math import JIT, array_at, use_widest_vectors
from .noise import fill_normals
from .threads import compile_kernel

BLOCK = 1024
TERMS, ROW_SUMS, WIDE_ROW_SUMS, COLUMN_SUMS = 0, 1, 2, 3


@compile_kernel
def forward(
    mu,  # (rows, columns) of data
    spread,  # (rows, columns) of data
    prior_mu,  # (rows, columns) of data; not read without a prior
    prior_logvar,  # (rows, columns) of data; not read without a prior
    seed_address,  # (rows / rows_per_seed,) of int64
    z,  # written: (rows, columns) of data
    kl,  # written: (rows, columns), (rows, column blocks) or (strips, columns) of number; WIDE_ROW_SUMS of float64
    rows,  # B
    columns,  # K
    rows_per_seed,  # rows that draw from one seed
    block_rows,  # rows of a block
    strip_length,  # blocks that are computed one after another, downwards
    weight,  # of the sums over rows: 1 / B
    kind,  # of data, as in blocks.py
    scale,  # of spread: LOGVAR, STD or VAR
    has_prior,  # whether there is a prior
    summed,  # TERMS, ROW_SUMS within a block, WIDE_ROW_SUMS in float64, or COLUMN_SUMS within a strip
    zero,  # of number
):
    """Write z, and the terms of the KL or their sums."""
    column_blocks, seed_blocks = -(-columns // BLOCK), -(-rows_per_seed // block_rows)
    row_blocks = (rows // rows_per_seed) * seed_blocks
    seeds = array_at(seed_address, rows // rows_per_seed, np.int64(0))
    for step in numba.prange(-(-row_blocks // strip_length) * column_blocks):
        strip, column_block = step // column_blocks, step % column_blocks
        column = column_block * BLOCK
        scratch, normals = np.empty((6, BLOCK), type(zero)), np.empty(BLOCK, np.float32)
        column_sums = np.zeros((2, BLOCK if summed == COLUMN_SUMS else 0), np.float64)
        for block in range(strip * strip_length, min((strip + 1) * strip_length, row_blocks)):
            row, shape = _draw_block(normals, seeds, block, column, columns, rows_per_seed, block_rows)
            mus = read_block(mu, kind, row, column, shape, scratch[0])
            spreads = read_block(spread, kind, row, column, shape, scratch[1])
            zs = block_to_write(z, kind, row, column, shape, scratch[2])
            terms = scratch[3, : len(mus)]
            if summed == TERMS:
                terms = block_to_write(kl, NATIVE, row, column, shape, scratch[3])
            if has_prior:
                prior_mus = read_block(prior_mu, kind, row, column, shape, scratch[4])
                prior_logvars = read_block(prior_logvar, kind, row, column, shape, scratch[5])
                evaluate_with_prior(mus, spreads, prior_mus, prior_logvars, scale, normals, zs, terms)
            else:
                evaluate(mus, spreads, scale, normals, zs, terms)
            write_block(zs, z, kind, row, column, shape)
            if summed == TERMS:
                write_block(terms, kl, NATIVE, row, column, shape)
            elif summed == ROW_SUMS:
                _store_row_sums(terms, kl, row, column_block, shape, zero)
            elif summed == WIDE_ROW_SUMS:
                _store_row_sums(terms, kl, row, column_block, shape, np.float64(0))
            else:
                _add_to_sums(column_sums, terms)
        if summed == COLUMN_SUMS:
            _store_column_sums(
                column_sums, kl, strip, column, _shape(block_rows, block_rows, columns - column), weight, zero
            )


@compile_kernel
def backward(
    dkl,  # (rows, columns) of number: the gradient of each term, with a stride of 0 where it is the same
    dz,  # (rows, columns) of data
    mu,  # (rows, columns) of data
    spread,  # (rows, columns) of data
    prior_mu,  # (rows, columns) of data; not read without a prior
    prior_logvar,  # (rows, columns) of data; not read without a prior
    seed_address,  # (rows / rows_per_seed,) of int64
    dmu,  # written: (rows, columns) of data
    dspread,  # written: (rows, columns) of data
    dprior_mu,  # written if there is a prior: (rows, columns) of data
    dprior_logvar,  # written if there is a prior: (rows, columns) of data
    rows,  # B
    columns,  # K
    rows_per_seed,  # rows that draw from one seed
    block_rows,  # rows of a block
    kind,  # of data, as in blocks.py
    scale,  # of spread: LOGVAR, STD or VAR
    has_prior,  # whether there is a prior
    zero,  # of number
):
    """Write the gradients of mu and spread, and of the prior."""
    column_blocks, seed_blocks = -(-columns // BLOCK), -(-rows_per_seed // block_rows)
    seeds = array_at(seed_address, rows // rows_per_seed, np.int64(0))
    for step in numba.prange((rows // rows_per_seed) * seed_blocks * column_blocks):
        block, column = step // column_blocks, (step % column_blocks) * BLOCK
        scratch, normals = np.empty((10, BLOCK), type(zero)), np.empty(BLOCK, np.float32)
        row, shape = _draw_block(normals, seeds, block, column, columns, rows_per_seed, block_rows)
        dzs = read_block(dz, kind, row, column, shape, scratch[0])
        dkls = read_block(dkl, NATIVE, row, column, shape, scratch[1])
        mus = read_block(mu, kind, row, column, shape, scratch[2])
        spreads = read_block(spread, kind, row, column, shape, scratch[3])
        dmus = block_to_write(dmu, kind, row, column, shape, scratch[4])
        dspreads = block_to_write(dspread, kind, row, column, shape, scratch[5])
        if has_prior:
            prior_mus = read_block(prior_mu, kind, row, column, shape, scratch[6])
            prior_logvars = read_block(prior_logvar, kind, row, column, shape, scratch[7])
            of_mu = block_to_write(dprior_mu, kind, row, column, shape, scratch[8])
            of_logvar = block_to_write(dprior_logvar, kind, row, column, shape, scratch[9])
            differentiate_with_prior(
                dzs, dkls, mus, spreads, prior_mus, prior_logvars, scale, normals, dmus, dspreads, of_mu, of_logvar
            )
            write_block(of_mu, dprior_mu, kind, row, column, shape)
            write_block(of_logvar, dprior_logvar, kind, row, column, shape)
        else:
            differentiate(dzs, dkls, mus, spreads, scale, normals, dmus, dspreads)
        write_block(dmus, dmu, kind, row, column, shape)
        write_block(dspreads, dspread, kind, row, column, shape)


@compile_kernel
def draw(
    seed_address,  # (rows / rows_per_seed,) of int64
    normal,  # written: (rows, columns) of float32
    rows,  # B
    columns,  # K
    rows_per_seed,  # rows that draw from one seed
    block_rows,  # rows of a block
    zero,  # of float32
):
    """Write the noise alone."""
    column_blocks, seed_blocks = -(-columns // BLOCK), -(-rows_per_seed // block_rows)
    seeds = array_at(seed_address, rows // rows_per_seed, np.int64(0))
    for step in numba.prange((rows // rows_per_seed) * seed_blocks * column_blocks):
        block, column = step // column_blocks, (step % column_blocks) * BLOCK
        scratch, normals = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        row, shape = _draw_block(normals, seeds, block, column, columns, rows_per_seed, block_rows)
        out = block_to_write(normal, NATIVE, row, column, shape, scratch)
        for j in range(len(out)):
            out[j] = normals[j]
        write_block(out, normal, NATIVE, row, column, shape)


@numba.njit(forceinline=True, error_model="numpy")
def _shape(rows_left, block_rows, columns_left):
    return min(rows_left, block_rows), min(BLOCK, columns_left)


@numba.njit(error_model="numpy")
def _draw_block(normals, seeds, block, column, columns, rows_per_seed, block_rows):
    """Write the noise of a block that begins at a column, and return the block's first row and its shape.

    Rows begin with a new counter. Where 4 does not divide the columns, numbers are left over and taken out.
    """
    seed_blocks = -(-rows_per_seed // block_rows)
    seed, first = block // seed_blocks, (block % seed_blocks) * block_rows
    rows, width = shape = _shape(rows_per_seed - first, block_rows, columns - column)
    counters = -(-width // 4)
    fill_normals(normals, rows * counters, first * (-(-columns // 4)) + column // 4, seeds[seed])
    if width < 4 * counters:
        for r in range(1, rows):
            for c in range(width):
                normals[r * width + c] = normals[4 * r * counters + c]
    return seed * rows_per_seed + first, shape


@numba.njit(**JIT)
def _store_row_sums(terms, sums, row, column_block, shape, zero):
    use_widest_vectors()
    rows, columns = shape
    address, row_stride, _ = sums
    stored = array_at(address, (row + rows) * row_stride, zero)
    for r in range(rows):
        stored[(row + r) * row_stride + column_block] = sum_line(terms, r * columns, columns, zero)


@numba.njit(**JIT)
def _add_to_sums(sums, terms):
    """Add numbers to sums[0], as Kahan does: sums[1] holds what rounding has added too much."""
    use_widest_vectors()
    for j in range(len(terms)):
        term = np.float64(terms[j]) - sums[1, j]
        total = sums[0, j] + term
        lost = (total - sums[0, j]) - term
        sums[1, j] = lost if lost == lost else 0.0  # infinities have no rounding error
        sums[0, j] = total


@numba.njit(**JIT)
def _store_column_sums(column_sums, sums, strip, column, shape, weight, zero):
    rows, columns = shape
    address, row_stride, _ = sums
    stored = array_at(address, (strip + 1) * row_stride, zero)
    for r in range(1, rows):
        _add_to_sums(column_sums, column_sums[0, r * columns : (r + 1) * columns])
    for c in range(columns):
        stored[strip * row_stride + column + c] = weight * column_sums[0, c]
