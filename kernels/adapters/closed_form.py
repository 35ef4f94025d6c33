"""The KL of diagonal Gaussians without a draw, and the question whether a prior is N(0, I)."""

import torch
from torch import Tensor

from ..arguments import FLOATS
from ..shared.accumulate import accumulator
from ..shared.expm1 import expm1_minus_identity


def elementwise_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """Return KL(N(mu, exp(logvar)) || N(mu_p, exp(logvar_p))) of each element, N(0, 1) where there is no prior.

    kl = 1/2 * (d^2 exp(-logvar_p) + expm1(x) - x),    d = mu - mu_p,  x = logvar - logvar_p
    """
    dtype = accumulator(mu)
    mu, logvar = mu.to(dtype), logvar.to(dtype)
    if prior_mu is None or prior_logvar is None:
        return 0.5 * (mu.square() + expm1_minus_identity(logvar))
    d, prior_logvar = mu - prior_mu.to(dtype), prior_logvar.to(dtype)
    return 0.5 * (d.square() * torch.exp(-prior_logvar) + expm1_minus_identity(logvar - prior_logvar))


def can_draw(mu: object, spread: object) -> bool:
    """Return whether the kernel takes these two."""
    if not isinstance(mu, Tensor) or not isinstance(spread, Tensor):
        return False
    alike = mu.shape == spread.shape and mu.dtype == spread.dtype and mu.device == spread.device
    return alike and mu.ndim > 0 and mu.dtype in FLOATS


def holds_everywhere(constant: Tensor, value: float) -> bool:
    """Return whether a tensor without gradient has one value, or False where the answer would stop the device."""
    hidden = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if hidden or constant.requires_grad or constant.device.type != "cpu":
        return False
    return bool((constant == value).all())


def still_serves(kl: Tensor | None, *parameters: Tensor) -> bool:
    """Return whether the KL of an earlier draw exists, with a gradient where one is wanted."""
    if kl is None:
        return False
    return kl.requires_grad or not (torch.is_grad_enabled() and any(p.requires_grad for p in parameters))
