"""reparam_kl in NumPy, longer floats than the tested dtype: a backend's error may be at most twice the textbook's."""

import math

import numpy as np
import torch

from tests.kernel_checks import seeded
from vaebench import kernels

OUTPUTS = "z", "kl", "dmu", "dspread", "dprior_mu", "dprior_logvar"


def values_and_gradients(backend, mu, spread, dz, dkl, prior=None, **arguments):
    """Return z, kl, and the gradients of dz . z + dkl . kl with respect to mu, spread, and both of a prior."""
    leaves = [x.detach().requires_grad_() for x in (mu, spread, *(prior or ()))]
    arguments = {"seed": 7, **arguments} | ({"prior": tuple(leaves[2:])} if prior else {})
    z, kl = kernels.reparam_kl(*leaves[:2], backend=backend, **arguments)
    return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), leaves, (dz, dkl))


def upstream(mu, reduction):
    """Return random gradients of z and of the KL."""
    dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    shape = {"none": mu.shape, "sample": mu.shape[:1], "dim": mu.shape[1:], "batch": ()}[reduction]
    return seeded(*mu.shape, seed=1, dtype=mu.dtype).to(mu.device), seeded(*shape, seed=2, dtype=dtype).to(mu.device)


def normals(backend, shape, device, seed=7):
    """Return the noise of a backend, z at mu = 0 and std = 1. Other tests hold it to Philox and Box-Muller."""
    zeros = torch.zeros(shape, device=device)
    return kernels.reparam_kl(zeros, zeros, seed=seed, backend=backend)[0]


def long(x):
    """Return float64 as NumPy's longest floats, and other dtypes as float64, which is ten times as fast."""
    return x.detach().double().cpu().numpy().astype(np.longdouble if x.dtype == torch.float64 else np.float64)


def exact(mu, spread, eps, dz, dkl, reduction, scale="logvar", prior=None):
    """Return z, kl, dmu and dspread from their definitions, and with a prior both of its gradients."""
    mu, spread, eps, dz, dkl = map(long, (mu, spread, eps, dz, dkl))
    prior_mu, prior_logvar = map(long, prior) if prior else np.zeros((2, 1))
    std, _, v = moments(np, spread, scale)
    d, precision, v = mu - prior_mu, 1 / np.exp(prior_logvar), v - prior_logvar
    weight = weights(mu, dkl, reduction)
    kl = reduced((d**2 * precision + np.expm1(v) - v) / 2, reduction)
    pull, slope = weight * d * precision, weight * np.expm1(v)
    own = mu + std * eps, kl, dz + pull, chain(dz * std * eps + slope, spread, scale)
    if prior is None:
        return own
    return *own, summed(-pull, prior_mu), summed(-(pull * d + slope) / 2, prior_logvar)


def magnitudes(mu, spread, eps, dz, dkl, reduction, scale="logvar", prior=None):
    """Return the same with every term made positive. Rounding errors are proportional to these."""
    mu, spread, eps, dz, dkl = map(long, (mu, spread, eps, dz, dkl))
    prior_mu, prior_logvar = map(long, prior) if prior else np.zeros((2, 1))
    std, variance, v = moments(np, spread, scale)
    d, precision, weight = np.abs(mu - prior_mu), 1 / np.exp(prior_logvar), np.abs(weights(mu, dkl, reduction))
    eps, dz, sizes = np.abs(eps), np.abs(dz), variance * precision + 1
    kl = reduced((d**2 * precision + sizes + np.abs(v) + np.abs(prior_logvar)) / 2, reduction)
    pull, slope = weight * d * precision, weight * sizes
    own = np.abs(mu) + std * eps, kl, dz + pull, chain(dz * std * eps + slope, spread, scale)
    if prior is None:
        return own
    return *own, summed(pull, prior_mu), summed((pull * d + slope) / 2, prior_logvar)


def moments(library, spread, scale):
    """Return the standard deviation, the variance and its logarithm, from NumPy or torch."""
    if scale == "logvar":
        return library.exp(spread / 2), library.exp(spread), spread
    if scale == "std":
        return spread, spread**2, 2 * library.log(spread)
    return library.sqrt(spread), spread, library.log(spread)


