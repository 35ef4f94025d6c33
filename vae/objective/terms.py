"""The terms of the objective, computed from the only draw of z in a training step.

    infovae:    E_q[log p(x|z)] - beta * ( (1 - alpha) KL(q(z|x)||p(z)) + (alpha + lambda - 1) D(q(z)||p(z)) )
    tc_vae:     E_q[log p(x|z)] - ( w_mi I_q(x;z) + w_tc TC(z) + w_dim sum_k KL(q(z_k)||p(z_k)) )
    factor_vae: E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z)
    capacity:   E_q[log p(x|z)] - gamma | KL(q(z|x)||p(z)) - C |

With D = KL, infovae weighs the mutual information by beta (1 - alpha) and KL(q(z)||p(z)) by beta lambda.
Axes: B batch, K latent size; terms are per example, in nats, until the last line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.vae.flows import FlowDistribution
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.prob.densities import DiagonalGaussian, PointMass, log_standard_normal
from vaebench.vae.prob.draws import uniform_like


@dataclass(frozen=True)
class Terms:
    """The terms of a batch at one draw z ~ q(z|x).

    Attributes:
        log_px: log p(x|z), `(B,)`.
        kl: KL(q(z|x)||p(z)), `(B,)`: in closed form, or an unbiased estimate if prior or posterior is a flow.
        z: the codes, `(B, K)`.
        q: the Gaussians that they were drawn from; the Gaussians of z0 if z = T(z0).
        prior: p(z) if prior or posterior is a flow, else None: N(0, I).
    """

    log_px: Tensor
    kl: Tensor
    z: Tensor
    q: DiagonalGaussian
    prior: FlowDistribution | None = None


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

    is estimated at the drawn code. A flow as a model of its own draws the position of each level in its cell instead.

    Args:
        draw: maps mu and logvar to z and the KL, and replaces `kernels.reparam_kl` with `seed`, `generator`, `backend`.
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
    return Terms(model.decode(z).log_prob(x), kl, z, q, prior)


def _noiseless_terms(model: FlowModel, x: Tensor, generator: torch.Generator | None) -> Terms:
    u = uniform_like(x, generator)
    z, log_px = model.encode_and_log_prob(model.dequantise(x, u))
    return Terms(log_px, torch.zeros_like(log_px), z, PointMass(z))


def elbo(terms: Terms) -> Tensor:
    """Return log p(x|z) - KL(q(z|x)||p(z)), `(B,)`, whose expectation is a lower bound of log p(x)."""
    return terms.log_px - terms.kl
