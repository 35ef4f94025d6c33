# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Diagonal Gaussians as device functions: standard deviations, logarithms of variances, and divergences.

The divergence of N(mu, exp(v)) from N(0, 1), and its derivative with respect to v, contain

    expm1(v) - v    and    expm1(v).

Both lose their digits near v = 0 if they are computed from exp(v). Near 0 they come from a series: in v, or, where the
variance x or its root is given and not v, in x - 1. In the comments below, `number` is float32 or float64, and HALF
says that it was converted from half precision.
"""

import math

import triton
import triton.language as tl

from .noise import polynomial

_HALF_LOG2_E = tl.constexpr(0.7213475204444817)
_TWO_LN_2_HIGH, _TWO_LN_2_LOW = tl.constexpr(1.38629436492919921875), tl.constexpr(-3.80930860e-09)
_NEAR = tl.constexpr(0.3)  # |v| up to which a series in v serves

_BITS_OF_2_THIRDS, _EXPONENT_BITS = tl.constexpr(0x3F2AAAAB), tl.constexpr(-(2**23))
_LN_2_PER_EXPONENT_BIT = tl.constexpr(2.0**-23 * math.log(2))


@triton.jit
def std_and_expm1(spread, SCALE: tl.constexpr, HALF: tl.constexpr):  # spread: any shape, of number
    """Return the standard deviation and expm1(v), which is accurate near v = 0, too, if SCALE is not "logvar"."""
    if SCALE == "logvar":
        return _exponentials(spread, True, HALF)
    elif SCALE == "std":
        return spread, (spread - 1) * (spread + 1)
    else:
        return tl.sqrt(spread), spread - 1


@triton.jit
def std_and_variance(spread, SCALE: tl.constexpr, HALF: tl.constexpr):  # spread: any shape, of number
    """Return the standard deviation and the variance."""
    if SCALE == "logvar":
        return _exponentials(spread, False, HALF)
    elif SCALE == "std":
        return spread, spread * spread
    else:
        return tl.sqrt(spread), spread


@triton.jit
def _exponentials(x, LESS_ONE: tl.constexpr, HALF: tl.constexpr):  # x: any shape, of number
    """Return exp(x / 2) and exp(x), or expm1(x) accurate away from 0 if LESS_ONE, both of number.

    With t = x log2(e) / 2 rounded, exp2(t) has an error of 1e-6 at x = 80. For float32, a factor corrects for the
    rounding error x - 2 t ln 2, except near overflow. Half precision needs no correction.
    """
    less: tl.constexpr = 1.0 if LESS_ONE else 0.0
    if x.dtype == tl.float64:
        return tl.exp(0.5 * x), tl.exp(x) - less
    t = x * _HALF_LOG2_E
    std = tl.exp2(t)
    if HALF:
        return std, tl.fma(std, std, -less)
    lost = tl.fma(t, -_TWO_LN_2_LOW, tl.fma(t, -_TWO_LN_2_HIGH, x))
    variance = tl.exp2(2 * t)
    std = tl.where(tl.abs(x) < 170, tl.fma(std, 0.5 * lost, std), std)
    return std, tl.where(tl.abs(x) < 87, tl.fma(variance, lost, -less), -less) + variance


@triton.jit
def log_variance(spread, SCALE: tl.constexpr):  # spread: any shape, of number
    """Return v."""
    if SCALE == "logvar":
        return spread
    elif SCALE == "std":
        return 2 * _log(spread)
    else:
        return _log(spread)


@triton.jit
def relate(mu, variance, v, prior_mu, prior_logvar, HALF: tl.constexpr):  # any shape, of number
    """Return, relative to a prior, mu and v as differences, expm1(v) away from 0, and 1 / variance of the prior.

    expm1(v) follows from the ratio of the variances, because the rounding error of a large difference of both v would
    be a relative error of its exponential. The last result is infinite for prior_logvar below -88 in float32.
    """
    _, precision = _exponentials(-prior_logvar, False, HALF)
    return mu - prior_mu, v - prior_logvar, tl.fma(variance, precision, -1.0), precision


@triton.jit
def twice_kl(mu, pull, v, far, HALF: tl.constexpr):  # any shape, of number; far: expm1(v) away from 0
    """Return mu pull + expm1(v) - v, where pull is mu / variance of the prior."""
    near = v * v * _series(v, HALF)
    return _twice_kl(mu, pull, v, tl.abs(v) < _NEAR, near, far, HALF)


@triton.jit
def twice_kl_of_spread(mu, x, expm1, SCALE: tl.constexpr, HALF: tl.constexpr):  # any shape, of number
    """Return mu^2 + expm1(v) - v, where x is the variance or its root, as SCALE says."""
    if x.dtype == tl.float64:
        return twice_kl(mu, mu, log_variance(x, SCALE), expm1, HALF)
    else:
        exponent, u = _split(x)
        rest = u * u * _log1p_series(u)
        log = _join(x, exponent, u + rest)
        if SCALE == "std":
            return _twice_kl(mu, mu, 2 * log, exponent == 0, tl.fma(u, u, -2 * rest), expm1, HALF)
        else:
            return _twice_kl(mu, mu, log, exponent == 0, -rest, expm1, HALF)


@triton.jit
def _twice_kl(mu, pull, v, is_near, near, far, HALF: tl.constexpr):  # any shape, of number; is_near: bool
    """Add up mu pull and near or far - v, with the fewest operations for HALF, otherwise with the fewest roundings."""
    if HALF:
        return tl.fma(mu, pull, tl.where(is_near, near, far - v))
    else:
        return tl.where(is_near, tl.fma(mu, pull, near), far + tl.fma(mu, pull, -v))


@triton.jit
def expm1_near_0(v, far):  # any shape, of number; far: expm1(v) away from 0
    """Return expm1(v)."""
    near = tl.fma(v * v, _series(v, True), v)
    return tl.where(tl.abs(v) < _NEAR, near, far)


@triton.jit
def expm1_of_difference(v, own_v, far, SCALE: tl.constexpr):  # any shape, of number; far: expm1(v) away from 0
    """Return expm1(v), where v is own_v relative to a prior, as `relate` returns it.

    A logarithm own_v has the rounding error of its own size, not of the size of v, so it serves near 0 alone.
    """
    expm1 = expm1_near_0(v, far)
    if SCALE == "logvar":
        return expm1
    else:
        return tl.where(tl.abs(own_v) < _NEAR, expm1, far)


@triton.jit
def _log(x):  # any shape, of number
    """Return log(x), in half the instructions of tl.log in float32. There, a subnormal x counts as about 2^-127."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        exponent, u = _split(x)
        return _join(x, exponent, tl.fma(u * u, _log1p_series(u), u))


@triton.jit
def _split(x):  # any shape, float32
    """Return 2^23 n, int32, and u, float32, such that x = 2^n (1 + u) and |u| <= 1/3."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _BITS_OF_2_THIRDS) & _EXPONENT_BITS
    return exponent, (bits - exponent).to(tl.float32, bitcast=True) - 1


@triton.jit
def _join(x, exponent, log1p):  # any shape; x, log1p: float32; exponent: as _split returns it
    """Return log(x) from log(1 + u): -infinity at 0 and NaN below."""
    log = tl.fma(exponent.to(tl.float32), _LN_2_PER_EXPONENT_BIT, log1p)
    return tl.where(x > 0, log, tl.where(x == 0, float("-inf"), float("nan")))


@triton.jit
def _log1p_series(u):  # any shape, float32
    """Return (log(1 + u) - u) / u^2 for |u| <= 1/3, minimax to 5e-8 of itself."""
    low = (-0.500000001981, 0.333332717091, -0.249998861732, 0.200073002505, -0.166759531125)
    high = (0.140546121766, -0.122504952204, 0.13754509646, -0.125950475565)
    return polynomial(u, low + high)


@triton.jit
def _series(x, HALF: tl.constexpr):  # x: any shape, of number
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
