# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""The aggregated posterior, jointly and each marginal, in one pass over the posteriors, as Triton kernels.

All logarithms are in base 2, with v and peak as in shared/log2_aggregate.py:

    forward   A program owns a tile of codes, ROWS by all columns, and walks a strip of the posteriors. The sums for the
              marginals are relative to the largest exponent so far. Of the two exponents of a step one is 0, so that a
              step costs one exponential. The joints need sums of log2 N over a row, and are added after each CHUNK.
    dz        A program walks as in forward, and also reads the two results.
    dmu       A program owns a tile of posteriors, walks a strip of the codes, and writes dmu and dlogvar.

To keep long sums accurate, each CHUNK has a sum of its own, which is then added to the sum of the strip. The strips are
added up in a fixed order, so that two runs give the same bits.

log_aggregate.py launches the kernels. In the comments, `number` is the dtype of sums: float32, or float64 for float64.
"""

import triton
import triton.language as tl

_HALF_LOG2_E = tl.constexpr(0.7213475204444817)

# No recompilation for these sizes. Only for the columns it matters whether 16 divides them.
_SIZES = ["codes", "posteriors", "weights_stride", "strip_length"]


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    z_ptr,  # (codes, columns) of number
    mu_ptr,  # (posteriors, columns) of number
    s_ptr,  # sqrt(log2(e) / 2) / sigma, (posteriors, columns) of number
    peak_ptr,  # log2 of the density at mu, (posteriors, columns) of number
    weights_ptr,  # log2 weights, (posteriors,) or (codes, posteriors) of number, row stride weights_stride; or None
    joint_ptr,  # written: sums for q(z_b), exponents and then relative sums, (2, strips, codes) of number
    marginals_ptr,  # written: the same for q_k(z_bk), (2, strips, codes, columns) of number
    codes,  # B
    posteriors,  # N
    columns,  # K, also the row stride of all matrices (., columns)
    weights_stride,  # row stride of the weights; 0 if all codes have the same
    strip_length,  # posteriors of a strip; a multiple of CHUNK
    WEIGHTED: tl.constexpr,  # there are weights
    CHUNK: tl.constexpr,  # posteriors whose terms have a sum of their own
    ROWS: tl.constexpr,  # codes of a tile
    COLUMNS: tl.constexpr,  # columns of a tile: all, rounded up to a power of two
):
    """Write the sums of one strip: the largest exponents, and the sums relative to them.

    The host takes the logarithms, because a logarithm in float64 would spill registers here.
    """
    strip = tl.program_id(1)
    b, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    offsets = b.to(tl.int64)[:, None] * columns + k[None, :]
    inside = (b < codes)[:, None] & (k < columns)[None, :]
    z = tl.load(z_ptr + offsets, mask=inside, other=0)
    joint, marginals = _empty_sum(z, (ROWS,)), _empty_sum(z, (ROWS, COLUMNS))
    for start in range(strip * strip_length, tl.minimum(strip * strip_length + strip_length, posteriors), CHUNK):
        log_joints = tl.full((ROWS, CHUNK), float("-inf"), z.dtype)
        chunk_marginals = _empty_sum(z, (ROWS, COLUMNS))
        for n in range(start, tl.minimum(start + CHUNK, posteriors)):
            mu = _load_row(mu_ptr, n, columns, k)
            s, peak = _load_row(s_ptr, n, columns, k), _load_row(peak_ptr, n, columns, k)
            v = (z - mu[None, :]) * s[None, :]
            log_q = peak[None, :] - v * v
            log_joint = tl.sum(log_q, 1)
            if WEIGHTED:
                weight = tl.load(weights_ptr + b.to(tl.int64) * weights_stride + n, mask=b < codes, other=0)
                log_joint += weight
                log_q += weight[:, None]
            log_joints = tl.where(tl.arange(0, CHUNK)[None, :] == n - start, log_joint[:, None], log_joints)
            chunk_marginals = _add_sums(chunk_marginals, (log_q, 1.0))
        joint, marginals = _add_sums(joint, _sum_powers(log_joints)), _add_sums(marginals, chunk_marginals)
    strips = tl.num_programs(1).to(tl.int64)
    for part in tl.static_range(2):
        first = (part * strips + strip) * codes
        tl.store(joint_ptr + first + b, joint[part], mask=b < codes)
        tl.store(marginals_ptr + first * columns + offsets, marginals[part], mask=inside)


@triton.jit
def _empty_sum(like, SHAPE: tl.constexpr):  # like: a tensor of the dtype; SHAPE: shape of the sum
    """Return an empty sum of powers of two, as (largest exponent, sum relative to it)."""
    return tl.full(SHAPE, _lowest(like), like.dtype), tl.zeros(SHAPE, like.dtype)


@triton.jit
def _lowest(like):  # a tensor of the dtype
    """Return a number below every finite exponent."""
    if like.dtype == tl.float32:
        return -3.4e38
    else:
        return -1.7e308


@triton.jit
def _add_sums(one, other):  # each (largest exponent, sum relative to it), of any shape
    """Return the sum of two sums, in the form (largest exponent, sum relative to it)."""
    rise = other[0] - one[0]
    shrunk = tl.exp2(-tl.abs(rise))
    total = tl.where(rise > 0, one[1] * shrunk + other[1], other[1] * shrunk + one[1])
    return tl.maximum(one[0], other[0]), total


@triton.jit
def _sum_powers(exponents):  # (ROWS, CHUNK) of number
    """Return the sum of the powers of two of each row, as (largest exponent, sum relative to it), both `(ROWS,)`."""
    highest = tl.maximum(tl.max(exponents, 1), _lowest(exponents))
    finite = tl.where(highest == float("inf"), 0, highest)
    return highest, tl.sum(tl.exp2(exponents - finite[:, None]), 1)


@triton.jit
def _load_row(ptr, row, columns, k):  # ptr: (rows, columns) of number, contiguous; k: columns to load, (COLUMNS,)
    """Return a row of a matrix, `(COLUMNS,)`, and 0 beyond its columns."""
    return tl.load(ptr + tl.cast(row, tl.int64) * columns + k, mask=k < columns, other=0)


@triton.jit(do_not_specialize=_SIZES)
def code_gradient_kernel(
    g_joint_ptr,  # gradient of the joint, (codes,) of number; or None
    g_marginals_ptr,  # gradient of the marginals, (codes, columns) of number; or None
    joint_ptr,  # log2 of the joint, (codes,) of number
    rest_ptr,  # the digits that joint_ptr lacks, (codes,) of number
    marginals_ptr,  # log2 of the marginals, (codes, columns) of number
    z_ptr,  # (codes, columns) of number
    mu_ptr,  # (posteriors, columns) of number
    s_ptr,  # sqrt(log2(e) / 2) / sigma, (posteriors, columns) of number
    peak_ptr,  # log2 of the density at mu, (posteriors, columns) of number
    weights_ptr,  # log2 weights, (posteriors,) or (codes, posteriors) of number, row stride weights_stride; or None
    dz_ptr,  # written: the share of each strip in dz, (strips, codes, columns) of number
    codes,  # B
    posteriors,  # N
    columns,  # K, also the row stride of all matrices (., columns)
    weights_stride,  # row stride of the weights; 0 if all codes have the same
    strip_length,  # posteriors of a strip; a multiple of CHUNK
    GRAD_JOINT: tl.constexpr,  # the joint has a gradient
    GRAD_MARGINALS: tl.constexpr,  # the marginals have a gradient
    WEIGHTED: tl.constexpr,  # there are weights
    CHUNK: tl.constexpr,  # posteriors whose terms have a sum of their own
    ROWS: tl.constexpr,  # codes of a tile
    COLUMNS: tl.constexpr,  # columns of a tile: all, rounded up to a power of two
):
    """Write the share of one strip of posteriors in dz."""
    strip = tl.program_id(1)
    b, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    offsets = b.to(tl.int64)[:, None] * columns + k[None, :]
    inside = (b < codes)[:, None] & (k < columns)[None, :]
    z = tl.load(z_ptr + offsets, mask=inside, other=0)
    joint, marginals = 0.0, 0.0
    if GRAD_JOINT:
        rest = tl.load(rest_ptr + b, mask=b < codes, other=0)
        g_joint = tl.load(g_joint_ptr + b, mask=b < codes, other=0)
        joint = tl.load(joint_ptr + b, mask=b < codes, other=0), rest, g_joint
    if GRAD_MARGINALS:
        g_marginals = tl.load(g_marginals_ptr + offsets, mask=inside, other=0)
        marginals = tl.load(marginals_ptr + offsets, mask=inside, other=0), g_marginals
    dz = tl.zeros((ROWS, COLUMNS), z.dtype)
    for start in range(strip * strip_length, tl.minimum(strip * strip_length + strip_length, posteriors), CHUNK):
        chunk_dz = tl.zeros((ROWS, COLUMNS), z.dtype)
        for n in range(start, tl.minimum(start + CHUNK, posteriors)):
            mu = _load_row(mu_ptr, n, columns, k)
            s, peak = _load_row(s_ptr, n, columns, k), _load_row(peak_ptr, n, columns, k)
            v = (z - mu[None, :]) * s[None, :]
            log_q = peak[None, :] - v * v
            weight = 0.0
            if WEIGHTED:
                weight = tl.load(weights_ptr + b.to(tl.int64) * weights_stride + n, mask=b < codes, other=0)
            h = _log_q_gradient(log_q, weight, joint, marginals, GRAD_JOINT, GRAD_MARGINALS, WEIGHTED)
            chunk_dz += (h * v) * s[None, :]
        dz += chunk_dz
    tl.store(dz_ptr + strip.to(tl.int64) * codes * columns + offsets, -2 * dz, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def posterior_gradient_kernel(
    g_joint_ptr,  # gradient of the joint, (codes,) of number; or None
    g_marginals_ptr,  # gradient of the marginals, (codes, columns) of number; or None
    joint_ptr,  # log2 of the joint, (codes,) of number
    rest_ptr,  # the digits that joint_ptr lacks, (codes,) of number
    marginals_ptr,  # log2 of the marginals, (codes, columns) of number
    z_ptr,  # (codes, columns) of number
    mu_ptr,  # (posteriors, columns) of number
    s_ptr,  # sqrt(log2(e) / 2) / sigma, (posteriors, columns) of number
    peak_ptr,  # log2 of the density at mu, (posteriors, columns) of number
    weights_ptr,  # log2 weights, (posteriors,) or (codes, posteriors) of number, row stride weights_stride; or None
    dmu_ptr,  # written: the share of each strip in dmu, (strips, posteriors, columns) of number
    dlogvar_ptr,  # written: the same for dlogvar, (strips, posteriors, columns) of number
    codes,  # B
    posteriors,  # N
    columns,  # K, also the row stride of all matrices (., columns)
    weights_stride,  # row stride of the weights; 0 if all codes have the same
    strip_length,  # codes of a strip; a multiple of CHUNK
    GRAD_JOINT: tl.constexpr,  # the joint has a gradient
    GRAD_MARGINALS: tl.constexpr,  # the marginals have a gradient
    WEIGHTED: tl.constexpr,  # there are weights
    CHUNK: tl.constexpr,  # codes whose terms have a sum of their own
    ROWS: tl.constexpr,  # posteriors of a tile
    COLUMNS: tl.constexpr,  # columns of a tile: all, rounded up to a power of two
):
    """Write the share of one strip of codes in dmu and dlogvar."""
    strip = tl.program_id(1)
    n, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    offsets = n.to(tl.int64)[:, None] * columns + k[None, :]
    inside = (n < posteriors)[:, None] & (k < columns)[None, :]
    mu = tl.load(mu_ptr + offsets, mask=inside, other=0)
    s = tl.load(s_ptr + offsets, mask=inside, other=0)
    peak = tl.load(peak_ptr + offsets, mask=inside, other=0)
    dmu, dlogvar = tl.zeros((ROWS, COLUMNS), mu.dtype), tl.zeros((ROWS, COLUMNS), mu.dtype)
    for start in range(strip * strip_length, tl.minimum(strip * strip_length + strip_length, codes), CHUNK):
        chunk_dmu, chunk_dlogvar = tl.zeros((ROWS, COLUMNS), mu.dtype), tl.zeros((ROWS, COLUMNS), mu.dtype)
        for b in range(start, tl.minimum(start + CHUNK, codes)):
            v = (_load_row(z_ptr, b, columns, k)[None, :] - mu) * s
            log_q = peak - v * v
            weight, joint, marginals = 0.0, 0.0, 0.0
            if WEIGHTED:
                row_ptr = weights_ptr + tl.cast(b, tl.int64) * weights_stride
                weight = tl.load(row_ptr + n, mask=n < posteriors, other=0)
            if GRAD_JOINT:
                joint = tl.load(joint_ptr + b), tl.load(rest_ptr + b), tl.load(g_joint_ptr + b)
            if GRAD_MARGINALS:
                g_marginals = _load_row(g_marginals_ptr, b, columns, k)[None, :]
                marginals = _load_row(marginals_ptr, b, columns, k)[None, :], g_marginals
            h = _log_q_gradient(log_q, weight, joint, marginals, GRAD_JOINT, GRAD_MARGINALS, WEIGHTED)
            hv = h * v
            chunk_dmu += hv
            chunk_dlogvar += hv * v - _HALF_LOG2_E * h
        dmu += chunk_dmu
        dlogvar += chunk_dlogvar
    first = strip.to(tl.int64) * posteriors * columns
    tl.store(dmu_ptr + first + offsets, 2 * dmu * s, mask=inside)
    tl.store(dlogvar_ptr + first + offsets, dlogvar, mask=inside)


@triton.jit
def _log_q_gradient(
    log_q,  # log2 N, (ROWS, COLUMNS) of number
    weight,  # log2 weight, scalar or (ROWS,) of number
    joint,  # (joint, the digits that it lacks, its gradient), scalars or (ROWS,) of number
    marginals,  # (marginals, their gradient), (1, COLUMNS) or (ROWS, COLUMNS) of number
    GRAD_JOINT: tl.constexpr,  # the joint has a gradient
    GRAD_MARGINALS: tl.constexpr,  # the marginals have a gradient
    WEIGHTED: tl.constexpr,  # there are weights
):
    """Return h, the gradient of log2 N, `(ROWS, COLUMNS)`."""
    h = tl.zeros_like(log_q)
    if GRAD_JOINT:
        log_joint = tl.sum(log_q, 1)
        if WEIGHTED:
            log_joint += weight
        h += (joint[2] * tl.exp2((log_joint - joint[0]) - joint[1]))[:, None]
    if GRAD_MARGINALS:
        if WEIGHTED:
            log_q += weight[:, None]
        h = tl.fma(tl.broadcast_to(marginals[1], log_q.shape), tl.exp2(log_q - marginals[0]), h)
    return h
