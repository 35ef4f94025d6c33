# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Reparameterisation and Kullback-Leibler divergence in one pass over memory, forward and backward, as Triton kernels.

Tensors `(B, ...)` are matrices of B rows and K columns. Each has a row stride of its own, so that both halves of
`h.chunk(2, -1)` are read in place, and one row of a prior serves all rows. A tile is about 4 kB of each tensor. A
thread reads 16 bytes at a time.

    forward   A program walks `steps` tiles along the axis that the KL is summed over, writes z, and keeps the KL in
              registers until it writes one partial sum per row (per column for `dim`). Long rows are cut into strips,
              with a program for each. torch then adds the sums of the strips in a fixed order.
    backward  A program takes one tile, reads dz, dkl and the inputs, draws the noise again from the seed, and writes
              the gradients. With v = log of the variance, and without a prior, these are
              dmu = dz + dkl mu  and  dv = (dz std eps + dkl expm1(v)) / 2,  dstd = 2 dv / std,  dvar = dv / var.

A prior replaces mu and v in these formulas: by (mu - prior_mu) / prior_sigma and v - prior_logvar in the KL, and by
(mu - prior_mu) / prior_variance in dmu. Its own gradients are

    dprior_mu = -dkl (mu - prior_mu) / prior_variance,
    dprior_logvar = -dkl / 2 ((mu - prior_mu)^2 / prior_variance + expm1(v - prior_logvar)).

Only inputs are saved for backward. If rows are contiguous and 4 divides K, the noise counters run on from row to row,
and a reduction that ignores rows sees the whole tensor as one row.

