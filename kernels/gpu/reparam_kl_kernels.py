# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Reparameterisation and Kullback-Leibler divergence in one pass over memory, forward and backward, as Triton kernels.

Tensors `(B, ...)` are seen as B rows of K columns, each tensor with a row pitch of its own, so both halves of
`h.chunk(2, -1)` are read in place. A tile is about 4 kB of each tensor, read 16 bytes per thread at a time.

    forward   A program walks `steps` tiles along the axis that the KL sums over, writes z, and keeps the KL in its
              registers until it writes one partial sum per row (per column for `dim`). Long rows are cut into strips,
              a program each; torch then adds the strips' sums, in a fixed order.
    backward  A program takes one tile, reads dz, dkl, mu, logvar, draws the noise again from the seed, and writes
              dmu = dz + dkl mu  and  dlogvar = (dz std eps + dkl expm1(logvar)) / 2.

Nothing but mu, logvar and the seed is kept for backward. Where rows are contiguous and 4 divides K, the noise counters
run on from row to row, and a reduction that ignores rows sees the whole tensor as one row.

The noise is drawn in fused_noise.py; fused_reparam_kl_launch.py plans the launches, fused_reparam_kl_op.py makes them
operators of PyTorch.
"""

import triton
import triton.language as tl

from .noise import normal_tile, quartic

_HALF_LOG2_E = tl.constexpr(0.7213475204444817)
_TWO_LN_2_HIGH, _TWO_LN_2_LOW = tl.constexpr(1.38629436492919921875), tl.constexpr(-3.80930860e-09)
_NEAR = tl.constexpr(0.3)

# Not recompiled for sizes that 16 divides; what alignment allows is said by VECTOR.
_SIZES = ["rows", "columns", "mu_pitch", "logvar_pitch", "dz_pitch", "dkl_pitch", "gradient_pitch"]
_SIZES += ["rows_per_seed", "batch", "steps"]


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    mu_ptr,
    logvar_ptr,
    seed_ptr,
    z_ptr,
    kl_ptr,
    rows,
    columns,
    mu_pitch,
    logvar_pitch,
    rows_per_seed,
    batch,
    steps,
    SUMMED: tl.constexpr,
    MEAN: tl.constexpr,
    ONE_SEED: tl.constexpr,
    MASKED: tl.constexpr,
    WALK: tl.constexpr,
    ROW_AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Write z, and the KL: its terms (SUMMED "none"), or its sums over "columns" or over "rows" within the strip."""
    row_strip, column_strip = tl.program_id(ROW_AXIS), tl.program_id(1 - ROW_AXIS)
    row_step: tl.constexpr = ROWS if SUMMED == "rows" else 0
    column_step: tl.constexpr = COLUMNS if SUMMED == "columns" else 0
    row = row_strip * (steps * ROWS if SUMMED == "rows" else ROWS)
    column = column_strip.to(tl.int64) * (steps * COLUMNS if SUMMED == "columns" else COLUMNS)

    data = (mu_ptr, logvar_ptr, seed_ptr, z_ptr)
    shape = (rows, columns, mu_pitch, logvar_pitch, rows_per_seed)
    if WALK:
        kl = tl.zeros((ROWS, COLUMNS), kl_ptr.dtype.element_ty)
        for step in range(steps):
            here = row + step * row_step, column + step * column_step
            kl += _forward_tile(data, shape, here[0], here[1], ONE_SEED, MASKED, ROWS, COLUMNS, VECTOR)
    else:
        kl = _forward_tile(data, shape, row, column, ONE_SEED, MASKED, ROWS, COLUMNS, VECTOR)

    scale = 0.5 / batch.to(kl.dtype) if MEAN else 0.5
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if SUMMED == "columns":
        row_sums = kl_ptr + column_strip.to(tl.int64) * rows + row
        tl.store(row_sums + r, scale * tl.sum(kl, 1)[:, None], mask=r < rows - row)
    elif SUMMED == "rows":
        column_sums = kl_ptr + row_strip.to(tl.int64) * columns + column
        tl.store(column_sums + c, scale * tl.sum(kl, 0)[None, :], mask=c < columns - column)
    else:
        mask = _mask(rows - row, columns - column, r, c, MASKED, VECTOR)
        tl.store(_pointers(kl_ptr, columns, row, column, r, c, VECTOR), scale * kl, mask=mask)


