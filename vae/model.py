"""The reference VAE: encode -> q(z|x), decode -> p(x|z). It returns distributions and knows no loss."""

import math

import torch
from torch import Tensor, nn

from vae import networks
from vae.config import Model
from vae.errors import InputError
from vae.prob.densities import Bernoulli, Density, DiagonalGaussian, DiscretisedLogistic, Gaussian

LOGVAR_LIMIT = 15.0
LOG_SCALE_LIMIT = 7.0
LIKELIHOODS = ("bernoulli", "gaussian", "discretised_logistic")


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """Return limit * tanh(x / limit): the identity near 0, never beyond +-limit, smooth everywhere."""
    return limit * torch.tanh(x / limit)


class Likelihood(nn.Module):
    """p(x|z) from the decoder's raw output, which holds `parameters` numbers for each element, stacked on axis 1.

    bernoulli: logits. gaussian: mu, with one sigma, fixed or learned. discretised_logistic: mu and log_scale, the
    latter softly clamped to +-7.
    """

    log_sigma: Tensor

    def __init__(
        self, name: str, shape: tuple[int, ...], *, levels: int = 0, sigma: float = 0.1, learn: bool = False
    ) -> None:
        super().__init__()
        if name not in LIKELIHOODS or sigma <= 0:
            raise InputError(
                f"a likelihood must be one of {', '.join(LIKELIHOODS)} with sigma > 0, got {name!r} and {sigma:g}."
            )
        if name == "discretised_logistic" and levels < 2:
            raise InputError(
                "likelihood discretised_logistic needs data with at least 2 levels, "
                f"got {levels or 'continuous data: set model.likelihood = gaussian'}."
            )
        if name == "bernoulli" and levels != 2:
            raise InputError(
                f"likelihood bernoulli needs data of 2 levels, got {levels or 'continuous data'}: "
                "set data.binarise to static or dynamic."
            )
        self.name, self.shape, self.levels = name, shape, levels
        self.parameters_per_element = 2 if name == "discretised_logistic" else 1
        log_sigma = torch.tensor(math.log(sigma))
        if learn:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    @property
    def discrete(self) -> bool:
        """Whether p(x|z) is a probability of discrete data, so that bits per dimension mean something."""
        return self.name != "gaussian"

    def forward(self, raw: Tensor) -> Density:
        """Return p(x|z) for raw outputs `(..., P * C, *rest)`."""
        event_ndim = len(self.shape)
        if self.name == "bernoulli":
            return Bernoulli(raw, event_ndim)
        if self.name == "gaussian":
            return Gaussian(raw, self.log_sigma.exp(), event_ndim)
        mu, log_scale = raw.chunk(2, dim=-event_ndim)
        return DiscretisedLogistic(mu, soft_clamp(log_scale - 2, LOG_SCALE_LIMIT), self.levels, event_ndim)


class VAE(nn.Module):
    """An encoder, a decoder and a likelihood around a standard normal code of size `latent`.

    Bring your own networks: the encoder maps `(B, *shape)` to `(B, 2 * latent)`, mu beside logvar; the decoder maps
    `(B, latent)` to `(B, P * shape[0], *shape[1:])` with P = `likelihood.parameters_per_element`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood, self.latent = encoder, decoder, likelihood, latent

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Return q(z|x) for x `(B, *shape)`; logvar is softly clamped to +-15, here and nowhere else."""
        h = self.encoder(x)
        required = (x.shape[0], 2 * self.latent)
        if not isinstance(h, Tensor) or h.shape != required:
            arrived = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise InputError(f"the encoder must return (B, 2 * latent) = {required}, one tensor, got {arrived}.")
        mu, logvar = _at_least_single(h).chunk(2, dim=1)
        return DiagonalGaussian(mu, soft_clamp(logvar, LOGVAR_LIMIT))

    def decode(self, z: Tensor) -> Density:
        """Return p(x|z) for codes `(..., latent)`, with batch axes `(...)`."""
        raw = _at_least_single(self.decoder(z.reshape(-1, self.latent)))
        channels, *rest = self.likelihood.shape
        required = (channels * self.likelihood.parameters_per_element, *rest)
        if raw.shape[1:] != required:
            raise InputError(
                f"the decoder must return (B, {', '.join(map(str, required))}) for likelihood {self.likelihood.name}, "
                f"got (B, {', '.join(map(str, raw.shape[1:]))})."
            )
        density: Density = self.likelihood(raw.reshape(*z.shape[:-1], *raw.shape[1:]))
        return density


def build(config: Model, shape: tuple[int, ...], levels: int) -> VAE:
    """Build the model of a configuration for data of `shape` with `levels` values (0: continuous)."""
    likelihood = Likelihood(config.likelihood, shape, levels=levels, sigma=config.sigma, learn=config.learn_sigma)
    encoder, decoder = networks.build(config, shape, likelihood.parameters_per_element)
    return VAE(encoder, decoder, likelihood, config.latent)


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
