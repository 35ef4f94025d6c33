"""The only place where a training step draws codes, and what is computed from it."""

from functools import partial

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.vae.model.generative import Draw, GenerativeModel
from vaebench.vae.prob.terms import Terms


def terms(
    model: GenerativeModel,
    x: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: torch.Generator | None = None,
    backend: kernels.Backend = "auto",
    draw: Draw | None = None,
    samples: int = 1,
) -> Terms:
    """Encode x, draw one code for each example, or more, decode them: a training step draws them here alone.

    Args:
        samples: k; with k > 1 the terms have an axis of k draws before the batch, `(k, B)`.
        seed, generator, backend: of `kernels.reparam_kl`, which draws the codes.
        noise: draws all other noise; `generator` if it is not given.
        draw: maps mu and logvar to z and the KL, and replaces `kernels.reparam_kl` with `seed`, `generator`, `backend`.
    """
    draw = draw or partial(kernels.reparam_kl, seed=seed, generator=generator, backend=backend)
    return model.terms(x, draw, noise or generator, samples)


def elbo(terms: Terms) -> Tensor:
    """Return log p(x|z) - KL(q(z|x)||p(z)), `(B,)`, whose expectation is a lower bound of log p(x)."""
    return terms.log_px - terms.kl
