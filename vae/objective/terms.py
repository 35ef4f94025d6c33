"""The terms of the objective, computed from the only draw of z in a training step.

    infovae:    E_q[log p(x|z)] - beta * ( (1 - alpha) KL(q(z|x)||p(z)) + (alpha + lambda - 1) D(q(z)||p(z)) )
    tc_vae:     E_q[log p(x|z)] - ( w_mi I_q(x;z) + w_tc TC(z) + w_dim sum_k KL(q(z_k)||p(z_k)) )
    factor_vae: E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z)
    capacity:   E_q[log p(x|z)] - gamma | KL(q(z|x)||p(z)) - C |

With D = KL, infovae weighs the mutual information by beta (1 - alpha) and KL(q(z)||p(z)) by beta lambda.
Axes: B batch, K latent size; terms are per example, in nats, until the last line.
"""

from functools import partial

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.vae.model.generative import Draw, GenerativeModel
from vaebench.vae.prob.terms import Terms as Terms


def terms(
    model: GenerativeModel,
    x: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: kernels.Backend = "auto",
    draw: Draw | None = None,
) -> Terms:
    """Encode x, draw one code for each example, decode it: the only draw of a training step.

    Args:
        draw: maps mu and logvar to z and the KL, and replaces `kernels.reparam_kl` with `seed`, `generator`, `backend`.
    """
    draw = draw or partial(kernels.reparam_kl, seed=seed, generator=generator, backend=backend)
    return model.terms(x, draw, generator)


def elbo(terms: Terms) -> Tensor:
    """Return log p(x|z) - KL(q(z|x)||p(z)), `(B,)`, whose expectation is a lower bound of log p(x)."""
    return terms.log_px - terms.kl
