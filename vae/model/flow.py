"""A normalizing flow as a model of its own."""

import math
from collections.abc import Callable
from typing import NoReturn, final

import torch
from torch import Tensor

from vaebench.vae.errors import InputError
from vaebench.vae.flows import Transform
from vaebench.vae.model.generative import Draw, GenerativeModel
from vaebench.vae.model.likelihoods import Noiseless
from vaebench.vae.prob.densities import Density, PointMass, log_standard_normal
from vaebench.vae.prob.draws import uniform_like
from vaebench.vae.prob.levels import dequantise
from vaebench.vae.prob.terms import Terms


@final
class FlowModel(GenerativeModel):
    """A flow f as a model of its own: a VAE without noise, whose encoder would be f and whose decoder its inverse.

        log p(x) = log N(f(y); 0, I) + log |det df/dy| - D log levels,    y = (k + u) / levels

    for levels k dequantised by u, as a density in units of one level whose mean over u bounds log P(k) from below (see
    `vae.prob.levels.dequantise`); y = x if `levels` is 0. As the noise of a VAE goes to zero, its distortion and its
    rate diverge and its ELBO becomes this density. Objectives therefore use it as log p(x|z), with a KL of 0.

    Args:
        flow: maps data `(..., D)` to noise, D = prod(shape).
        kind: the setting model.kind of its family.
    """

    likelihood: Noiseless

    def __init__(self, flow: Transform, shape: tuple[int, ...], levels: int = 0, *, kind: str = "coupling") -> None:
        super().__init__()
        self.flow, self.kind, self.likelihood = flow, kind, Noiseless(shape, levels)
        self.latent, self.prior_flow, self.posterior_flow = math.prod(shape), None, None

    @property
    def settings(self) -> dict[str, object]:
        return {"model.kind": self.kind}

    @property
    def has_codes(self) -> bool:
        return False

    @property
    def passes(self) -> int:
        return self.flow.passes[1]

    def dequantise(self, x: Tensor, u: Tensor | float) -> Tensor:
        """Return y for examples `(B, *shape)` and u in [0, 1)."""
        return dequantise(x, self.likelihood.levels, u) if self.likelihood.levels else x

    def encode_and_log_prob(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = f(y) and log p(x), `(B, *shape) -> (B, D), (B,)`."""
        z, log_det = self.flow(y.flatten(1))
        volume = self.latent * math.log(self.likelihood.levels or 1)
        return z, log_standard_normal(z).sum(-1) + log_det - volume

    def encode_with_context(self, x: Tensor) -> tuple[PointMass, None]:
        """Return the point mass at f(y), y the middle of the cell."""
        z, _ = self.encode_and_log_prob(self.dequantise(x, 0.5))
        return PointMass(z), None

    def base_joint(self, x: Tensor) -> NoReturn:
        """Refuse: z determines x, so that p(x, z) has no density, and log p(x) needs no integral."""
        raise InputError(
            f"base_joint needs a p(x|z) that has a density, got a FlowModel of model.kind = {self.kind}: "
            "its log p(x) is exact, use encode_and_log_prob."
        )

    def decode(self, z: Tensor) -> Density:
        """Return the point mass at the x of f^-1(z), codes `(..., D)`."""
        y, _ = self.flow.inverse_and_log_det(z)
        density: Density = self.likelihood(y.reshape(*z.shape[:-1], *self.likelihood.shape))
        return density

    def terms(self, x: Tensor, draw: Draw, generator: torch.Generator | None, samples: int = 1) -> Terms:
        """Return log p(x) as log p(x|z), at one place u in its cell for each level, and a KL of 0."""
        if samples > 1:
            raise InputError(f"a flow of its own has no codes to draw, got samples = {samples}.")
        z, log_px = self.encode_and_log_prob(self.dequantise(x, uniform_like(x, generator)))
        return Terms(log_px, torch.zeros_like(log_px), z, PointMass(z))

    @torch.no_grad()
    def initialise(self, examples: Callable[[], Tensor], generator: torch.Generator) -> None:
        x = examples()
        self.flow.initialise(self.dequantise(x, uniform_like(x, generator)).flatten(1))
