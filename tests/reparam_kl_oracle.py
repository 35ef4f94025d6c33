"""reparam_kl in NumPy, longer floats than the tested dtype: a backend's error may be at most twice the textbook's."""

import math

import numpy as np
import torch

from tests.kernel_checks import seeded
from vaebench import kernels

OUTPUTS = "z", "kl", "dmu", "dlogvar"


def values_and_gradients(backend, mu, logvar, dz, dkl, **arguments):
    """Return z, kl, and the gradients of dz . z + dkl . kl."""
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z, kl = kernels.reparam_kl(mu, logvar, backend=backend, **{"seed": 7, **arguments})
    return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), (mu, logvar), (dz, dkl))


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


def exact(mu, logvar, eps, dz, dkl, reduction):
    """Return z, kl, dmu and dlogvar from their definitions."""
    mu, logvar, eps, dz, dkl = map(long, (mu, logvar, eps, dz, dkl))
    std, weight = np.exp(logvar / 2), weights(mu, dkl, reduction)
    kl = reduced((mu**2 + np.expm1(logvar) - logvar) / 2, reduction)
    return mu + std * eps, kl, dz + weight * mu, (dz * std * eps + weight * np.expm1(logvar)) / 2


def magnitudes(mu, logvar, eps, dz, dkl, reduction):
    """Return the same four with every term made positive. Rounding errors are proportional to these."""
    mu, logvar, eps, dz, dkl = (np.abs(long(x)) if x is not logvar else long(x) for x in (mu, logvar, eps, dz, dkl))
    std, weight = np.exp(logvar / 2), weights(mu, dkl, reduction)
    kl = reduced((mu**2 + std**2 + 1 + np.abs(logvar)) / 2, reduction)
    return mu + std * eps, kl, dz + weight * mu, (dz * std * eps + weight * (std**2 + 1)) / 2


def reduced(terms, reduction):
    sums = terms.sum(tuple(range(1, terms.ndim)))
    return {"none": terms, "sample": sums, "dim": terms.mean(0), "batch": sums.mean()}[reduction]


def weights(mu, dkl, reduction):
    """Return the gradient of each term of the KL."""
    if reduction == "sample":
        return dkl.reshape(-1, *[1] * (mu.ndim - 1))
    return dkl if reduction == "none" else dkl / mu.shape[0]


def textbook(mu, logvar, eps, dz, dkl, reduction):
    """Return the same four from PyTorch as textbooks have it, in the dtype of mu."""
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z = mu + eps.to(mu.dtype) * torch.exp(0.5 * logvar)
    terms = (-0.5 * (1 + logvar - mu.pow(2) - logvar.exp())).to(dkl.dtype)
    sums = terms.flatten(1).sum(1) if mu.ndim > 1 else terms
    kl = {"none": terms, "sample": sums, "dim": terms.mean(0), "batch": sums.mean()}[reduction]
    return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), (mu, logvar), (dz, dkl))


def assert_as_accurate_as_eager(backend, mu, logvar, reduction, seed=7):
    """Allow twice the error of eager with the same noise, at its largest and as a root mean square.

    Eager may be exactly right on a few numbers, so its error counts as at least one unit in the last place of the
    terms that it adds up. Where it overflows, as it does in float16, the unit is that of float16.
    """
    dz, dkl = upstream(mu, reduction)
    eps = normals(backend, mu.shape, mu.device, seed)
    ours = values_and_gradients(backend, mu, logvar, dz, dkl, reduction=reduction, seed=seed)
    arguments = mu, logvar, eps, dz, dkl, reduction
    results = zip(ours, textbook(*arguments), exact(*arguments), magnitudes(*arguments), strict=True)
    for name, (mine, its, right, size) in zip(OUTPUTS, results, strict=True):
        assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
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
