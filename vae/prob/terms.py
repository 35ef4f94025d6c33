"""The terms of a batch, from which every objective is computed.

Axes: k draws, B batch, K latent size; terms are per example, in nats.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vaebench.vae.prob.densities import DiagonalGaussian, LogDensity, log_standard_normal


class Prior(Protocol):
    """A distribution p(z) of codes that is not N(0, I)."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Return log p(z), `(..., K) -> (...)`."""

    def rsample(self, generator: torch.Generator | None = None, /) -> Tensor:
        """Draw one code for each example, differentiably, `(B, K)`."""


@dataclass(frozen=True)
class Moved:
    """A draw z = T(z0), where T follows the Gaussian of q.

    Attributes:
        z0: the draw of the Gaussian, shaped as z.
        log_det: log |det dT/dz0|, `(B,)`, of k draws `(k, B)`.
        log_prob: maps z to log q(z|x) with all parameters of q as constants; it inverts T.
    """

    z0: Tensor
    log_det: Tensor
    log_prob: LogDensity


@dataclass(frozen=True)
class Terms:
    """The terms of a batch at one draw z ~ q(z|x), or at k draws, which are an axis before the batch.

    Attributes:
        log_px: log p(x|z), `(B,)`, of k draws `(k, B)`.
        kl: KL(q(z|x)||p(z)), shaped as log_px: in closed form, or an unbiased estimate if prior or posterior is a flow.
        z: the codes, `(B, K)`, of k draws `(k, B, K)`.
        q: the Gaussians that they were drawn from, `(B, K)`; the Gaussians of z0 if z = T(z0).
        prior: p(z) if prior or posterior is a flow, else None: N(0, I).
        moved: the rest of the draw if z = T(z0).
    """

    log_px: Tensor
    kl: Tensor
    z: Tensor
    q: DiagonalGaussian
    prior: Prior | None = None
    moved: Moved | None = None

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), `(..., K) -> (...)`."""
        return self.prior.log_prob(z) if self.prior is not None else log_standard_normal(z).sum(-1)

    def log_q(self, *, constant: bool = False) -> Tensor:
        """Return log q(z|x) at the draws; if `constant`, the parameters of q are constants, and z alone has a gradient.

        log q(T(z0)|x) = log N(z0; mu, exp(logvar)) - log |det dT/dz0|
        """
        if self.moved is not None:
            known = self.q.log_prob(self.moved.z0) - self.moved.log_det
            if not constant:
                return known
            inverted = self.moved.log_prob(self.z)  # has the gradient; its value has the errors of an inversion
            return with_gradient(known, inverted)
        q = DiagonalGaussian(self.q.mu.detach(), self.q.logvar.detach()) if constant else self.q
        return q.log_prob(self.z)


def with_gradient(value: Tensor, other: Tensor) -> Tensor:
    """Return the value with the gradient of another tensor of its shape."""
    return value.detach() + (other - other.detach())
