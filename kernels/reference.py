"""The definitions in float64, written like the equations: the specification for every backend."""

import math

import torch
from torch import Tensor

from .shared.accumulate import accumulator, reduce_kl
from .shared.expm1 import expm1_minus_identity
from .shared.noise import Generators, draw_like


def reparam_kl(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, generator: Generators | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * eps and kl = (mu^2 + expm1(logvar) - logvar) / 2, in float64."""
    eps = draw_like(mu, accumulator(mu), seed, generator).double()
    mu, logvar = mu.double(), logvar.double()
    z = mu + torch.exp(logvar / 2) * eps
    kl = (mu**2 + expm1_minus_identity(logvar)) / 2
    return z, reduce_kl(kl, reduction)


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), in float64."""
    x, y = x.double(), y.double()

    def gram(a: Tensor, b: Tensor) -> Tensor:
        d2 = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
        members = [torch.exp(-d2 / c) if kernel == "rbf" else c / (c + d2) for c in bandwidths]
        return torch.stack(members).mean(0)

    def mean_within(a: Tensor) -> Tensor:
        k, n = gram(a, a), a.shape[0]
        return k.mean() if estimator == "v" else (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return mean_within(x) + mean_within(y) - 2 * gram(x, y).mean()


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """logsumexp over n of w_bn + log N(z_b; mu_n, exp(logvar_n)), jointly and per latent, in float64."""
    z, mu, logvar = z.double(), mu.double(), logvar.double()
    if log_weights is None:
        log_weights = torch.full((mu.shape[0],), -math.log(mu.shape[0]), dtype=torch.float64, device=mu.device)
    w_BN = log_weights.double().expand(z.shape[0], mu.shape[0])
    standardised = (z[:, None, :] - mu) / torch.exp(logvar / 2)
    log_q_BNK = -(standardised**2 + logvar + math.log(2 * math.pi)) / 2
    joint = torch.logsumexp(w_BN + log_q_BNK.sum(-1), dim=1)
    marginals = torch.logsumexp(w_BN[:, :, None] + log_q_BNK, dim=1)
    return joint, marginals
