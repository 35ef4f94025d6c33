"""The terms of a batch, from which every objective is computed.

Axes: B batch, K latent size; terms are per example, in nats.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vaebench.vae.prob.densities import DiagonalGaussian


class Prior(Protocol):
    """A distribution p(z) of codes that is not N(0, I)."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Return log p(z), `(..., K) -> (...)`."""

    def rsample(self, generator: torch.Generator | None = None, /) -> Tensor:
        """Draw one code for each example, differentiably, `(B, K)`."""


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
    prior: Prior | None = None
