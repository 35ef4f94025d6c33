"""Proposal distributions over codes, with their densities: one distribution for each of B data.

Axes: S samples, B data, K latent size.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vaebench.vae.prob.densities import DiagonalGaussian, log_standard_normal
from vaebench.vae.prob.draws import normal_like, uniform_like


class Proposal(Protocol):
    """A distribution over codes that importance sampling and annealing can draw from."""

    def __len__(self) -> int:
        """Return B."""

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, `(S, B, K)`."""

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

    def select(self, rows: Tensor) -> "GaussianProposal":
        """Return the Gaussians of the indexed data."""
        return GaussianProposal(self.mu[rows], self.logvar[rows])

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, `(S, B, K)`."""
        shape = (samples, *self.mu.shape)
        return DiagonalGaussian(self.mu.expand(shape), self.logvar.expand(shape)).sample(generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; mu, diag(exp(logvar))), `(S, B, K) -> (S, B)`."""
        return DiagonalGaussian(self.mu, self.logvar).log_prob(z)


@dataclass(frozen=True)
class FullGaussianProposal:
    """N(mu, V diag(std^2) V^T), mu and std `(B, K)`; the columns of V `(B, K, K)` are orthonormal.

    The eigenvectors give draws and densities without a Cholesky factor, which may not exist in single precision.

    Example:
        >>> p = FullGaussianProposal.from_covariance(torch.zeros(1, 2), torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]))
        >>> p.std
        tensor([[1.0000, 1.7321]])
    """

    mu: Tensor
    std: Tensor
    axes: Tensor

    @classmethod
    def from_covariance(cls, mu: Tensor, covariance: Tensor) -> "FullGaussianProposal":
        """Return N(mu, covariance), covariance `(B, K, K)`; eigenvalues below 1e-12 of the largest are raised to it."""
        values, axes = torch.linalg.eigh(covariance.double())
        variance = torch.maximum(values, 1e-12 * values[:, -1:])
        return cls(mu, variance.sqrt().to(mu.dtype), axes.to(mu.dtype))

    @classmethod
    def from_precision(cls, mu: Tensor, precision: Tensor, least: Tensor) -> "FullGaussianProposal":
        """Return N(mu, precision^-1), with eigenvalues of the precision raised to at least `least` `(B,)`."""
        values, axes = torch.linalg.eigh(precision.double())
        return cls(mu, torch.maximum(values, least[:, None].double()).rsqrt().to(mu.dtype), axes.to(mu.dtype))

    def __len__(self) -> int:
        return len(self.mu)

    @property
    def covariance(self) -> Tensor:
        """Return V diag(std^2) V^T, `(B, K, K)`."""
        factor = self.axes * self.std[:, None]
        return factor @ factor.mT

    def widen(self, width: float | Tensor) -> "FullGaussianProposal":
        """Return the Gaussian with standard deviations multiplied by `width`, one number or one for each datum."""
        factor = width[:, None] if isinstance(width, Tensor) else width
        return FullGaussianProposal(self.mu, self.std * factor, self.axes)

    def select(self, rows: Tensor) -> "FullGaussianProposal":
        """Return the Gaussians of the indexed data."""
        return FullGaussianProposal(self.mu[rows], self.std[rows], self.axes[rows])

    def put(self, rows: Tensor, part: "FullGaussianProposal") -> None:
        """Replace the Gaussians of the indexed data by those of a part."""
        self.mu[rows], self.std[rows], self.axes[rows] = part.mu, part.std, part.axes

    def whiten(self, z: Tensor) -> Tensor:
        """Return u = diag(1 / std) V^T (z - mu), `(S, B, K)`, which is N(0, I) for z of this Gaussian."""
        return torch.einsum("...bi,bij->...bj", z - self.mu, self.axes) / self.std

    def colour(self, u: Tensor) -> Tensor:
        """Return z = mu + V diag(std) u, `(S, B, K)`: the inverse of `whiten`."""
        return self.mu + torch.einsum("bij,...bj->...bi", self.axes, u * self.std)

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, `(S, B, K)`."""
        return self.colour(normal_like(self.mu.expand(samples, *self.mu.shape), generator))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z) = sum_k log N(u_k; 0, 1) - log std_k, `(S, B, K) -> (S, B)`."""
        return (log_standard_normal(self.whiten(z)) - self.std.log()).sum(-1)


@dataclass(frozen=True)
class DefensiveMixture:
    """(1 - share) * first + share * second: a wide second component protects against a first that is too narrow.

    `share` is one number, or one for each datum, `(B,)`.

    Reference: Hesterberg, Weighted Average Importance Sampling and Defensive Mixture Distributions, 1995.
    """

    first: Proposal
    second: Proposal
    share: float | Tensor = 0.5

    def __len__(self) -> int:
        return len(self.first)

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return codes, each of the second component with probability `share`, `(S, B, K)`."""
        first, second = self.first.sample(samples, generator), self.second.sample(samples, generator)
        uniform = uniform_like(first.new_empty((samples, len(self)), dtype=torch.float32), generator)
        return torch.where((uniform < self.share)[..., None], second, first)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log [(1 - share) first(z) + share second(z)], `(S, B, K) -> (S, B)`."""
        first = self.first.log_prob(z)
        share = torch.as_tensor(self.share, dtype=first.dtype, device=first.device)
        return torch.logaddexp(first + torch.log1p(-share), self.second.log_prob(z) + share.log())
