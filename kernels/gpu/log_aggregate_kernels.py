# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""The aggregated posterior, jointly and each marginal, in one pass over the posteriors, as Triton kernels.

In bits, with v_bnk = (z_bk - mu_nk) s_nk and log2 N_bnk = peak_nk - v_bnk^2 as in analytic_aggregate.py:

    forward   A program owns a tile of codes, ROWS by all columns, and walks a strip of the posteriors. Marginals are
              running sums of powers of two, relative to the largest so far: of the two exponents of a step one is 0,
              so a step costs one exponential. The joints, sums of log2 N over a row, wait for the end of a CHUNK.
    dz        The same walk again, with the two results for all that forward knew.
    dmu       A program owns a tile of posteriors and walks a strip of the codes: dmu and dlogvar.

Long sums are kept short: CHUNK steps have a sum of their own, which is then added to that of the strip. Strips are
added up in a fixed order, so two runs give the same bits.

fused_aggregate_op.py launches the kernels and makes them operators of PyTorch.
"""

import triton
import triton.language as tl

_HALF_LOG2_E = tl.constexpr(0.7213475204444817)

# Not recompiled for sizes; what 16 divides matters for the columns alone.
_SIZES = ["codes", "posteriors", "weight_pitch", "steps"]


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    z_ptr,
    mu_ptr,
    s_ptr,
    peak_ptr,
    weights_ptr,
    joint_ptr,
    marginals_ptr,
    codes,
    posteriors,
    columns,
    weight_pitch,
    steps,
    WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a strip's sums for q(z_b), `(2, strips, codes)`, and for q_k(z_bk), `(2, strips, codes, columns)`.

    First come the largest exponents, then the sums relative to them: in here, a logarithm in float64 would spill.
    """
    strip = tl.program_id(1)
    b, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    here = b.to(tl.int64)[:, None] * columns + k[None, :]
    inside = (b < codes)[:, None] & (k < columns)[None, :]
    z = tl.load(z_ptr + here, mask=inside, other=0)
    joint, marginals = _nothing(z, (ROWS,)), _nothing(z, (ROWS, COLUMNS))
    for start in range(strip * steps, tl.minimum(strip * steps + steps, posteriors), CHUNK):
        log_joints = tl.full((ROWS, CHUNK), float("-inf"), z.dtype)
        marginals_here = _nothing(z, (ROWS, COLUMNS))
        for n in range(start, tl.minimum(start + CHUNK, posteriors)):
            mu, s, peak = _row(mu_ptr, n, columns, k), _row(s_ptr, n, columns, k), _row(peak_ptr, n, columns, k)
            v = (z - mu[None, :]) * s[None, :]
            log_q = peak[None, :] - v * v
            log_joint = tl.sum(log_q, 1)
            if WEIGHTED:
                weight = tl.load(weights_ptr + b.to(tl.int64) * weight_pitch + n, mask=b < codes, other=0)
                log_joint += weight
                log_q += weight[:, None]
            log_joints = tl.where(tl.arange(0, CHUNK)[None, :] == n - start, log_joint[:, None], log_joints)
            marginals_here = _sum_with(marginals_here, (log_q, 1.0))
        joint, marginals = _sum_with(joint, _sum_over(log_joints)), _sum_with(marginals, marginals_here)
    strips = tl.num_programs(1).to(tl.int64)
    for part in tl.static_range(2):
        first = (part * strips + strip) * codes
        tl.store(joint_ptr + first + b, joint[part], mask=b < codes)
        tl.store(marginals_ptr + first * columns + here, marginals[part], mask=inside)


@triton.jit
def _nothing(like, SHAPE: tl.constexpr):
    """Return a sum over nothing, as (the largest exponent, the sum relative to it)."""
    return tl.full(SHAPE, _lowest(like), like.dtype), tl.zeros(SHAPE, like.dtype)


@triton.jit
def _lowest(like):
    """Return a number below every finite exponent."""
    if like.dtype == tl.float32:
        return -3.4e38
    else:
        return -1.7e308


@triton.jit
def _sum_with(one, other):
    """Return the sum of two sums, each times 2^(its exponent)."""
    rise = other[0] - one[0]
    shrunk = tl.exp2(-tl.abs(rise))
    total = tl.where(rise > 0, one[1] * shrunk + other[1], other[1] * shrunk + one[1])
    return tl.maximum(one[0], other[0]), total


@triton.jit
def _sum_over(exponents):
    """Return the sum of the powers of two of each row."""
    highest = tl.maximum(tl.max(exponents, 1), _lowest(exponents))
    finite = tl.where(highest == float("inf"), 0, highest)
    return highest, tl.sum(tl.exp2(exponents - finite[:, None]), 1)


@triton.jit
def _row(ptr, row, columns, k):
    """Return a row of a matrix, 0 beyond its columns."""
    return tl.load(ptr + tl.cast(row, tl.int64) * columns + k, mask=k < columns, other=0)


