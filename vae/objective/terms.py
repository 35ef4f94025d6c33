"""What training maximises: one family of weighted terms, and the one place where training draws z.

    infovae:    E_q[log p(x|z)] - beta * ( (1 - alpha) KL(q(z|x)||p(z)) + (alpha + lambda - 1) D(q(z)||p(z)) )
    tc_vae:     E_q[log p(x|z)] - ( w_mi I_q(x;z) + w_tc TC(z) + w_dim sum_k KL(q(z_k)||p(z_k)) )
    factor_vae: E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z)
    capacity:   E_q[log p(x|z)] - gamma | KL(q(z|x)||p(z)) - C |

With D = KL the first weighs the mutual information by beta (1 - alpha) and KL(q(z)||p(z)) by beta lambda.
Axes: B batch, K latent size; terms are per example, in nats, until the last line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.vae.config.run import Objective
from vaebench.vae.flows import FlowDistribution
from vaebench.vae.model.autoencoder import VAE, FlowModel
from vaebench.vae.objective.critics import permuted
from vaebench.vae.prob.aggregate import stratified_log_weights
from vaebench.vae.prob.densities import DiagonalGaussian, PointMass, log_standard_normal
from vaebench.vae.prob.divergences import mmd2_to_prior, sliced_wasserstein2, stein
from vaebench.vae.prob.draws import normal_like, uniform_like


@dataclass(frozen=True)
class Terms:
    """What one draw z ~ q(z|x) says of a batch.

    Attributes:
        log_px: log p(x|z), `(B,)`.
        kl: KL(q(z|x)||p(z)), `(B,)`: in closed form, or, where prior or posterior is a flow, an unbiased estimate.
        z: the codes, `(B, K)`.
        q: the Gaussians that they were drawn from, those of z0 where z = T(z0).
        prior: p(z), where it is not N(0, I).
        kl_estimated: whether `kl` is an estimate.
    """

    log_px: Tensor
    kl: Tensor
    z: Tensor
    q: DiagonalGaussian
    prior: FlowDistribution | None = None
    kl_estimated: bool = False


def terms(
    model: VAE,
    x: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: kernels.Backend = "auto",
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Terms:
    """Encode x, draw one code for each example, decode it: the only draw of a training step.

    Where prior or posterior is a flow, z = T(z0) and, from the KL of the Gaussians in closed form,

        KL(q(z|x) || p(z)) = E [ KL(q(z0|x) || N(0, I)) + log N(z0; 0, I) - log |det dT/dz0| - log p(z) ]

    is estimated at the code that was drawn. A flow as a model of its own draws where in its cell each level lies.

    Args:
        draw: takes mu and logvar to z and the KL, in the place of `kernels.reparam_kl` with the arguments before it.
    """
    if isinstance(model, FlowModel):
        return _noiseless_terms(model, x, generator)
    q, context = model.encode_with_context(x)
    draw = draw or partial(kernels.reparam_kl, seed=seed, generator=generator, backend=backend)
    z, kl = draw(q.mu, q.logvar)
    if model.prior_flow is None and model.posterior_flow is None:
        return Terms(model.decode(z).log_prob(x), kl, z, q)
    z0, (z, log_det) = z, model.transform(z, context)
    prior = model.prior(z)
    kl = kl + log_standard_normal(z0).sum(-1) - log_det - prior.log_prob(z)
    return Terms(model.decode(z).log_prob(x), kl, z, q, prior, kl_estimated=True)


def _noiseless_terms(model: FlowModel, x: Tensor, generator: torch.Generator | None) -> Terms:
    u = uniform_like(x, generator)
    z, log_px = model.encode_and_log_prob(model.dequantise(x, u))
    return Terms(log_px, torch.zeros_like(log_px), z, PointMass(z))


def elbo(terms: Terms) -> Tensor:
    """Return log p(x|z) - KL(q(z|x)||p(z)), `(B,)`, whose expectation is a lower bound of log p(x)."""
    return terms.log_px - terms.kl


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
    """Return the objective of a batch, a scalar to maximise, and D where it was needed.

    Args:
        data_size: N, the size of the set that the batch was drawn from, for minibatch estimates of q(z).
        warmup: a factor on all weights but that of the reconstruction, rising to 1.
        capacity: the share of the objective's capacity that C has reached, rising to 1.
        critic: T(z) ~ log q(z) - log r(z), `(B, K) -> (B,)`, see `vae.objective.critics`, where the objective uses one.
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

    A prior that is learned follows the draws of mmd and sliced; kl, stein and adversarial, which have none, give it the
    gradient of KL(q(z)||p(z)), -E_q grad log p(z).
    """
    if objective.uses_critic:
        return _adversarial(objective, terms, critic)
    estimators: dict[str, Callable[[], Tensor]] = {
        "mmd": lambda: _mmd(objective, terms, generator),
        "kl": lambda: (_batch_aggregate(terms, data_size)[0] - _log_prior(terms, terms.z)).mean(),
        "sliced": lambda: sliced_wasserstein2(
            terms.z, prior=_prior_draws(terms, generator), projections=objective.projections, generator=generator
        ),
        "stein": lambda: _stein(objective, terms),
    }
    return estimators[objective.divergence]()


@torch.no_grad()
def others(objective: Objective, terms: Terms, generator: torch.Generator | None = None) -> Tensor:
    """Return what the critic is to tell the codes from, `(B, K)`: prior draws, or for factor_vae permuted codes."""
    if objective.name == "factor_vae":
        return permuted(terms.z, generator)
    if terms.prior is not None:
        return terms.prior.rsample(generator)
    return normal_like(terms.z, generator)


def _mmd(objective: Objective, terms: Terms, generator: torch.Generator | None) -> Tensor:
    return mmd2_to_prior(
        terms.z,
        prior=_prior_draws(terms, generator),
        kernel=cast(kernels.Kernel, objective.kernel),
        bandwidth=objective.bandwidth or None,
        estimator=cast(kernels.Estimator, objective.estimator),
        generator=generator,
    )


def _stein(objective: Objective, terms: Terms) -> Tensor:
    """Return KSD^2, whose gradient in the codes is -phi / B: that of KL(q(z)||p(z)) in the space of the kernel."""
    kernel = cast(kernels.Kernel, objective.kernel)
    with torch.enable_grad():
        z = terms.z.detach().requires_grad_()
        log_prior = _log_prior(terms, z)
        (score,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
    ksd2, phi = stein(terms.z, score, kernel=kernel, bandwidth=objective.bandwidth or None)
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


def _prior_draws(terms: Terms, generator: torch.Generator | None) -> Tensor | None:
    """Return as many draws of a learned prior as there are codes; None where it is N(0, I)."""
    return terms.prior.rsample(generator) if terms.prior is not None else None


def _log_prior(terms: Terms, z: Tensor) -> Tensor:
    """Return log p(z), `(B, K) -> (B,)`."""
    return terms.prior.log_prob(z) if terms.prior is not None else log_standard_normal(z).sum(-1)


def _capacity(objective: Objective, terms: Terms, warmup: float, reached: float) -> Tensor:
    """Return E log p(x|z) - gamma |KL - C|, where |.| is of the batch's mean KL, as in its published implementations.

    So it is the mean rate that is held at C, and examples may differ in what they need of it.
    """
    gap = (terms.kl.mean() - reached * objective.capacity).abs()
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


def vae() -> Objective:
    """Return the evidence lower bound: beta 1, alpha 0, lambda 1."""
    return Objective()


def beta_vae(beta: float) -> Objective:
    """Return E_q[log p(x|z)] - beta KL(q(z|x)||p(z))."""
    return Objective(beta=beta)


def infovae(
    alpha: float,
    lambda_: float,
    *,
    divergence: Literal["mmd", "kl", "sliced", "stein", "adversarial"] = "mmd",
    estimator: Literal["u", "v"] = "u",
) -> Objective:
    """Return E_q[log p(x|z)] - (1 - alpha) KL(q(z|x)||p(z)) - (alpha + lambda - 1) D(q(z)||p(z))."""
    return Objective(alpha=alpha, lambda_=lambda_, divergence=divergence, estimator=estimator)


def mmd_vae(lambda_: float) -> Objective:
    """Return E_q[log p(x|z)] - lambda MMD^2(q(z), p(z)): alpha 1, no KL."""
    return Objective(alpha=1.0, lambda_=lambda_)


def tc_vae(*, w_mi: float = 1.0, w_tc: float = 1.0, w_dim: float = 1.0) -> Objective:
    """Return E_q[log p(x|z)] - (w_mi I + w_tc TC + w_dim sum_k KL_k); all three weights 1 give the ELBO."""
    return Objective(name="tc_vae", w_mi=w_mi, w_tc=w_tc, w_dim=w_dim)


def beta_tcvae(beta: float) -> Objective:
    """Return E_q[log p(x|z)] - (I + beta TC + sum_k KL_k), with the exact stratified weights for q(z).

    Reference: Chen et al., Isolating Sources of Disentanglement in Variational Autoencoders, 2018.
    """
    return tc_vae(w_tc=beta)


def factor_vae(gamma: float) -> Objective:
    """Return E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z), the TC by a critic of codes and permuted codes.

    Reference: Kim and Mnih, Disentangling by Factorising, 2018.
    """
    return Objective(name="factor_vae", gamma=gamma)


def capacity_vae(gamma: float, capacity: float, capacity_epochs: int) -> Objective:
    """Return E_q[log p(x|z)] - gamma |KL(q(z|x)||p(z)) - C|, with C rising linearly from 0 to `capacity` nats.

    Reference: Burgess et al., Understanding Disentangling in beta-VAE, 2018.
    """
    return Objective(name="capacity", gamma=gamma, capacity=capacity, capacity_epochs=capacity_epochs)
