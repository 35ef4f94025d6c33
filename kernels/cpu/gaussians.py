# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The formulas of reparam_kl on contiguous numbers: one loop forward and one backward, without and with a prior.

With v = log(variance), d = mu - mu of the prior, x = v - logvar of the prior, precision = exp(-logvar of the prior):

    z   = mu + std eps                       kl = (d^2 precision + expm1(x) - x) / 2
    dmu = dz + dkl d precision               dv = (dz std eps + dkl expm1(x)) / 2
    dmu of the prior = -dkl d precision      dlogvar of the prior = -dkl (d^2 precision + expm1(x)) / 2

Without a prior d = mu, x = v, precision = 1. A gradient of the KL is 0 where dkl is 0, also if it would be infinite.
"""

import numba
import numpy as np

from .math import INLINED, JIT, exp, expm1_series, log, use_widest_vectors

LOGVAR, STD, VAR = 0, 1, 2  # the scales of a spread

_NEAR = 0.3  # |x| up to which expm1(x) and expm1(x) - x come from a series


@numba.njit(**JIT)
def evaluate(mu, spread, scale, eps, z, kl):
    """Write z, and the KL to the standard normal of each number."""
    use_widest_vectors()
    if scale == LOGVAR:  # a loop for each scale: otherwise LLVM computes every scale for each number, and selects
        for j in range(len(z)):
            z[j], kl[j] = _evaluate(mu[j], spread[j], LOGVAR, eps[j])
    elif scale == STD:
        for j in range(len(z)):
            z[j], kl[j] = _evaluate(mu[j], spread[j], STD, eps[j])
    else:
        for j in range(len(z)):
            z[j], kl[j] = _evaluate(mu[j], spread[j], VAR, eps[j])


@numba.njit(**INLINED)
def _evaluate(mu, spread, scale, eps):
    number = type(mu)
    std, v = _moments(spread, scale)
    return mu + std * number(eps), number(0.5) * (mu * mu + _expm1_minus_identity(v, std * std))


@numba.njit(**JIT)
def evaluate_with_prior(mu, spread, prior_mu, prior_logvar, scale, eps, z, kl):
    """Write z, and the KL to the prior of each number."""
    use_widest_vectors()
    for j in range(len(z)):
        z[j], kl[j] = _evaluate_with_prior(mu[j], spread[j], prior_mu[j], prior_logvar[j], scale, eps[j])


@numba.njit(**INLINED)
def _evaluate_with_prior(mu, spread, prior_mu, prior_logvar, scale, eps):
    number = type(mu)
    std, v = _moments(spread, scale)
    d, x, precision = mu - prior_mu, v - prior_logvar, exp(-prior_logvar)
    rest = _expm1_minus_identity(x, _variance_ratio(spread, prior_logvar, precision, scale))
    return mu + std * number(eps), number(0.5) * (d * d * precision + rest)


@numba.njit(**JIT)
def differentiate(dz, dkl, mu, spread, scale, eps, dmu, dspread):
    """Write the gradients of mu and of the spread."""
    use_widest_vectors()
    if scale == LOGVAR:
        for j in range(len(dmu)):
            dmu[j], dspread[j] = _differentiate(dz[j], dkl[j], mu[j], spread[j], LOGVAR, eps[j])
    elif scale == STD:
        for j in range(len(dmu)):
            dmu[j], dspread[j] = _differentiate(dz[j], dkl[j], mu[j], spread[j], STD, eps[j])
    else:
        for j in range(len(dmu)):
            dmu[j], dspread[j] = _differentiate(dz[j], dkl[j], mu[j], spread[j], VAR, eps[j])


@numba.njit(**INLINED)
def _differentiate(dz, dkl, mu, spread, scale, eps):
    number = type(mu)
    std, v = _moments(spread, scale)
    counts = dkl != number(0)
    slope = dkl * _expm1(v, std * std) if counts else number(0)
    of_mu = dkl * mu if counts else number(0)
    return dz + of_mu, _spread_gradient(dz * number(eps), slope, spread, std, scale)


@numba.njit(**JIT)
def differentiate_with_prior(
    dz, dkl, mu, spread, prior_mu, prior_logvar, scale, eps, dmu, dspread, dprior_mu, dprior_logvar
):
    """Write the gradients of mu, of the spread, and of the prior."""
    use_widest_vectors()
    for j in range(len(dmu)):
        inputs = mu[j], spread[j], prior_mu[j], prior_logvar[j]
        gradients = _differentiate_with_prior(dz[j], dkl[j], *inputs, scale, eps[j])
        dmu[j], dspread[j], dprior_mu[j], dprior_logvar[j] = gradients


@numba.njit(**INLINED)
def _differentiate_with_prior(dz, dkl, mu, spread, prior_mu, prior_logvar, scale, eps):
    number = type(mu)
    std, v = _moments(spread, scale)
    d, x, precision = mu - prior_mu, v - prior_logvar, exp(-prior_logvar)
    expm1 = _expm1(x, _variance_ratio(spread, prior_logvar, precision, scale))
    pull, counts = d * precision, dkl != number(0)
    slope = dkl * expm1 if counts else number(0)
    of_mu = dkl * pull if counts else number(0)
    of_prior_logvar = number(-0.5) * dkl * (d * pull + expm1) if counts else number(0)
    of_spread = _spread_gradient(dz * number(eps), slope, spread, std, scale)
    return dz + of_mu, of_spread, -of_mu, of_prior_logvar


@numba.njit(**INLINED)
def _moments(spread, scale):
    """Return the standard deviation and the logarithm of the variance."""
    if scale == LOGVAR:
        return exp(type(spread)(0.5) * spread), spread
    if scale == STD:
        half = log(spread)
        return spread, half + half
    return np.sqrt(spread), log(spread)


@numba.njit(**INLINED)
def _variance_ratio(spread, prior_logvar, precision, scale):
    """Return exp(x), with a correction for the rounding error of x where it is a difference of given numbers."""
    if scale == STD:
        return spread * spread * precision
    if scale == VAR:
        return spread * precision
    x = spread - prior_logvar
    shift = x - spread
    lost = (spread - (x - shift)) - (prior_logvar + shift)
    rounded = exp(x)
    ratio = rounded + rounded * lost
    return ratio if ratio == ratio else rounded  # infinities have no rounding error


@numba.njit(**INLINED)
def _expm1_minus_identity(x, exp_x):
    near = x * x * expm1_series(x)
    return near if abs(x) < type(x)(_NEAR) else exp_x - type(x)(1) - x


@numba.njit(**INLINED)
def _expm1(x, exp_x):
    near = x + x * x * expm1_series(x)
    return near if abs(x) < type(x)(_NEAR) else exp_x - type(x)(1)


@numba.njit(**INLINED)
def _spread_gradient(dz_eps, slope, spread, std, scale):
    """Return the gradient of the spread from dz eps and dkl expm1(x)."""
    if scale == LOGVAR:
        return type(spread)(0.5) * (dz_eps * std + slope)
    of_kl = slope / spread if slope != type(spread)(0) else slope  # a spread may be 0
    if scale == STD:
        return dz_eps + of_kl
    return type(spread)(0.5) * (dz_eps / std + of_kl)