@triton.jit(do_not_specialize=_SIZES)
def codes_kernel(
    g_joint_ptr,
    g_marginals_ptr,
    joint_ptr,
    rest_ptr,
    marginals_ptr,
    z_ptr,
    mu_ptr,
    s_ptr,
    peak_ptr,
    weights_ptr,
    dz_ptr,
    codes,
    posteriors,
    columns,
    weight_pitch,
    steps,
    OF_JOINT: tl.constexpr,
    OF_MARGINALS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write what a strip's posteriors add to dz, `(strips, codes, columns)`; the joint is joint + rest."""
    strip = tl.program_id(1)
    b, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    here = b.to(tl.int64)[:, None] * columns + k[None, :]
    inside = (b < codes)[:, None] & (k < columns)[None, :]
    z = tl.load(z_ptr + here, mask=inside, other=0)
    joint, marginals = 0.0, 0.0
    if OF_JOINT:
        rest = tl.load(rest_ptr + b, mask=b < codes, other=0)
        g_joint = tl.load(g_joint_ptr + b, mask=b < codes, other=0)
        joint = tl.load(joint_ptr + b, mask=b < codes, other=0), rest, g_joint
    if OF_MARGINALS:
        g_marginals = tl.load(g_marginals_ptr + here, mask=inside, other=0)
        marginals = tl.load(marginals_ptr + here, mask=inside, other=0), g_marginals
    dz = tl.zeros((ROWS, COLUMNS), z.dtype)
    for start in range(strip * steps, tl.minimum(strip * steps + steps, posteriors), CHUNK):
        dz_here = tl.zeros((ROWS, COLUMNS), z.dtype)
        for n in range(start, tl.minimum(start + CHUNK, posteriors)):
            mu, s, peak = _row(mu_ptr, n, columns, k), _row(s_ptr, n, columns, k), _row(peak_ptr, n, columns, k)
            v = (z - mu[None, :]) * s[None, :]
            log_q = peak[None, :] - v * v
            weight = 0.0
            if WEIGHTED:
                weight = tl.load(weights_ptr + b.to(tl.int64) * weight_pitch + n, mask=b < codes, other=0)
            h = _slope(log_q, weight, joint, marginals, OF_JOINT, OF_MARGINALS, WEIGHTED)
            dz_here += (h * v) * s[None, :]
        dz += dz_here
    tl.store(dz_ptr + strip.to(tl.int64) * codes * columns + here, -2 * dz, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def posteriors_kernel(
    g_joint_ptr,
    g_marginals_ptr,
    joint_ptr,
    rest_ptr,
    marginals_ptr,
    z_ptr,
    mu_ptr,
    s_ptr,
    peak_ptr,
    weights_ptr,
    dmu_ptr,
    dlogvar_ptr,
    codes,
    posteriors,
    columns,
    weight_pitch,
    steps,
    OF_JOINT: tl.constexpr,
    OF_MARGINALS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write what a strip's codes add to dmu and dlogvar, `(strips, posteriors, columns)`."""
    strip = tl.program_id(1)
    n, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    here = n.to(tl.int64)[:, None] * columns + k[None, :]
    inside = (n < posteriors)[:, None] & (k < columns)[None, :]
    mu = tl.load(mu_ptr + here, mask=inside, other=0)
    s = tl.load(s_ptr + here, mask=inside, other=0)
    peak = tl.load(peak_ptr + here, mask=inside, other=0)
    dmu, dlogvar = tl.zeros((ROWS, COLUMNS), mu.dtype), tl.zeros((ROWS, COLUMNS), mu.dtype)
    for start in range(strip * steps, tl.minimum(strip * steps + steps, codes), CHUNK):
        dmu_here, dlogvar_here = tl.zeros((ROWS, COLUMNS), mu.dtype), tl.zeros((ROWS, COLUMNS), mu.dtype)
        for b in range(start, tl.minimum(start + CHUNK, codes)):
            v = (_row(z_ptr, b, columns, k)[None, :] - mu) * s
            log_q = peak - v * v
            weight, joint, marginals = 0.0, 0.0, 0.0
            if WEIGHTED:
                row_ptr = weights_ptr + tl.cast(b, tl.int64) * weight_pitch
                weight = tl.load(row_ptr + n, mask=n < posteriors, other=0)
            if OF_JOINT:
                joint = tl.load(joint_ptr + b), tl.load(rest_ptr + b), tl.load(g_joint_ptr + b)
            if OF_MARGINALS:
                g_marginals = _row(g_marginals_ptr, b, columns, k)[None, :]
                marginals = _row(marginals_ptr, b, columns, k)[None, :], g_marginals
            h = _slope(log_q, weight, joint, marginals, OF_JOINT, OF_MARGINALS, WEIGHTED)
            hv = h * v
            dmu_here += hv
            dlogvar_here += hv * v - _HALF_LOG2_E * h
        dmu += dmu_here
        dlogvar += dlogvar_here
    first = strip.to(tl.int64) * posteriors * columns
    tl.store(dmu_ptr + first + here, 2 * dmu * s, mask=inside)
    tl.store(dlogvar_ptr + first + here, dlogvar, mask=inside)


@triton.jit
def _slope(log_q, weight, joint, marginals, OF_JOINT: tl.constexpr, OF_MARGINALS: tl.constexpr, WEIGHTED: tl.constexpr):
    """Return h, the gradient of log2 N; joint is (joint, the rest of its digits, gradient), marginals without rest."""
    h = tl.zeros_like(log_q)
    if OF_JOINT:
        log_joint = tl.sum(log_q, 1)
        if WEIGHTED:
            log_joint += weight
        h += (joint[2] * tl.exp2((log_joint - joint[0]) - joint[1]))[:, None]
    if OF_MARGINALS:
        if WEIGHTED:
            log_q += weight[:, None]
        h = tl.fma(tl.broadcast_to(marginals[1], log_q.shape), tl.exp2(log_q - marginals[0]), h)
    return h