def chain(twice_dlogvar, spread, scale):
    """Return the gradient of spread from twice that of the logarithm of the variance."""
    return twice_dlogvar / {"logvar": 2, "std": spread, "var": 2 * spread}[scale]


def summed(gradients, prior):
    """Return the gradient of a prior from those of its copies, which broadcasting made."""
    gradients = gradients.sum(tuple(range(gradients.ndim - prior.ndim)))
    wide = tuple(i for i, size in enumerate(prior.shape) if size == 1)
    return gradients.sum(wide, keepdims=True)


def reduced(terms, reduction):
    sums = terms.sum(tuple(range(1, terms.ndim)))
    return {"none": terms, "sample": sums, "dim": terms.mean(0), "batch": sums.mean()}[reduction]


def weights(mu, dkl, reduction):
    """Return the gradient of each term of the KL."""
    if reduction == "sample":
        return dkl.reshape(-1, *[1] * (mu.ndim - 1))
    return dkl if reduction == "none" else dkl / mu.shape[0]


def textbook(mu, spread, eps, dz, dkl, reduction, scale="logvar", prior=None):
    """Return the same from PyTorch as textbooks have it, in the dtype of mu."""
    leaves = [x.detach().requires_grad_() for x in (mu, spread, *(prior or ()))]
    mu, spread, *prior = leaves
    std, variance, v = moments(torch, spread, scale)
    z = mu + eps.to(mu.dtype) * std
    if prior:
        terms = -0.5 * (1 + v - prior[1] - ((mu - prior[0]).pow(2) + variance) / prior[1].exp())
    else:
        terms = -0.5 * (1 + v - mu.pow(2) - variance)
    terms = terms.to(dkl.dtype)
    sums = terms.flatten(1).sum(1) if mu.ndim > 1 else terms
    kl = {"none": terms, "sample": sums, "dim": terms.mean(0), "batch": sums.mean()}[reduction]
    return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), leaves, (dz, dkl))


def assert_as_accurate_as_eager(backend, mu, spread, reduction, seed=7, scale="logvar", prior=None):
    """Allow twice the error of eager with the same noise, at its largest and as a root mean square.

    Eager may be exactly right on a few numbers, so its error counts as at least one unit in the last place of the
    terms that it adds up. Where it overflows, as it does in float16, the unit is that of float16.
    """
    dz, dkl = upstream(mu, reduction)
    eps = normals(backend, mu.shape, mu.device, seed)
    ours = values_and_gradients(backend, mu, spread, dz, dkl, reduction=reduction, seed=seed, scale=scale, prior=prior)
    arguments = mu, spread, eps, dz, dkl, reduction, scale, prior
    results = zip(ours, textbook(*arguments), exact(*arguments), magnitudes(*arguments), strict=True)
    for name, (mine, its, right, size) in zip(OUTPUTS, results, strict=False):
        assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
        assert mine.shape == right.shape
        info = torch.finfo(mine.dtype)
        assert np.isinf(long(mine)[np.abs(right) > 1.01 * info.max]).all(), f"{name} does not overflow where it should"
        inside = np.abs(right) < 0.99 * info.max
        for norm in (np.max, lambda e: np.sqrt(np.mean(e**2))) if inside.any() else ():
            error, its_error = (norm(np.abs(long(x) - right)[inside]) for x in (mine, its))
            overflows = not np.isfinite(its_error)
            least = norm(size[inside]) * (torch.finfo(mu.dtype).eps if overflows else info.eps)
            assert error <= 2 * (least if overflows else max(its_error, least)), name


def near_and_far(dtype):
    """Return logvars of both signs from 1e-12 to 10."""
    magnitudes = torch.logspace(-12, 1, 4000, dtype=torch.float64)
    logvar = torch.cat([magnitudes, -magnitudes]).to(dtype)
    return logvar[logvar != 0]


def exact_expm1_minus_identity(v):
    """Return expm1(v) - v from NumPy's longest floats, near 0 as the sum of v^n / n! from n = 2."""
    v = v.double().numpy().astype(np.longdouble)
    series = sum(v**n / math.factorial(n) for n in range(2, 15))
    return np.where(np.abs(v) < 0.1, series, np.expm1(v) - v)