tiles.py addresses tiles and draws their noise, gaussians.py has the formulas, reparam_kl_launch.py plans the launches,
and reparam_kl.py makes them operators of PyTorch. In the comments below, `data` is the dtype of mu and `number` the
dtype of sums: float32, or float64 for float64.
"""

import triton
import triton.language as tl

from .gaussians import (
    expm1_near_0,
    expm1_of_difference,
    log_variance,
    relate,
    std_and_expm1,
    std_and_variance,
    twice_kl,
    twice_kl_of_spread,
)
from .tiles import draw_noise, in_matrix, pointers, tile_at, widen

# No recompilation for sizes that 16 divides, because VECTOR says which alignment the loads may use.
_SIZES = ["rows", "columns", "mu_stride", "spread_stride", "prior_mu_stride", "prior_logvar_stride", "dz_stride"]
_SIZES += ["dkl_stride", "gradient_stride", "rows_per_seed", "batch", "steps"]


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    mu_ptr,  # (rows, columns) of data, row stride mu_stride
    spread_ptr,  # (rows, columns) of data, row stride spread_stride
    prior_mu_ptr,  # (rows, columns) of data, row stride prior_mu_stride; None unless PRIOR
    prior_logvar_ptr,  # (rows, columns) of data, row stride prior_logvar_stride; None unless PRIOR
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    z_ptr,  # written: (rows, columns) of data, contiguous
    kl_ptr,  # written: terms (rows, columns) or sums (strips, rows) or (strips, columns) of number, contiguous
    rows,  # B, or 1 if the whole tensor is one row
    columns,  # K, or B * K if the whole tensor is one row
    mu_stride,  # row stride of mu
    spread_stride,  # row stride of spread
    prior_mu_stride,  # row stride of prior_mu; 0 if all rows have one prior
    prior_logvar_stride,  # row stride of prior_logvar; 0 if all rows have one prior
    rows_per_seed,  # rows that draw from one seed
    batch,  # B, the divisor of a mean
    steps,  # tiles that a program walks
    SCALE: tl.constexpr,  # what spread is: "logvar", "std" or "var"
    PRIOR: tl.constexpr,  # whether there is a prior
    SUMMED: tl.constexpr,  # axis of the sums of the KL: "none", "columns" or "rows"
    MEAN: tl.constexpr,  # divide the KL by batch
    ONE_SEED: tl.constexpr,  # all rows draw from one seed
    MASKED: tl.constexpr,  # tiles reach beyond the matrix
    WALK: tl.constexpr,  # steps > 1
    ROW_AXIS: tl.constexpr,  # axis of the grid along the rows: 0 or 1
    ROWS: tl.constexpr,  # rows of a tile
    COLUMNS: tl.constexpr,  # columns of a tile
    VECTOR: tl.constexpr,  # neighbouring columns that a thread reads at once
):
    """Write z, and either the terms of the KL or its sums within the strip."""
    row_strip, column_strip = tl.program_id(ROW_AXIS), tl.program_id(1 - ROW_AXIS)
    row_step: tl.constexpr = ROWS if SUMMED == "rows" else 0
    column_step: tl.constexpr = COLUMNS if SUMMED == "columns" else 0
    row = row_strip * (steps * ROWS if SUMMED == "rows" else ROWS)
    column = column_strip.to(tl.int64) * (steps * COLUMNS if SUMMED == "columns" else COLUMNS)

    own = (mu_ptr, mu_stride, spread_ptr, spread_stride)
    prior = (prior_mu_ptr, prior_mu_stride, prior_logvar_ptr, prior_logvar_stride)
    outer = (seed_ptr, z_ptr, rows, columns, rows_per_seed)
    if WALK:
        kl = tl.zeros((ROWS, COLUMNS), kl_ptr.dtype.element_ty)
        for step in range(steps):
            tile = tile_at(row + step * row_step, column + step * column_step, ROWS, COLUMNS)
            kl += _forward_tile(own, prior, outer, tile, SCALE, PRIOR, ONE_SEED, MASKED, VECTOR)
    else:
        tile = tile_at(row, column, ROWS, COLUMNS)
        kl = _forward_tile(own, prior, outer, tile, SCALE, PRIOR, ONE_SEED, MASKED, VECTOR)

    scale = 0.5 / batch.to(kl.dtype) if MEAN else 0.5
    tile = tile_at(row, column, ROWS, COLUMNS)
    r, c = tile[2], tile[3]
    if SUMMED == "columns":
        row_sums = kl_ptr + column_strip.to(tl.int64) * rows + row
        tl.store(row_sums + r, scale * tl.sum(kl, 1)[:, None], mask=r < rows - row)
    elif SUMMED == "rows":
        column_sums = kl_ptr + row_strip.to(tl.int64) * columns + column
        tl.store(column_sums + c, scale * tl.sum(kl, 0)[None, :], mask=c < columns - column)
    else:
        mask = in_matrix(rows, columns, tile, MASKED, VECTOR)
        tl.store(pointers(kl_ptr, columns, tile, VECTOR), scale * kl, mask=mask)


@triton.jit
def _forward_tile(
    own,  # (mu_ptr, mu_stride, spread_ptr, spread_stride), as in forward_kernel
    prior,  # (prior_mu_ptr, prior_mu_stride, prior_logvar_ptr, prior_logvar_stride), as in forward_kernel
    outer,  # (seed_ptr, z_ptr, rows, columns, rows_per_seed), as in forward_kernel
    tile,  # as tile_at returns it
    SCALE: tl.constexpr,  # what spread is: "logvar", "std" or "var"
    PRIOR: tl.constexpr,  # whether there is a prior
    ONE_SEED: tl.constexpr,  # all rows draw from one seed
    MASKED: tl.constexpr,  # the tile may reach beyond the matrix
    VECTOR: tl.constexpr,  # neighbouring columns that a thread reads at once
):
    """Write a tile of z and return the terms of twice its KL, `(ROWS, COLUMNS)`, zero outside the matrix."""
    seed_ptr, z_ptr, rows, columns, rows_per_seed = outer
    HALF: tl.constexpr = z_ptr.dtype.element_ty.primitive_bitwidth == 16
    mask = in_matrix(rows, columns, tile, MASKED, VECTOR)
    mu, spread = _load_gaussian(own, tile, mask, SCALE, VECTOR)
    if PRIOR:
        prior_mu, prior_logvar = _load_gaussian(prior, tile, mask, "logvar", VECTOR)

    # Each tensor is converted only when it is needed: the compiler keeps that order.
    spread = widen(spread)
    if PRIOR:
        std, variance = std_and_variance(spread, SCALE, HALF)
    else:
        std, expm1 = std_and_expm1(spread, SCALE, HALF)
    eps = draw_noise(seed_ptr, rows, columns, rows_per_seed, tile, ONE_SEED, VECTOR).to(std.dtype)
    mu = widen(mu)
    z = tl.fma(std, eps, mu).to(z_ptr.dtype.element_ty)
    tl.store(pointers(z_ptr, columns, tile, VECTOR), z, mask=mask)
    if PRIOR:
        v = log_variance(spread, SCALE)
        mu, v, far, precision = relate(mu, variance, v, widen(prior_mu), widen(prior_logvar), HALF)
        return twice_kl(mu, mu * precision, v, far, HALF)
    elif SCALE == "logvar":
        return twice_kl(mu, mu, spread, expm1, HALF)
    else:
        return twice_kl_of_spread(mu, spread, expm1, SCALE, HALF)


@triton.jit
def _load_gaussian(
    gaussian,  # (mu_ptr, mu_stride, spread_ptr, spread_stride), as in forward_kernel
    tile,  # as tile_at returns it
    mask,  # (ROWS, COLUMNS) of bool, which elements lie in the matrix
    SCALE: tl.constexpr,  # what spread is: "logvar", "std" or "var"
    VECTOR: tl.constexpr,  # neighbouring columns that a thread reads at once
):
    """Return tiles of mu and spread, `(ROWS, COLUMNS)` of data: a standard normal outside the matrix."""
    mu_ptr, mu_stride, spread_ptr, spread_stride = gaussian
    mu = tl.load(pointers(mu_ptr, mu_stride, tile, VECTOR), mask=mask, other=0)
    other: tl.constexpr = 0.0 if SCALE == "logvar" else 1.0
    spread = tl.load(pointers(spread_ptr, spread_stride, tile, VECTOR), mask=mask, other=other)
    return mu, spread


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    dz_ptr,  # (rows, columns) of data, row stride dz_stride
    dkl_ptr,  # (rows, columns), (rows,), (columns,) or () of number, row stride dkl_stride
    mu_ptr,  # (rows, columns) of data, row stride mu_stride
    spread_ptr,  # (rows, columns) of data, row stride spread_stride
    prior_mu_ptr,  # (rows, columns) of data, row stride prior_mu_stride; None unless PRIOR
    prior_logvar_ptr,  # (rows, columns) of data, row stride prior_logvar_stride; None unless PRIOR
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    dmu_ptr,  # written: (rows, columns) of data, row stride gradient_stride
    dspread_ptr,  # written: (rows, columns) of data, row stride gradient_stride
    dprior_mu_ptr,  # written: (rows, columns) of data, contiguous; None unless PRIOR
    dprior_logvar_ptr,  # written: (rows, columns) of data, contiguous; None unless PRIOR
    rows,  # B, or 1 if the whole tensor is one row
    columns,  # K, or B * K if the whole tensor is one row
    dz_stride,  # row stride of dz
    dkl_stride,  # row stride of dkl
    mu_stride,  # row stride of mu
    spread_stride,  # row stride of spread
    prior_mu_stride,  # row stride of prior_mu; 0 if all rows have one prior
    prior_logvar_stride,  # row stride of prior_logvar; 0 if all rows have one prior
    gradient_stride,  # row stride of dmu and dspread
    rows_per_seed,  # rows that draw from one seed
    batch,  # B, the divisor of a mean
    SCALE: tl.constexpr,  # what spread is: "logvar", "std" or "var"
    PRIOR: tl.constexpr,  # whether there is a prior
    PER_ROW: tl.constexpr,  # dkl differs from row to row
    PER_COLUMN: tl.constexpr,  # dkl differs from column to column
    MEAN: tl.constexpr,  # the KL is divided by batch
    ONE_SEED: tl.constexpr,  # all rows draw from one seed
    MASKED: tl.constexpr,  # tiles reach beyond the matrix
    ROW_AXIS: tl.constexpr,  # axis of the grid along the rows: 0 or 1
    ROWS: tl.constexpr,  # rows of a tile
    COLUMNS: tl.constexpr,  # columns of a tile
    VECTOR: tl.constexpr,  # neighbouring columns that a thread reads at once
):
    """Write the gradients of one tile."""
    data: tl.constexpr = dmu_ptr.dtype.element_ty
    HALF: tl.constexpr = data.primitive_bitwidth == 16
    row = tl.program_id(ROW_AXIS) * ROWS
    column = tl.program_id(1 - ROW_AXIS).to(tl.int64) * COLUMNS
    tile = tile_at(row, column, ROWS, COLUMNS)
    r, c = tile[2], tile[3]
    mask = in_matrix(rows, columns, tile, MASKED, VECTOR)
    dz = tl.load(pointers(dz_ptr, dz_stride, tile, VECTOR), mask=mask, other=0)
    mu, spread = _load_gaussian((mu_ptr, mu_stride, spread_ptr, spread_stride), tile, mask, SCALE, VECTOR)
    if PRIOR:
        prior = (prior_mu_ptr, prior_mu_stride, prior_logvar_ptr, prior_logvar_stride)
        prior_mu, prior_logvar = _load_gaussian(prior, tile, mask, "logvar", VECTOR)
    if PER_ROW and PER_COLUMN:
        dkl = tl.load(pointers(dkl_ptr, dkl_stride, tile, VECTOR), mask=mask, other=0)
    elif PER_ROW:
        dkl = tl.load(dkl_ptr + (row + r).to(tl.int64) * dkl_stride, mask=r < rows - row, other=0)
    elif PER_COLUMN:
        dkl = tl.load(dkl_ptr + column + c, mask=c < columns - column, other=0)
    else:
        dkl = tl.load(dkl_ptr)
    if MEAN:
        dkl *= 1.0 / batch.to(dkl.dtype)

    spread = widen(spread)
    if PRIOR:
        std, variance = std_and_variance(spread, SCALE, HALF)
    else:
        std, expm1 = std_and_expm1(spread, SCALE, HALF)
    eps = draw_noise(seed_ptr, rows, columns, rows_per_seed, tile, ONE_SEED, VECTOR).to(std.dtype)
    dz, mu = widen(dz), widen(mu)
    if PRIOR:
        own_v = log_variance(spread, SCALE)
        mu, v, far, precision = relate(mu, variance, own_v, widen(prior_mu), widen(prior_logvar), HALF)
        expm1 = expm1_of_difference(v, own_v, far, SCALE)
        # The weight comes first, because a product of the others may overflow.
        pull = dkl * mu * precision
        dmu = dz + pull
        dprior_logvar = -0.5 * tl.fma(pull, mu, dkl * expm1)
        tl.store(pointers(dprior_mu_ptr, columns, tile, VECTOR), (-pull).to(data), mask=mask)
        tl.store(pointers(dprior_logvar_ptr, columns, tile, VECTOR), dprior_logvar.to(data), mask=mask)
    else:
        if SCALE == "logvar":
            expm1 = expm1_near_0(spread, expm1)
        dmu = tl.fma(mu, dkl, dz)
    if SCALE == "std":
        dspread = tl.fma(dz, eps, dkl * expm1 / std)
    elif SCALE == "var":
        dspread = 0.5 * tl.fma(dz, std * eps, dkl * expm1) / spread
    else:
        dspread = 0.5 * tl.fma(dz, std * eps, dkl * expm1)
    tl.store(pointers(dmu_ptr, gradient_stride, tile, VECTOR), dmu.to(data), mask=mask)
    tl.store(pointers(dspread_ptr, gradient_stride, tile, VECTOR), dspread.to(data), mask=mask)
