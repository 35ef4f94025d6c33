"""Likelihoods p(x|z): the density of the data given the decoder's raw output."""

import math
from typing import final

import torch
from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.prob.densities import Bernoulli, Density, DiscretisedLogistic, Gaussian, LogisticMixture, PointMass
from vaebench.vae.prob.levels import quantise

LOG_SCALE_LIMIT = 7.0
LOG_SCALE_START = -2.0
PARAMETERS = {"bernoulli": 1, "gaussian": 1, "discretised_logistic": 2, "logistic_mixture": 3}


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """Return limit * tanh(x / limit): the identity near 0, never beyond +-limit, smooth everywhere."""
    return limit * torch.tanh(x / limit)


class Likelihood(nn.Module):
    """p(x|z) from the decoder's raw output, `parameters_per_element` numbers for each element, stacked on axis 1.

    bernoulli: logits. gaussian: mu, with one sigma, fixed or learned. discretised_logistic: mu and r, which makes

        log_scale = 7 tanh((r - 2) / 7)

    softly clamped to +-7, and near -2 at the start of training, where r = 0: s is then 0.14 of the range of the data.
    logistic_mixture: all mu, all r, then the logits of all weights, `components` of each; with one component it is
    discretised_logistic.
    """

    log_sigma: Tensor

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        levels: int = 0,
        sigma: float = 0.1,
        learn: bool = False,
        components: int = 1,
    ) -> None:
        super().__init__()
        if name not in PARAMETERS or sigma <= 0 or components < 1:
            raise InputError(
                f"a likelihood must be one of {', '.join(PARAMETERS)} with sigma > 0 and components >= 1, "
                f"got {name!r}, {sigma:g} and {components}."
            )
        if name in ("discretised_logistic", "logistic_mixture") and levels < 2:
            raise InputError(
                f"likelihood {name} needs data with at least 2 levels, "
                f"got {levels or 'continuous data: set model.likelihood = gaussian'}."
            )
        if name == "bernoulli" and levels != 2:
            raise InputError(
                f"likelihood bernoulli needs data of 2 levels, got {levels or 'continuous data'}: "
                "set data.binarise to static or dynamic."
            )
        self.name, self.shape, self.levels = name, shape, levels
        self.components = components if name == "logistic_mixture" else 1
        self.parameters_per_element = PARAMETERS[name] * self.components
        log_sigma = torch.tensor(math.log(sigma))
        if learn:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    def extra_repr(self) -> str:
        per_element = self.parameters_per_element
        return f"{self.name}, shape={self.shape}, levels={self.levels}, parameters_per_element={per_element}"

    @property
    def discrete(self) -> bool:
        """Whether p(x|z) is a probability of discrete data, so that bits per dimension are defined."""
        return self.name != "gaussian"

    def forward(self, raw: Tensor) -> Density:
        """Return p(x|z) for raw outputs `(..., P * C, *rest)`."""
        event_ndim, (channels, *rest) = len(self.shape), self.shape
        required = (channels * self.parameters_per_element, *rest)
        if raw.shape[-event_ndim:] != required:
            raise InputError(
                f"the decoder must return (B, {', '.join(map(str, required))}) for likelihood {self.name}, "
                f"got (B, {', '.join(map(str, raw.shape[-event_ndim:]))})."
            )
        if self.name == "bernoulli":
            return Bernoulli(raw, event_ndim)
        if self.name == "gaussian":
            return Gaussian(raw, self.log_sigma.exp(), event_ndim)
        if self.name == "logistic_mixture":
            mu, r, logits = raw.unflatten(-event_ndim, (3, self.components, -1)).unbind(-event_ndim - 2)
            return LogisticMixture(logits, mu, _log_scale(r), self.levels, event_ndim)
        mu, r = raw.chunk(2, dim=-event_ndim)
        return DiscretisedLogistic(mu, _log_scale(r), self.levels, event_ndim)


@final
class Noiseless(nn.Module):
    """A point mass at the cell of y: the likelihood of a model in which z determines x."""

    def __init__(self, shape: tuple[int, ...], levels: int) -> None:
        super().__init__()
        self.name, self.shape, self.levels = "noiseless", shape, levels

    @property
    def discrete(self) -> bool:
        """Whether the data have levels, so that bits per dimension are defined."""
        return self.levels > 0

    def forward(self, raw: Tensor) -> Density:
        """Return the point mass at raw outputs `(..., *shape)`."""
        return PointMass(quantise(raw, self.levels) if self.levels else raw, len(self.shape))


def _log_scale(r: Tensor) -> Tensor:
    return soft_clamp(r + LOG_SCALE_START, LOG_SCALE_LIMIT)
