"""The value that training maximises, from the terms of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.vae.config.run import Objective
from vaebench.vae.objective.critics import permute_latents
from vaebench.vae.objective.terms import Terms
from vaebench.vae.prob.aggregate import stratified_log_weights
from vaebench.vae.prob.densities import log_standard_normal
from vaebench.vae.prob.divergences import mmd2_to_prior, sliced_wasserstein2, stein
from vaebench.vae.prob.draws import normal_like


def value(
    objective: Objective,
    terms: Terms,
    *,
    data_size: int,
    warmup: float = 1.0,
    capacity: float = 1.0,
    critic: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the objective of a batch, a scalar to maximise, and D if it was estimated.

    Args:
        data_size: N, the size of the set that the batch was drawn from, for minibatch estimates of q(z).
        warmup: a factor on all weights except the weight of the reconstruction, rising to 1.
        capacity: C as a share of the objective's capacity, rising to 1.
        critic: T(z) ~ log q(z) - log r(z), `(B, K) -> (B,)`, see `vae.objective.critics`; for objectives that use one.
        generator: draws the prior samples, and the directions, of D.
    """
    if objective.name == "tc_vae":
        return _tc_vae(objective, terms, data_size, warmup), None
    if objective.name == "capacity":
        return _capacity(objective, terms, warmup, capacity), None
    w_kl, w_d = (1.0, objective.gamma) if objective.name == "factor_vae" else (objective.w_kl, objective.w_d)
    per_example = terms.log_px - warmup * w_kl * terms.kl
    if not objective.uses_divergence:
        return per_example.mean(), None
    d = divergence(objective, terms, data_size=data_size, critic=critic, generator=generator)
    return per_example.mean() - warmup * w_d * d, d


def divergence(
    objective: Objective,
    terms: Terms,
    *,
    data_size: int,
    critic: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the batch's estimate of D(q(z)||p(z)), a scalar, or of TC(z) for factor_vae.

    mmd: MMD^2 between the codes and as many prior draws. kl: mean of log q(z) - log p(z), with q(z) from the batch by
    stratified weights; exact in q(z) where the batch is the whole set. sliced: the squared sliced Wasserstein-2
    distance of the codes from as many prior draws. stein: the squared kernelised Stein discrepancy, with the gradient
    -phi / B of KL(q(z)||p(z)). adversarial, and factor_vae: the mean of the critic's T(z).

    A learned prior gets its gradient through the prior draws of mmd and sliced. kl, stein and adversarial draw none and
    give it the gradient of KL(q(z)||p(z)), -E_q grad log p(z).
    """
    if objective.uses_critic:
        return _adversarial(objective, terms, critic)
    if objective.divergence == "kl":
        return (_batch_aggregate(terms, data_size)[0] - _log_prior(terms, terms.z)).mean()
    if objective.divergence == "stein":
        return _stein(objective, terms)
    prior = terms.prior.rsample(generator) if terms.prior is not None else None
    if objective.divergence == "sliced":
        return sliced_wasserstein2(terms.z, prior=prior, projections=objective.projections, generator=generator)
    return mmd2_to_prior(
        terms.z,
        prior=prior,
        kernel=objective.kernel,
        bandwidth=objective.bandwidth or None,
        estimator=objective.estimator,
        generator=generator,
    )


@torch.no_grad()
def draw_negatives(objective: Objective, terms: Terms, generator: torch.Generator | None = None) -> Tensor:
    """Draw the critic's negatives, `(B, K)`: from the prior, or for factor_vae from the product of the marginals."""
    if objective.name == "factor_vae":
        return permute_latents(terms.z, generator)
    if terms.prior is not None:
        return terms.prior.rsample(generator)
    return normal_like(terms.z, generator)


def _stein(objective: Objective, terms: Terms) -> Tensor:
    """Return KSD^2 with the gradient -phi / B in the codes: the one of KL(q(z)||p(z)) in the space of the kernel."""
    with torch.enable_grad():
        z = terms.z.detach().requires_grad_()
        log_prior = _log_prior(terms, z)
        (score,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
    ksd2, phi = stein(terms.z, score, kernel=objective.kernel, bandwidth=objective.bandwidth or None)
    kl = -(phi * terms.z).sum() / len(z)
    return _with_gradient(ksd2, kl if terms.prior is None else kl - log_prior.mean())


def _adversarial(objective: Objective, terms: Terms, critic: Callable[[Tensor], Tensor] | None) -> Tensor:
    if critic is None:
        name = "name = factor_vae" if objective.name == "factor_vae" else "divergence = adversarial"
        raise ValueError(f"objective.{name} needs critic=T, a function of codes as in vae.objective.critics, got None.")
    d = critic(terms.z).mean()
    if terms.prior is None or objective.name == "factor_vae":
        return d
    return _with_gradient(d, d - _log_prior(terms, terms.z.detach()).mean())


def _with_gradient(value: Tensor, other: Tensor) -> Tensor:
    """Return the value with the gradient of another scalar."""
    return value.detach() + (other - other.detach())


def _log_prior(terms: Terms, z: Tensor) -> Tensor:
    """Return log p(z), `(B, K) -> (B,)`."""
    return terms.prior.log_prob(z) if terms.prior is not None else log_standard_normal(z).sum(-1)


def _capacity(objective: Objective, terms: Terms, warmup: float, share: float) -> Tensor:
    """Return E log p(x|z) - gamma |KL - C| with the mean KL of the batch, as in the published implementations.

    The mean rate is held at C; the rates of examples may differ. With a flow as prior or posterior the KL is estimated
    with a standard deviation s, and the absolute value errs high: E|KL - C| exceeds |E KL - C| by 0.8 s where the rate
    is at C, and by less than 0.02 s from 2 s away. On digits, with batches of 64, 0.8 s is 0.1 nats.
    """
    gap = (terms.kl.mean() - share * objective.capacity).abs()
    return terms.log_px.mean() - warmup * objective.gamma * gap


def _tc_vae(objective: Objective, terms: Terms, data_size: int, warmup: float) -> Tensor:
    """Sample the three parts of the KL at the batch's codes: log q(z|x) - log q(z), and so on down to the prior."""
    joint, marginals = _batch_aggregate(terms, data_size)
    mi = terms.q.log_prob(terms.z) - joint
    tc = joint - marginals.sum(-1)
    dim_kl = (marginals - log_standard_normal(terms.z)).sum(-1)
    penalty = objective.w_mi * mi + objective.w_tc * tc + objective.w_dim * dim_kl
    return (terms.log_px - warmup * penalty).mean()


def _batch_aggregate(terms: Terms, data_size: int) -> tuple[Tensor, Tensor]:
    """Return log q(z_b) and log q(z_bk) estimated from the batch, `(B,)` and `(B, K)`."""
    log_weights = stratified_log_weights(terms.z.shape[0], data_size, device=terms.z.device)
    return kernels.log_aggregate(terms.z, terms.q.mu, terms.q.logvar, log_weights=log_weights)