@triton.jit
def _forward_tile(
    data,
    shape,
    row,
    column,
    ONE_SEED: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Write a tile of z and return the terms of twice its KL, zero outside the tensor."""
    mu_ptr, logvar_ptr, seed_ptr, z_ptr = data
    rows, columns, mu_pitch, logvar_pitch, rows_per_seed = shape
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    mask = _mask(rows - row, columns - column, r, c, MASKED, VECTOR)
    mu = tl.load(_pointers(mu_ptr, mu_pitch, row, column, r, c, VECTOR), mask=mask, other=0)
    logvar = tl.load(_pointers(logvar_ptr, logvar_pitch, row, column, r, c, VECTOR), mask=mask, other=0)

    key, counter = _key_and_counter(seed_ptr, row, column, rows, columns, rows_per_seed, r, ONE_SEED)
    std, far = _exponentials(logvar)
    eps = normal_tile(key, counter, COLUMNS, VECTOR).to(std.dtype)
    mu, logvar = _widened(mu), _widened(logvar)
    z = tl.fma(std, eps, mu).to(z_ptr.dtype.element_ty)
    tl.store(_pointers(z_ptr, columns, row, column, r, c, VECTOR), z, mask=mask)
    return _twice_kl(mu, logvar, far, z_ptr.dtype.element_ty.primitive_bitwidth == 16)


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    dz_ptr,
    dkl_ptr,
    mu_ptr,
    logvar_ptr,
    seed_ptr,
    dmu_ptr,
    dlogvar_ptr,
    rows,
    columns,
    dz_pitch,
    dkl_pitch,
    mu_pitch,
    logvar_pitch,
    gradient_pitch,
    rows_per_seed,
    batch,
    PER_ROW: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    MEAN: tl.constexpr,
    ONE_SEED: tl.constexpr,
    MASKED: tl.constexpr,
    ROW_AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Write dmu and dlogvar of one tile; dkl varies PER_ROW, PER_COLUMN, with both, or is one number."""
    row = tl.program_id(ROW_AXIS) * ROWS
    column = tl.program_id(1 - ROW_AXIS).to(tl.int64) * COLUMNS
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    mask = _mask(rows - row, columns - column, r, c, MASKED, VECTOR)
    dz = tl.load(_pointers(dz_ptr, dz_pitch, row, column, r, c, VECTOR), mask=mask, other=0)
    mu = tl.load(_pointers(mu_ptr, mu_pitch, row, column, r, c, VECTOR), mask=mask, other=0)
    logvar = tl.load(_pointers(logvar_ptr, logvar_pitch, row, column, r, c, VECTOR), mask=mask, other=0)
    if PER_ROW and PER_COLUMN:
        dkl = tl.load(_pointers(dkl_ptr, dkl_pitch, row, column, r, c, VECTOR), mask=mask, other=0)
    elif PER_ROW:
        dkl = tl.load(dkl_ptr + (row + r).to(tl.int64) * dkl_pitch, mask=r < rows - row, other=0)
    elif PER_COLUMN:
        dkl = tl.load(dkl_ptr + column + c, mask=c < columns - column, other=0)
    else:
        dkl = tl.load(dkl_ptr)
    if MEAN:
        dkl *= 1.0 / batch.to(dkl.dtype)

    key, counter = _key_and_counter(seed_ptr, row, column, rows, columns, rows_per_seed, r, ONE_SEED)
    std, far = _exponentials(logvar)
    eps = normal_tile(key, counter, COLUMNS, VECTOR).to(std.dtype)
    dz, mu, logvar = _widened(dz), _widened(mu), _widened(logvar)
    near = tl.fma(logvar * logvar, _series(logvar, True), logvar)
    expm1 = tl.where(tl.abs(logvar) < _NEAR, near, far)
    dmu = tl.fma(mu, dkl, dz).to(dmu_ptr.dtype.element_ty)
    dlogvar = (0.5 * tl.fma(dz, std * eps, dkl * expm1)).to(dlogvar_ptr.dtype.element_ty)
    tl.store(_pointers(dmu_ptr, gradient_pitch, row, column, r, c, VECTOR), dmu, mask=mask)
    tl.store(_pointers(dlogvar_ptr, gradient_pitch, row, column, r, c, VECTOR), dlogvar, mask=mask)


@triton.jit
def _pointers(base, pitch, row, column, r, c, VECTOR: tl.constexpr):
    """Return pointers to the tile at (row, column); every VECTOR of them begins at a multiple of its size in bytes."""
    BYTES: tl.constexpr = VECTOR * base.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(base + (row.to(tl.int64) * pitch + column) + (r * pitch + c), (1, BYTES))


@triton.jit
def _mask(rows_left, columns_left, r, c, MASKED: tl.constexpr, VECTOR: tl.constexpr):
    """Return where the tile lies inside the tensor: a constant, which the compiler drops, where all of it does."""
    if MASKED:
        columns_left = tl.minimum(columns_left, c.shape[1]).to(tl.int32)
        return (r < rows_left) & tl.max_constancy(c < columns_left, (1, VECTOR))
    else:
        return tl.full((r.shape[0], c.shape[1]), True, tl.int1)


@triton.jit
def _widened(x):
    """Return half precision as float32; bfloat16 by a shift, one instruction where a conversion takes two."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _key_and_counter(seed_ptr, row, column, rows, columns, rows_per_seed, r, ONE_SEED: tl.constexpr):
    """Return each row's Philox key, and the counter of its first column in the tile, `(ROWS, 1)`."""
    counters_per_row = ((columns - 1) >> 2) + 1
    if ONE_SEED:
        counter = (row.to(tl.int64) * counters_per_row + (column >> 2)) + r * counters_per_row
        return tl.load(seed_ptr), counter
    else:
        group = (row + r) // rows_per_seed
        counter = (row + r - group * rows_per_seed).to(tl.int64) * counters_per_row + (column >> 2)
        return tl.load(seed_ptr + group, mask=r < rows - row, other=0), counter


@triton.jit
def _exponentials(logvar):
    """Return exp(logvar / 2) and, for use away from 0, expm1(logvar); in float32, of float64 in float64.

    exp2(t) with t = logvar log2(e) / 2 rounded would err by 1e-6 where logvar is 80. For float32 what the rounding
    lost, logvar - 2 t ln 2, is put back, short of overflow; half-precision inputs need no such care.
    """
    if logvar.dtype == tl.float64:
        return tl.exp(0.5 * logvar), tl.exp(logvar) - 1
    x = _widened(logvar)
    t = x * _HALF_LOG2_E
    std = tl.exp2(t)
    if logvar.dtype == tl.float32:
        lost = tl.fma(t, -_TWO_LN_2_LOW, tl.fma(t, -_TWO_LN_2_HIGH, x))
        variance = tl.exp2(2 * t)
        std = tl.where(tl.abs(x) < 170, tl.fma(std, 0.5 * lost, std), std)
        return std, tl.where(tl.abs(x) < 87, tl.fma(variance, lost, -1.0), -1.0) + variance
    return std, tl.fma(std, std, -1.0)


@triton.jit
def _twice_kl(mu, logvar, far, HALF: tl.constexpr):
    """Return mu^2 + expm1(logvar) - logvar; the fewest operations for HALF, otherwise the fewest roundings."""
    near = logvar * logvar * _series(logvar, HALF)
    is_near = tl.abs(logvar) < _NEAR
    if HALF:
        return tl.fma(mu, mu, tl.where(is_near, near, far - logvar))
    else:
        return tl.where(is_near, tl.fma(mu, mu, near), far + tl.fma(mu, mu, -logvar))


@triton.jit
def _series(x, HALF: tl.constexpr):
    """Return (expm1(x) - x) / x^2 for |x| < 0.3: minimax to 6e-8 for HALF, to 1e-9, or for float64 a sum to 1e-16."""
    if x.dtype == tl.float64:
        value = tl.full(x.shape, 0.5, tl.float64)
        for n in tl.static_range(14, 2, -1):
            value = tl.fma(value, x / n, 0.5)
        return value
    elif HALF:
        return quartic(x, 0.500000001132, 0.166666163567, 0.0416665031456, 0.00835568390588, 0.00139280036912)
    else:
        rest = quartic(x, 0.166666667277, 0.0416665541164, 0.00833329423183, 0.00139223556857, 0.000199019919192)
        return tl.fma(rest, x, 0.500000000565)
