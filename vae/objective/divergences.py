"""Estimates of divergences of q(z) from the terms of a batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.vae.prob.aggregate import stratified_log_weights
from vaebench.vae.prob.divergences import stein
from vaebench.vae.prob.terms import Terms, with_gradient


def batch_aggregate(terms: Terms, data_size: int) -> tuple[Tensor, Tensor]:
    """Return log q(z_b) and log q(z_bk) estimated from the batch, `(B,)` and `(B, K)`."""
    log_weights = stratified_log_weights(terms.z.shape[0], data_size, device=terms.z.device)
    return kernels.log_aggregate(terms.z, terms.q.mu, terms.q.logvar, log_weights=log_weights)


def aggregate_kl(terms: Terms, data_size: int) -> Tensor:
    """Return the mean of log q(z) - log p(z), with q(z) from the batch."""
    return (batch_aggregate(terms, data_size)[0] - terms.log_prior(terms.z)).mean()


def stein_discrepancy(terms: Terms, kernel: kernels.Kernel, bandwidth: Sequence[float] | None) -> Tensor:
    """Return KSD^2 with the gradient -phi / B in the codes: the one of KL(q(z)||p(z)) in the space of the kernel."""
    with torch.enable_grad():
        z = terms.z.detach().requires_grad_()
        log_prior = terms.log_prior(z)
        (score,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
    ksd2, phi = stein(terms.z, score, kernel=kernel, bandwidth=bandwidth)
    kl = -(phi * terms.z).sum() / len(z)
    return with_gradient(ksd2, kl if terms.prior is None else kl - log_prior.mean())


def adversarial(terms: Terms, critic: Callable[[Tensor], Tensor] | None, kind: str) -> Tensor:
    """Return the mean of the critic's T(z), with the gradient of KL(q(z)||p(z)) for a learned prior."""
    d = critic_mean(terms, critic, kind)
    return d if terms.prior is None else with_gradient(d, d - terms.log_prior(terms.z.detach()).mean())


def critic_mean(terms: Terms, critic: Callable[[Tensor], Tensor] | None, kind: str) -> Tensor:
    """Return the mean of the critic's T(z) over the codes; `kind` names the setting that asks for a critic."""
    if critic is None:
        raise ValueError(f"{kind} needs critic=T, a function of codes as in vae.objective.critics, got None.")
    return critic(terms.z).mean()
