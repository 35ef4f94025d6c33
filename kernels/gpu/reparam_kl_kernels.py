# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Reparameterisation and Kullback-Leibler divergence in one pass over memory, forward and backward, as Triton kernels.

Tensors `(B, ...)` are matrices of B rows and K columns. Each has a row stride of its own, so that both halves of
`h.chunk(2, -1)` are read in place. A tile is about 4 kB of each tensor. A thread reads 16 bytes at a time.

    forward   A program walks `steps` tiles along the axis that the KL is summed over, writes z, and keeps the KL in
              registers until it writes one partial sum per row (per column for `dim`). Long rows are cut into strips,
              with a program for each. torch then adds the sums of the strips in a fixed order.
    backward  A program takes one tile, reads dz, dkl, mu, logvar, draws the noise again from the seed, and writes
              dmu = dz + dkl mu  and  dlogvar = (dz std eps + dkl expm1(logvar)) / 2.

Only mu, logvar and the seed are saved for backward. If rows are contiguous and 4 divides K, the noise counters run on
from row to row, and a reduction that ignores rows sees the whole tensor as one row.

noise.py draws the noise, reparam_kl_launch.py plans the launches, and reparam_kl.py makes them operators of PyTorch. In
the comments below, `data` is the dtype of mu and `number` the dtype of sums: float32, or float64 for float64.
"""

import triton
import triton.language as tl

from .noise import normal_tile, polynomial

_HALF_LOG2_E = tl.constexpr(0.7213475204444817)
_TWO_LN_2_HIGH, _TWO_LN_2_LOW = tl.constexpr(1.38629436492919921875), tl.constexpr(-3.80930860e-09)
_NEAR = tl.constexpr(0.3)  # |logvar| up to which expm1(logvar) comes from a series

# No recompilation for sizes that 16 divides, because VECTOR says which alignment the loads may use.
_SIZES = ["rows", "columns", "mu_stride", "logvar_stride", "dz_stride", "dkl_stride", "gradient_stride"]
_SIZES += ["rows_per_seed", "batch", "steps"]


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    mu_ptr,  # (rows, columns) of data, row stride mu_stride
    logvar_ptr,  # (rows, columns) of data, row stride logvar_stride
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    z_ptr,  # written: (rows, columns) of data, contiguous
    kl_ptr,  # written: terms (rows, columns) or sums (strips, rows) or (strips, columns) of number, contiguous
    rows,  # B, or 1 if the whole tensor is one row
    columns,  # K, or B * K if the whole tensor is one row
    mu_stride,  # row stride of mu
    logvar_stride,  # row stride of logvar
    rows_per_seed,  # rows that draw from one seed
    batch,  # B, the divisor of a mean
    steps,  # tiles that a program walks
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

    data = (mu_ptr, logvar_ptr, seed_ptr, z_ptr)
    shape = (rows, columns, mu_stride, logvar_stride, rows_per_seed)
    if WALK:
        kl = tl.zeros((ROWS, COLUMNS), kl_ptr.dtype.element_ty)
        for step in range(steps):
            tile = _tile_at(row + step * row_step, column + step * column_step, ROWS, COLUMNS)
            kl += _forward_tile(data, shape, tile, ONE_SEED, MASKED, VECTOR)
    else:
        kl = _forward_tile(data, shape, _tile_at(row, column, ROWS, COLUMNS), ONE_SEED, MASKED, VECTOR)

    scale = 0.5 / batch.to(kl.dtype) if MEAN else 0.5
    tile = _tile_at(row, column, ROWS, COLUMNS)
    r, c = tile[2], tile[3]
    if SUMMED == "columns":
        row_sums = kl_ptr + column_strip.to(tl.int64) * rows + row
        tl.store(row_sums + r, scale * tl.sum(kl, 1)[:, None], mask=r < rows - row)
    elif SUMMED == "rows":
        column_sums = kl_ptr + row_strip.to(tl.int64) * columns + column
        tl.store(column_sums + c, scale * tl.sum(kl, 0)[None, :], mask=c < columns - column)
    else:
        mask = _mask(rows, columns, tile, MASKED, VECTOR)
        tl.store(_pointers(kl_ptr, columns, tile, VECTOR), scale * kl, mask=mask)


@triton.jit
def _forward_tile(
    data,  # (mu_ptr, logvar_ptr, seed_ptr, z_ptr), as in forward_kernel
    shape,  # (rows, columns, mu_stride, logvar_stride, rows_per_seed), as in forward_kernel
    tile,  # as _tile_at returns it
    ONE_SEED: tl.constexpr,  # all rows draw from one seed
    MASKED: tl.constexpr,  # the tile may reach beyond the matrix
    VECTOR: tl.constexpr,  # neighbouring columns that a thread reads at once
):
    """Write a tile of z and return the terms of twice its KL, `(ROWS, COLUMNS)`, zero outside the matrix."""
    mu_ptr, logvar_ptr, seed_ptr, z_ptr = data
    rows, columns, mu_stride, logvar_stride, rows_per_seed = shape
    mask = _mask(rows, columns, tile, MASKED, VECTOR)
    mu = tl.load(_pointers(mu_ptr, mu_stride, tile, VECTOR), mask=mask, other=0)
    logvar = tl.load(_pointers(logvar_ptr, logvar_stride, tile, VECTOR), mask=mask, other=0)

    std, far = _exponentials(logvar)
    eps = _draw_noise(seed_ptr, rows, columns, rows_per_seed, tile, ONE_SEED, VECTOR).to(std.dtype)
    mu, logvar = _widen(mu), _widen(logvar)
    z = tl.fma(std, eps, mu).to(z_ptr.dtype.element_ty)
    tl.store(_pointers(z_ptr, columns, tile, VECTOR), z, mask=mask)
    return _twice_kl(mu, logvar, far, z_ptr.dtype.element_ty.primitive_bitwidth == 16)


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    dz_ptr,  # (rows, columns) of data, row stride dz_stride
    dkl_ptr,  # (rows, columns), (rows,), (columns,) or () of number, row stride dkl_stride
    mu_ptr,  # (rows, columns) of data, row stride mu_stride
    logvar_ptr,  # (rows, columns) of data, row stride logvar_stride
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    dmu_ptr,  # written: (rows, columns) of data, row stride gradient_stride
    dlogvar_ptr,  # written: (rows, columns) of data, row stride gradient_stride
    rows,  # B, or 1 if the whole tensor is one row
    columns,  # K, or B * K if the whole tensor is one row
    dz_stride,  # row stride of dz
    dkl_stride,  # row stride of dkl
    mu_stride,  # row stride of mu
    logvar_stride,  # row stride of logvar
    gradient_stride,  # row stride of dmu and dlogvar
    rows_per_seed,  # rows that draw from one seed
    batch,  # B, the divisor of a mean
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
    """Write dmu and dlogvar of one tile."""
    row = tl.program_id(ROW_AXIS) * ROWS
    column = tl.program_id(1 - ROW_AXIS).to(tl.int64) * COLUMNS
    tile = _tile_at(row, column, ROWS, COLUMNS)
    r, c = tile[2], tile[3]
    mask = _mask(rows, columns, tile, MASKED, VECTOR)
    dz = tl.load(_pointers(dz_ptr, dz_stride, tile, VECTOR), mask=mask, other=0)
    mu = tl.load(_pointers(mu_ptr, mu_stride, tile, VECTOR), mask=mask, other=0)
    logvar = tl.load(_pointers(logvar_ptr, logvar_stride, tile, VECTOR), mask=mask, other=0)
    if PER_ROW and PER_COLUMN:
        dkl = tl.load(_pointers(dkl_ptr, dkl_stride, tile, VECTOR), mask=mask, other=0)
    elif PER_ROW:
        dkl = tl.load(dkl_ptr + (row + r).to(tl.int64) * dkl_stride, mask=r < rows - row, other=0)
    elif PER_COLUMN:
        dkl = tl.load(dkl_ptr + column + c, mask=c < columns - column, other=0)
    else:
        dkl = tl.load(dkl_ptr)
    if MEAN:
        dkl *= 1.0 / batch.to(dkl.dtype)

    std, far = _exponentials(logvar)
    eps = _draw_noise(seed_ptr, rows, columns, rows_per_seed, tile, ONE_SEED, VECTOR).to(std.dtype)
    dz, mu, logvar = _widen(dz), _widen(mu), _widen(logvar)
    near = tl.fma(logvar * logvar, _series(logvar, True), logvar)
    expm1 = tl.where(tl.abs(logvar) < _NEAR, near, far)
    dmu = tl.fma(mu, dkl, dz).to(dmu_ptr.dtype.element_ty)
    dlogvar = (0.5 * tl.fma(dz, std * eps, dkl * expm1)).to(dlogvar_ptr.dtype.element_ty)
    tl.store(_pointers(dmu_ptr, gradient_stride, tile, VECTOR), dmu, mask=mask)
    tl.store(_pointers(dlogvar_ptr, gradient_stride, tile, VECTOR), dlogvar, mask=mask)


@triton.jit
def _tile_at(row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # row: int32; column: int64
    """Return a tile: its first row and column, and the rows `(ROWS, 1)` and columns `(1, COLUMNS)` within it."""
    return row, column, tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _pointers(base, stride, tile, VECTOR: tl.constexpr):  # base: of a matrix; stride: of its rows; tile: of _tile_at
    """Return pointers to a tile, `(ROWS, COLUMNS)`. Each group of VECTOR pointers is aligned to its size in bytes."""
    row, column, r, c = tile
    BYTES: tl.constexpr = VECTOR * base.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(base + (row.to(tl.int64) * stride + column) + (r * stride + c), (1, BYTES))


@triton.jit
def _mask(rows, columns, tile, MASKED: tl.constexpr, VECTOR: tl.constexpr):  # rows, columns: of the matrix
    """Return which elements of the tile lie in the matrix, `(ROWS, COLUMNS)`: unless MASKED, a constant True."""
    row, column, r, c = tile
    if MASKED:
        columns_left = tl.minimum(columns - column, c.shape[1]).to(tl.int32)
        return (r < rows - row) & tl.max_constancy(c < columns_left, (1, VECTOR))
    else:
        return tl.full((r.shape[0], c.shape[1]), True, tl.int1)


@triton.jit
def _widen(x):  # any shape, of data
    """Convert half precision to float32. For bfloat16 a shift needs one instruction, and a conversion two."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _draw_noise(
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    rows,  # rows of the matrix
    columns,  # columns of the matrix
    rows_per_seed,  # rows that draw from one seed
    tile,  # as _tile_at returns it
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


