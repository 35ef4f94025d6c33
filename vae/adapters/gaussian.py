"""p(x|z) around the output of a decoder that returns means alone, as most libraries' decoders do."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vaebench.vae.data import Split
from vaebench.vae.errors import InputError
from vaebench.vae.model.adapted import moments_of
from vaebench.vae.prob.draws import normal_like
from vaebench.vae.training.streams import evaluation_generator

ROWS_AT_ONCE = 256


class Means(Protocol):
    """A trained model whose decoder returns E[x|z]."""

    def encode(self, x: Tensor, /) -> Any:
        """Return q(z|x): see `vae.model.adapted.Source`."""

    def mean(self, z: Tensor, /) -> Tensor:
        """Return E[x|z] for codes `(B, *code)`."""


class GaussianSource(nn.Module):
    """p(x|z) = N(E[x|z], sigma^2 I)."""

    log_sigma: Tensor

    def __init__(self, means: Means, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise InputError(f"sigma must be positive, got {sigma:g}.")
        self.means = means
        self.register_buffer("log_sigma", torch.tensor(math.log(sigma)))

    def encode(self, x: Tensor) -> Any:
        return self.means.encode(x)

    def decode(self, z: Tensor) -> Distribution:
        return Independent(Normal(self.means.mean(z).flatten(1), self.log_sigma.exp()), 1)


class BernoulliSource(nn.Module):
    """P(x_d = 1) = E[x_d|z]."""

    def __init__(self, means: Means) -> None:
        super().__init__()
        self.means = means

    def encode(self, x: Tensor) -> Any:
        return self.means.encode(x)

    def decode(self, z: Tensor) -> Distribution:
        return Independent(Bernoulli(self.means.mean(z).flatten(1)), 1)


@torch.no_grad()
def fit_sigma(means: Means, split: Split, *, seed: int = 0) -> float:
    """Return the sigma of highest E_q log p(x|z) over a split: the root mean square of x - E[x|z], at a draw of z."""
    generator = evaluation_generator(seed, split.device)
    total, count = 0.0, 0
    for x in split.batches(torch.arange(len(split), device=split.device).split(ROWS_AT_ONCE), generator):
        mu, logvar = moments_of(means.encode(x))
        z = mu + torch.exp(0.5 * logvar) * normal_like(mu, generator)
        total += (x.flatten(1) - means.mean(z).flatten(1)).double().square().sum().item()
        count += x.numel()
    return max(math.sqrt(total / count), torch.finfo(torch.float32).tiny)
