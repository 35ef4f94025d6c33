"""Divergences from the prior: the KL of each posterior in closed form, others of a batch from draws of q(z) alone.

Axes: B codes, M draws of the prior, K latent size, P directions.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.kernels.shared.expm1 import expm1_minus_identity
from vaebench.vae.prob.draws import normal_like


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of diagonal Gaussians from the standard normal.

        KL(N(mu, exp(logvar)) || N(0, I)) = 1/2 * sum_k (mu_k^2 + expm1(logvar_k) - logvar_k)

    Where the posterior is close to the prior, `exp(logvar) - 1` loses its digits, and so does `expm1(logvar) - logvar`:
    there `expm1_minus_identity` takes a series.

    Shapes: mu, logvar `(..., K)` -> `(...)`.

    Example:
        >>> gaussian_kl(torch.ones(3, 2), torch.zeros(3, 2))
        tensor([1., 1., 1.])
    """
    return 0.5 * (mu.square() + expm1_minus_identity(logvar)).sum(-1)


def mmd2_to_prior(
    z: Tensor,
    *,
    prior: Tensor | None = None,
    kernel: Literal["imq", "rbf"] = "imq",
    bandwidth: float | Sequence[float] | None = None,
    estimator: Literal["u", "v"] = "u",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the squared maximum mean discrepancy of codes from as many draws of the prior (default N(0, I)).

    Shapes: z, prior `(B, K)` -> scalar. The other arguments are those of `kernels.mmd2`.

    Reference: Zhao et al., InfoVAE: Balancing Learning and Inference in Variational Autoencoders, 2019.
    """
    if prior is None:
        prior = normal_like(z, generator)
    return kernels.mmd2(z, prior, kernel=kernel, bandwidth=bandwidth, estimator=estimator)


def sliced_wasserstein2(
    z: Tensor, *, prior: Tensor | None = None, projections: int = 64, generator: torch.Generator | None = None
) -> Tensor:
    """Estimate the squared sliced Wasserstein-2 distance of codes from as many draws of the prior (default N(0, I)).

        SW^2 = E_u W_2^2(u.z, u.z'),    W_2^2 = 1/B sum_b (u.z_(b) - u.z'_(b))^2,    u uniform on the unit sphere

    where z_(b) are sorted along u. Between N(m, s^2 I) and N(0, I) it is |m|^2 / K + (s - 1)^2. The estimate is biased
    upwards, since two samples of one distribution differ: for N(0, I) by 0.28 at B = 16, by 0.044 at B = 128.

    Shapes: z, prior `(B, K)` -> scalar, differentiable in both.

    Reference: Kolouri et al., Sliced-Wasserstein Autoencoder, 2019.
    """
    if prior is None:
        prior = normal_like(z, generator)
    if z.ndim != 2 or z.shape != prior.shape:
        raise ValueError(f"z and prior must both be (B, K), got {tuple(z.shape)} and {tuple(prior.shape)}.")
    directions = normal_like(z.new_empty(z.shape[1], projections), generator)
    with torch.autocast(z.device.type, enabled=False):
        directions = directions / directions.norm(dim=0)
        one, other = ((codes @ directions).sort(dim=0).values for codes in (z, prior))
        return (one - other).square().mean()


@torch.no_grad()
def stein(
    z: Tensor,
    score: Tensor,
    *,
    kernel: Literal["imq", "rbf"] = "imq",
    bandwidth: float | Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the squared kernelised Stein discrepancy between codes and p, and the Stein direction of each code.

        KSD^2   = E [ k s.s' + s.dk/dz' + s'.dk/dz + tr d2k/dz dz' ],    z, z' ~ q independent
        phi(z') = E_z~q [ k(z, z') s(z) + dk/dz ],                       s = d/dz log p(z)

    averaged over pairs of different codes, so that both are unbiased. KSD^2 is 0 only at q = p. phi is the direction
    of steepest descent of KL(q||p) in the kernel's space: moving codes by e phi lowers it by e KSD^2 + O(e^2). With
    k = f(t) and t = |z - z'|^2,

        dk/dz = 2 f'(t) (z - z') = -dk/dz',    tr d2k/dz dz' = -2 K f'(t) - 4 t f''(t)

    Shapes: z and score `(B, K)` -> a scalar and `(B, K)`, without gradients; kernel and bandwidth as in `kernels.mmd2`.

    Reference: Liu and Wang, Stein Variational Gradient Descent, 2016; Liu et al., A Kernelized Stein Discrepancy, 2016.
    """
    if z.ndim != 2 or z.shape != score.shape or len(z) < 2:
        raise ValueError(f"z and score must both be (B, K) with B >= 2, got {tuple(z.shape)} and {tuple(score.shape)}.")
    B, K = z.shape
    if bandwidth is None:
        bandwidth = 2.0 * K
    bandwidths = (bandwidth,) if isinstance(bandwidth, int | float) else bandwidth
    with torch.autocast(z.device.type, enabled=False):
        t = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
        f, first, second = (values.fill_diagonal_(0.0) for values in _kernel(t, kernel, bandwidths))
        products = z @ score.mT
        own = products.diagonal()
        cross = products + products.mT - own - own[:, None]
        pairs = f * (score @ score.mT) + 2 * first * cross - 2 * K * first - 4 * t * second
        drift = f @ score + 2 * (first @ z - first.sum(1, keepdim=True) * z)
    return pairs.sum() / (B * (B - 1)), drift / (B - 1)


def _kernel(t: Tensor, kernel: str, bandwidths: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f' and f'' at squared distances t, averaged over the bandwidths c: f = exp(-t/c) or c/(c+t)."""
    parts = []
    for c in bandwidths:
        f = torch.exp(-t / c) if kernel == "rbf" else c / (c + t)
        rate = torch.full_like(t, 1 / c) if kernel == "rbf" else 1 / (c + t)
        parts.append((f, -f * rate, f * rate.square() * (1 if kernel == "rbf" else 2)))
    f, first, second = (torch.stack(values).mean(0) for values in zip(*parts, strict=True))
    return f, first, second
