"""Proposal distributions over codes, with their densities: one distribution for each of B data.

Axes: S samples, B data, K latent size, C classes.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vaebench.vae.prob.densities import DiagonalGaussian
from vaebench.vae.prob.draws import uniform_like


class Proposal(Protocol):
    """A distribution over codes that importance sampling and annealing can draw from."""

    def __len__(self) -> int:
        """Return B."""

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, `(S, B, ...)`."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of codes, `(S, B)`."""


@dataclass(frozen=True)
class GaussianProposal:
    """N(mu, diag(exp(logvar))); mu and logvar are `(B, K)`."""

    mu: Tensor
    logvar: Tensor

    def __len__(self) -> int:
        return len(self.mu)

    @classmethod
    def prior(cls, like: Tensor) -> "GaussianProposal":
        """Return N(0, I) with the data and dimensions of `like` `(B, K)`."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def widen(self, width: float) -> "GaussianProposal":
        """Return the Gaussian with standard deviations multiplied by `width`."""
        return GaussianProposal(self.mu, self.logvar + 2 * math.log(width))

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, `(S, B, K)`."""
        shape = (samples, *self.mu.shape)
        return DiagonalGaussian(self.mu.expand(shape), self.logvar.expand(shape)).sample(generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; mu, diag(exp(logvar))), `(S, B, K) -> (S, B)`."""
        return DiagonalGaussian(self.mu, self.logvar).log_prob(z)


@dataclass(frozen=True)
class DefensiveMixture:
    """(1 - share) * first + share * second: a wide second component protects against a first that is too narrow.

    Reference: Hesterberg, Weighted Average Importance Sampling and Defensive Mixture Distributions, 1995.
    """

    first: Proposal
    second: Proposal
    share: float = 0.5

    def __len__(self) -> int:
        return len(self.first)

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, each of the second component with probability `share`, `(S, B, ...)`."""
        first, second = self.first.sample(samples, generator), self.second.sample(samples, generator)
        one_each = (samples, len(self), *[1] * (first.ndim - 2))
        uniform = uniform_like(first.new_empty(one_each, dtype=torch.float32), generator)
        return torch.where(uniform < self.share, second, first)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log [(1 - share) first(z) + share second(z)], `(S, B, ...) -> (S, B)`."""
        first = self.first.log_prob(z) + math.log1p(-self.share)
        return torch.logaddexp(first, self.second.log_prob(z) + math.log(self.share))


@dataclass(frozen=True)
class CategoricalProposal:
    """A distribution over C classes; `log_probs` `(B, C)` are normalised."""

    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.log_probs)

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return classes, `(S, B)`."""
        return torch.multinomial(self.log_probs.exp(), samples, replacement=True, generator=generator).T

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log probability of classes, `(S, B) -> (S, B)`."""
        return self.log_probs.expand(*z.shape, -1).gather(-1, z[..., None])[..., 0]
