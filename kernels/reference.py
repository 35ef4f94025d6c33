"""The definitions in float64, written like the equations: the specification for every backend."""

import math

import torch
from torch import Tensor

from .shared.accumulate import reduce_kl
from .shared.expm1 import expm1_minus_identity


def reparam_kl(
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    eps: Tensor,
    scale: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """z = mu + std eps and kl = (d^2 / var_p + expm1(x) - x) / 2, d = mu - mu_p, x = logvar - logvar_p, in float64."""
    mu, spread = mu.double(), spread.double()
    logvar = spread if scale == "logvar" else spread.log() * (2 if scale == "std" else 1)
    std = {"logvar": torch.exp(logvar / 2), "std": spread, "var": spread.sqrt()}[scale]
    z = mu + std * eps.double()
    if prior_mu is None or prior_logvar is None:
        kl = (mu**2 + expm1_minus_identity(logvar)) / 2
    else:
        d, prior_logvar = mu - prior_mu.double(), prior_logvar.double()
        kl = (d**2 * torch.exp(-prior_logvar) + expm1_minus_identity(logvar - prior_logvar)) / 2
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
