# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Reparameterisation and Kullback-Leibler divergence, forward and backward, as numba kernels.

Tensors `(B, ...)` are matrices of B rows and K columns with strides of their own. They are computed in blocks of at
most BLOCK numbers, whose noise and intermediate results stay in the cache: several whole rows, or a part of one. With

    x = logvar - logvar of the prior,    d = mu - mu of the prior,    precision = exp(-logvar of the prior)

    z   = mu + std eps                       kl      = (d^2 precision + expm1(x) - x) / 2
    dmu = dz + dkl d precision               dlogvar = (dz std eps + dkl expm1(x)) / 2
    dmu of the prior = -dkl d precision      dlogvar of the prior = -dkl (d^2 precision + expm1(x)) / 2

and without a prior d = mu, precision = 1. Both passes draw the noise from the seed. In the comments, `data` is the
dtype of mu, `number` that of sums, float32 or float64 for float64, and a matrix is a tuple as in blocks.py.
"""

import numba
import numpy as np

from .blocks import NATIVE, block_to_write, read_block, sum_line, write_block
from .math import FASTMATH, array_at, exp, expm1_series, log
from .noise import fill_normals
from .threads import compile_kernel

BLOCK = 1024
LOGVAR, STD, VAR = 0, 1, 2
TERMS, ROW_SUMS, WIDE_ROW_SUMS, COLUMN_SUMS = 0, 1, 2, 3

_NEAR = 0.3  # |x| up to which expm1(x) and expm1(x) - x come from a series


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
        scratch, normals = np.empty((8, BLOCK), type(zero)), np.empty(BLOCK, np.float32)
        column_sums = np.zeros((2, BLOCK if summed == COLUMN_SUMS else 0), np.float64)
        for block in range(strip * strip_length, min((strip + 1) * strip_length, row_blocks)):
            seed, first = block // seed_blocks, (block % seed_blocks) * block_rows
            row, shape = seed * rows_per_seed + first, _shape(rows_per_seed - first, block_rows, columns - column)
            _draw(normals, seeds[seed], first, column, columns, shape)
            mus = read_block(mu, kind, row, column, shape, scratch[0])
            spreads = read_block(spread, kind, row, column, shape, scratch[1])
            std, x = scratch[2], scratch[3]
            _std_and_logvar(spreads, scale, std, x)
            zs = block_to_write(z, kind, row, column, shape, scratch[4])
            for j in range(len(zs)):
                zs[j] = mus[j] + std[j] * normals[j]
            write_block(zs, z, kind, row, column, shape)
            terms = scratch[5, : len(mus)]
            if summed == TERMS:
                terms = block_to_write(kl, NATIVE, row, column, shape, scratch[5])
            if has_prior:
                prior_mus = read_block(prior_mu, kind, row, column, shape, scratch[6])
                prior_logvars = read_block(prior_logvar, kind, row, column, shape, scratch[7])
                _relative_kl(mus, spreads, x, scale, prior_mus, prior_logvars, terms)
            else:
                _standard_kl(mus, std, x, terms)
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
        seed, first = block // seed_blocks, (block % seed_blocks) * block_rows
        row, shape = seed * rows_per_seed + first, _shape(rows_per_seed - first, block_rows, columns - column)
        scratch, normals = np.empty((12, BLOCK), type(zero)), np.empty(BLOCK, np.float32)
        _draw(normals, seeds[seed], first, column, columns, shape)
        dzs = read_block(dz, kind, row, column, shape, scratch[0])
        w = read_block(dkl, NATIVE, row, column, shape, scratch[1])
        mus = read_block(mu, kind, row, column, shape, scratch[2])
        spreads = read_block(spread, kind, row, column, shape, scratch[3])
        std, x, slope, d = scratch[4], scratch[5], scratch[6], scratch[7]
        _std_and_logvar(spreads, scale, std, x)
        if has_prior:
            prior_mus = read_block(prior_mu, kind, row, column, shape, scratch[8])
            prior_logvars = read_block(prior_logvar, kind, row, column, shape, scratch[9])
            of_mu = block_to_write(dprior_mu, kind, row, column, shape, scratch[10])
            of_logvar = block_to_write(dprior_logvar, kind, row, column, shape, scratch[11])
            _relative_slopes(mus, spreads, x, scale, prior_mus, prior_logvars, w, d, slope, of_mu, of_logvar)
            write_block(of_mu, dprior_mu, kind, row, column, shape)
            write_block(of_logvar, dprior_logvar, kind, row, column, shape)
        else:
            _standard_slopes(mus, std, x, w, d, slope)
        dmus = block_to_write(dmu, kind, row, column, shape, scratch[10])
        for j in range(len(dmus)):
            dmus[j] = dzs[j] + d[j]
        write_block(dmus, dmu, kind, row, column, shape)
        dspreads = block_to_write(dspread, kind, row, column, shape, scratch[11])
        _spread_gradient(dzs, normals, spreads, std, slope, scale, dspreads)
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
        seed, first = block // seed_blocks, (block % seed_blocks) * block_rows
        row, shape = seed * rows_per_seed + first, _shape(rows_per_seed - first, block_rows, columns - column)
        scratch, normals = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        _draw(normals, seeds[seed], first, column, columns, shape)
        out = block_to_write(normal, NATIVE, row, column, shape, scratch)
        for j in range(len(out)):
            out[j] = normals[j]
        write_block(out, normal, NATIVE, row, column, shape)


@numba.njit(forceinline=True, error_model="numpy")
def _shape(rows_left, block_rows, columns_left):
    """Return the rows, columns and pitch of a block. With a pitch of whole counters, noise runs on from row to row."""
    columns = min(BLOCK, columns_left)
    return min(rows_left, block_rows), columns, columns if block_rows == 1 else -(-columns // 4) * 4


@numba.njit(forceinline=True, error_model="numpy")
def _draw(normals, seed, row, column, columns, shape):
    """Write the noise of the block at (row, column); the row is counted from the first of its seed."""
    fill_normals(normals, shape[0] * (-(-shape[1] // 4)), row * (-(-columns // 4)) + column // 4, seed)


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _std_and_logvar(spread, scale, std, logvar):
    half = type(spread[0])(0.5)
    if scale == LOGVAR:
        for j in range(len(spread)):
            std[j], logvar[j] = exp(half * spread[j]), spread[j]
    elif scale == STD:
        for j in range(len(spread)):
            std[j], logvar[j] = spread[j], log(spread[j]) + log(spread[j])
    else:
        for j in range(len(spread)):
            std[j], logvar[j] = np.sqrt(spread[j]), log(spread[j])


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _standard_kl(mu, std, x, terms):
    half, one, near = type(x[0])(0.5), type(x[0])(1), type(x[0])(_NEAR)
    for j in range(len(terms)):
        series = x[j] * x[j] * expm1_series(x[j])
        far = std[j] * std[j] - one - x[j]
        terms[j] = half * (mu[j] * mu[j] + (series if abs(x[j]) < near else far))


@numba.njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _variance_ratio(spread, logvar, prior_logvar, precision, scale):
    """Return exp(x), with a correction for the rounding error of x where it is a difference of given numbers."""
    if scale != LOGVAR:
        return (spread * spread if scale == STD else spread) * precision
    x = logvar - prior_logvar
    shift = x - logvar
    lost = (logvar - (x - shift)) - (prior_logvar + shift)
    rounded = exp(x)
    ratio = rounded + rounded * lost
    return ratio if ratio == ratio else rounded  # infinities have no rounding error


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _relative_kl(mu, spread, logvar, scale, prior_mu, prior_logvar, terms):
    half, one, near = type(mu[0])(0.5), type(mu[0])(1), type(mu[0])(_NEAR)
    for j in range(len(terms)):
        d, x, precision = mu[j] - prior_mu[j], logvar[j] - prior_logvar[j], exp(-prior_logvar[j])
        series = x * x * expm1_series(x)
        far = _variance_ratio(spread[j], logvar[j], prior_logvar[j], precision, scale) - one - x
        terms[j] = half * (d * d * precision + (series if abs(x) < near else far))


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _standard_slopes(mu, std, x, dkl, of_mu, slope):
    """Write dkl dKL/dmu and 2 dkl dKL/dlogvar: 0 where dkl is 0, also if the derivative is infinite."""
    one, zero, near = type(x[0])(1), type(x[0])(0), type(x[0])(_NEAR)
    for j in range(len(mu)):
        series = x[j] + x[j] * x[j] * expm1_series(x[j])
        expm1 = series if abs(x[j]) < near else std[j] * std[j] - one
        of_mu[j] = dkl[j] * mu[j]
        slope[j] = dkl[j] * expm1 if dkl[j] != zero else zero


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _relative_slopes(
    mu, spread, logvar, scale, prior_mu, prior_logvar, dkl, of_mu, slope, of_prior_mu, of_prior_logvar
):
    """Write the same with a prior, and the gradients of the prior."""
    half, one, zero, near = type(mu[0])(0.5), type(mu[0])(1), type(mu[0])(0), type(mu[0])(_NEAR)
    for j in range(len(of_prior_mu)):
        d, x, precision = mu[j] - prior_mu[j], logvar[j] - prior_logvar[j], exp(-prior_logvar[j])
        series = x + x * x * expm1_series(x)
        far = _variance_ratio(spread[j], logvar[j], prior_logvar[j], precision, scale) - one
        expm1 = series if abs(x) < near else far
        w, pull = dkl[j], d * precision
        of_mu[j] = w * pull if w != zero else zero
        slope[j] = w * expm1 if w != zero else zero
        of_prior_mu[j] = -of_mu[j]
        of_prior_logvar[j] = -half * w * (d * pull + expm1) if w != zero else zero


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _spread_gradient(dz, normals, spread, std, slope, scale, gradient):
    """Write dz dz/dspread + slope dlogvar/dspread / 2."""
    half, number = type(dz[0])(0.5), type(dz[0])
    if scale == LOGVAR:
        for j in range(len(gradient)):
            gradient[j] = half * (dz[j] * std[j] * number(normals[j]) + slope[j])
    elif scale == STD:
        for j in range(len(gradient)):
            gradient[j] = dz[j] * number(normals[j]) + slope[j] / std[j]
    else:
        for j in range(len(gradient)):
            gradient[j] = half * (dz[j] * number(normals[j]) / std[j] + slope[j] / spread[j])


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _store_row_sums(terms, sums, row, column_block, shape, zero):
    rows, columns, pitch = shape
    address, row_stride, _ = sums
    stored = array_at(address, (row + rows) * row_stride, zero)
    for r in range(rows):
        stored[(row + r) * row_stride + column_block] = sum_line(terms, r * pitch, columns, zero)


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _add_to_sums(sums, terms):
    """Add numbers to sums[0], as Kahan does: sums[1] holds what rounding has added too much."""
    for j in range(len(terms)):
        term = np.float64(terms[j]) - sums[1, j]
        total = sums[0, j] + term
        sums[1, j] = (total - sums[0, j]) - term
        sums[0, j] = total


@numba.njit(error_model="numpy", fastmath=FASTMATH)
def _store_column_sums(column_sums, sums, strip, column, shape, weight, zero):
    rows, columns, pitch = shape
    address, row_stride, _ = sums
    stored = array_at(address, (strip + 1) * row_stride, zero)
    for r in range(1, rows):
        _add_to_sums(column_sums, column_sums[0, r * pitch : r * pitch + columns])
    for c in range(columns):
        stored[strip * row_stride + column + c] = weight * column_sums[0, c]
