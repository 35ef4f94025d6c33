"""Divergences from the standard normal prior: per code in closed form, per batch of codes by kernels."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

import kernels


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of diagonal Gaussians from the standard normal.

        KL(N(mu, exp(logvar)) || N(0, I)) = 1/2 * sum_k (mu_k^2 + expm1(logvar_k) - logvar_k)

    `expm1` keeps the digits that `exp(logvar) - 1` cancels where the posterior is close to the prior.

    Shapes: mu, logvar `(..., K)` -> `(...)`.

    Example:
        >>> gaussian_kl(torch.ones(3, 2), torch.zeros(3, 2))
        tensor([1., 1., 1.])
    """
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(-1)


def mmd2_to_prior(
    z: Tensor,
    *,
    prior: Tensor | None = None,
    kernel: Literal["imq", "rbf"] = "imq",
    bandwidth: float | Sequence[float] | None = None,
    estimator: Literal["u", "v"] = "u",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the squared maximum mean discrepancy between codes and as many draws of the prior, or fresh of N(0, I).

    Shapes: z, prior `(B, K)` -> scalar. The other arguments are those of `kernels.mmd2`.

    Reference: Zhao et al., InfoVAE: Balancing Learning and Inference in Variational Autoencoders, 2019.
    """
    if prior is None:
        prior = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    return kernels.mmd2(z, prior, kernel=kernel, bandwidth=bandwidth, estimator=estimator)
