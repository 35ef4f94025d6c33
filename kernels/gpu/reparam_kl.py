"""reparam_kl on a GPU: two launches of a kernel each as one differentiable operation."""

from torch import Tensor

from ..shared.reparam_kl import define, kl_shape, new_gradients
from .reparam_kl_launch import plan_backward, plan_forward


def _forward(
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    scale: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    z = mu.new_empty(mu.shape)
    launch, sums = plan_forward(mu, spread, _pair(prior_mu, prior_logvar), seed, z, scale, reduction)
    launch.run()
    if reduction == "batch":
        return z, sums.sum() if sums.numel() > 1 else sums.view(())
    if sums.shape[0] > 1 and reduction != "none":
        sums = sums.sum(0)
    return z, sums.view(kl_shape(mu.shape, reduction))


def _backward(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    scale: str,
    reduction: str,
) -> list[Tensor]:
    prior = _pair(prior_mu, prior_logvar)
    gradients = new_gradients(mu, spread, prior_mu)
    plan_backward(dz, dkl, mu, spread, prior, seed, gradients, scale, reduction).run()
    return gradients


def _pair(prior_mu: Tensor | None, prior_logvar: Tensor | None) -> list[Tensor]:
    """Return both tensors of the prior, or nothing."""
    return [] if prior_mu is None or prior_logvar is None else [prior_mu, prior_logvar]


reparam_kl = define("reparam_kl", _forward, _backward)
