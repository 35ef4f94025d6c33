"""The codes of a whole split, computed in batches that fit into memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench.kernels.shared.expm1 import expm1_minus_identity
from vaebench.vae.data import Split
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.proposals import GaussianProposal

ROWS_AT_ONCE = 1024
ACTIVE_VARIANCE = 0.01
ACTIVE_CODES = 16


@dataclass(frozen=True)
class Latents:
    """Every latent over a set of N examples, `(K,)` each.

    Attributes:
        rate: E_x KL(q(z_k|x) || N(0, 1)), in nats.
        variance_of_means: Var_x(E[z_k|x]); a latent is active where it exceeds 0.01.
        mean, std: of the aggregated posterior q(z_k), 0 and 1 where it is the prior.
    """

    rate: Tensor
    variance_of_means: Tensor
    mean: Tensor
    std: Tensor

    @property
    def active(self) -> Tensor:
        """Return which latents carry information on x, `(K,)`."""
        return self.variance_of_means > ACTIVE_VARIANCE


def describe_latents(mu: Tensor, logvar: Tensor) -> Latents:
    """Return what Gaussian posteriors, `(N, K)` each, say of every latent."""
    mu, logvar = mu.double(), logvar.double()
    variance = mu.var(0)
    rate = 0.5 * (mu.square() + expm1_minus_identity(logvar)).mean(0)
    return Latents(rate, variance, mu.mean(0), (variance + logvar.exp().mean(0)).sqrt())


@torch.no_grad()
def encode_all(model: GenerativeModel, split: Split, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return mu and logvar of q(z|x) for every example of a split, `(N, K)` each."""
    posteriors = [model.encode(x) for x in _batches(split, generator)]
    return torch.cat([q.mu for q in posteriors]), torch.cat([q.logvar for q in posteriors])


@torch.no_grad()
def represent_all(model: GenerativeModel, split: Split, generator: torch.Generator | None = None) -> Tensor:
    """Return one code for every example of a split, `(N, K)`: see `VAE.represent`."""
    return torch.cat([model.represent(x) for x in _batches(split, generator)])


@torch.no_grad()
def draw_codes(model: GenerativeModel, split: Split, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Return draws of q(z|x) for every example of a split, `(S, N, K)`."""
    codes = []
    for x in _batches(split, generator):
        q, context = model.encode_with_context(x)
        z0 = GaussianProposal(q.mu, q.logvar).sample(samples, generator)
        codes.append(model.transform(z0, context)[0])
    return torch.cat(codes, dim=1)


def variance_of_means(model: GenerativeModel, split: Split, generator: torch.Generator | None = None) -> Tensor:
    """Return Var_x(E[z_k|x]) of each latent k over a split, `(K,)`; a latent is active where it exceeds 0.01.

    With a flow as posterior E[z|x] is a mean of draws. It is computed twice, since the covariance of the two over x is
    free of the sampling noise that would add to the variance of one.
    """
    if model.posterior_flow is None:
        means = encode_all(model, split, generator)[0]
        return means.var(0, correction=min(1, len(means) - 1))
    first, second = (draw_codes(model, split, ACTIVE_CODES, generator).mean(0) for _ in range(2))
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / max(1, len(first) - 1)


def _batches(split: Split, generator: torch.Generator | None) -> Iterator[Tensor]:
    index = torch.arange(len(split), device=split.stored.device)
    return split.batches(index.split(ROWS_AT_ONCE), generator)
