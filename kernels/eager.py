"""Textbook PyTorch: the baseline of every benchmark.

Under autocast its matrix products are rounded to half precision, as in any PyTorch code. The other backends compute as
without autocast, and are held to the accuracy that these functions have without it.
"""

import math

import torch
from torch import Tensor

from .shared.accumulate import accumulator, reduce_kl
from .shared.noise import Generators, draw_like


def reparam_kl(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, generator: Generators | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """The step of every VAE tutorial. Its KL loses digits to cancellation if mu and logvar are small."""
    std = torch.exp(0.5 * logvar)
    eps = draw_like(mu, mu.dtype, seed, generator)
    z = mu + eps * std
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return z, reduce_kl(kl.to(accumulator(mu)), reduction)


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """MMD^2 from distances in the form |x|^2 + |y|^2 - 2 x.y, with every N x M matrix in memory."""
    dtype = accumulator(x)
    x, y = x.to(dtype), y.to(dtype)

    def gram(a: Tensor, b: Tensor) -> Tensor:
        d2 = (a.pow(2).sum(1)[:, None] + b.pow(2).sum(1)[None, :] - 2 * a @ b.T).clamp_min(0)
        members = [torch.exp(-d2 / c) if kernel == "rbf" else c / (c + d2) for c in bandwidths]
        return sum(members[1:], members[0]) / len(members)

    def mean_within(a: Tensor) -> Tensor:
        k, n = gram(a, a), a.shape[0]
        return k.mean() if estimator == "v" else (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return mean_within(x) + mean_within(y) - 2 * gram(x, y).mean()


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The equations as one broadcast, with B x N x K elements in memory."""
    dtype = accumulator(z)
    z, mu, logvar = z.to(dtype), mu.to(dtype), logvar.to(dtype)
    if log_weights is None:
        log_weights = z.new_full((mu.shape[0],), -math.log(mu.shape[0]))
    w_BN = log_weights.to(dtype).expand(z.shape[0], mu.shape[0])
    log_q_BNK = -0.5 * ((z[:, None, :] - mu).pow(2) / logvar.exp() + logvar + math.log(2 * math.pi))
    return torch.logsumexp(w_BN + log_q_BNK.sum(-1), 1), torch.logsumexp(w_BN[:, :, None] + log_q_BNK, 1)
