"""The operations of kernels/ as a user writes them in plain PyTorch: the peers, run as they are and compiled.

They have the defaults of kernels/, draw torch's own noise, and hold every pair in memory.
"""

import math

import torch
from torch import Tensor


def reparam_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Draw z and sum the KL of each row, as in every VAE tutorial."""
    return reparam_kl_of_noise(mu, logvar, torch.randn_like(mu))


def reparam_kl_of_noise(mu: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Move given noise to z, and sum the KL of each row in float32."""
    z = mu + torch.exp(0.5 * logvar) * eps
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return z, kl.float().flatten(1).sum(1)


def mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Estimate MMD^2 without bias, with k = c / (c + d^2), c = 2K and d^2 = |x|^2 + |y|^2 - 2 x.y."""
    x, y = x.float(), y.float()
    c = 2.0 * x.shape[1]

    def gram(a: Tensor, b: Tensor) -> Tensor:
        d2 = (a.pow(2).sum(1)[:, None] + b.pow(2).sum(1) - 2 * a @ b.T).clamp_min(0)
        return c / (c + d2)

    def mean_within(a: Tensor) -> Tensor:
        k, n = gram(a, a), a.shape[0]
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return mean_within(x) + mean_within(y) - 2 * gram(x, y).mean()


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate the aggregated posterior and its marginals as one broadcast `(B, N, K)`."""
    z, mu, logvar = z.float(), mu.float(), logvar.float()
    log_q_BNK = -0.5 * ((z[:, None] - mu).pow(2) / logvar.exp() + logvar + math.log(2 * math.pi))
    log_N = math.log(mu.shape[0])
    return torch.logsumexp(log_q_BNK.sum(-1), 1) - log_N, torch.logsumexp(log_q_BNK, 1) - log_N