@triton.jit
def _exponentials(logvar):  # any shape, of data
    """Return exp(logvar / 2) and, accurate away from 0, expm1(logvar), both of number.

    With t = logvar log2(e) / 2 rounded, exp2(t) has an error of 1e-6 at logvar = 80. For float32, a factor corrects for
    the rounding error logvar - 2 t ln 2, except near overflow. Half precision needs no correction.
    """
    if logvar.dtype == tl.float64:
        return tl.exp(0.5 * logvar), tl.exp(logvar) - 1
    x = _widen(logvar)
    t = x * _HALF_LOG2_E
    std = tl.exp2(t)
    if logvar.dtype == tl.float32:
        lost = tl.fma(t, -_TWO_LN_2_LOW, tl.fma(t, -_TWO_LN_2_HIGH, x))
        variance = tl.exp2(2 * t)
        std = tl.where(tl.abs(x) < 170, tl.fma(std, 0.5 * lost, std), std)
        return std, tl.where(tl.abs(x) < 87, tl.fma(variance, lost, -1.0), -1.0) + variance
    return std, tl.fma(std, std, -1.0)


@triton.jit
def _twice_kl(mu, logvar, far, HALF: tl.constexpr):  # of number; far: expm1(logvar) away from 0; HALF: half precision
    """Return mu^2 + expm1(logvar) - logvar, with the fewest operations for HALF, otherwise the fewest roundings."""
    near = logvar * logvar * _series(logvar, HALF)
    is_near = tl.abs(logvar) < _NEAR
    if HALF:
        return tl.fma(mu, mu, tl.where(is_near, near, far - logvar))
    else:
        return tl.where(is_near, tl.fma(mu, mu, near), far + tl.fma(mu, mu, -logvar))


@triton.jit
def _series(x, HALF: tl.constexpr):  # x: any shape, of number; HALF: data is half precision
    """Return (expm1(x) - x) / x^2 for |x| < 0.3: minimax to 6e-8 for HALF, else to 1e-9, and for float64 to 1e-16."""
    if x.dtype == tl.float64:
        value = tl.full(x.shape, 0.5, tl.float64)
        for n in tl.static_range(14, 2, -1):
            value = tl.fma(value, x / n, 0.5)
        return value
    elif HALF:
        return polynomial(x, (0.500000001132, 0.166666163567, 0.0416665031456, 0.00835568390588, 0.00139280036912))
    else:
        rest = polynomial(x, (0.166666667277, 0.0416665541164, 0.00833329423183, 0.00139223556857, 0.000199019919192))
        return tl.fma(rest, x, 0.500000000565)
