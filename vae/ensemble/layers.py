"""Layers of M models at once: the rows of x are M batches, and each batch is multiplied by its model's weights.

Axes: M models, B rows of each. Layers that treat all rows alike, such as activations and reshapes, are kept.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.model.networks import ACTIVATIONS, LinearEncoder
from vaebench.vae.prob.densities import Density, Gaussian

ROWS_ALIKE = (*ACTIVATIONS.values(), nn.Flatten, nn.Unflatten)


def stack(layer: nn.Module, parameters: Iterator[nn.Parameter], generators: Sequence[torch.Generator]) -> nn.Module:
    """Return the stacked form of a layer of one of the models.

    Args:
        parameters: the stacked parameters, in the order of the layer's own; those of the layer are taken from it.
        generators: one for each model, for layers that draw.
    """
    if isinstance(layer, nn.Sequential):
        return nn.Sequential(*(stack(part, parameters, generators) for part in layer))
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        return StackedLinear(next(parameters), next(parameters))
    if isinstance(layer, LinearEncoder) and layer.context is None:
        return StackedLinearEncoder(next(parameters), next(parameters), next(parameters))
    if isinstance(layer, nn.Dropout):
        return StackedDropout(layer.p, generators)
    if isinstance(layer, ROWS_ALIKE):
        return layer
    raise InputError(f"a {type(layer).__name__} layer cannot be stacked; train its models with fit.")


class StackedLinear(nn.Module):
    """y_mb = x_mb W_m + b_m, `(M * B, in) -> (M * B, out)`, for weights `(M, in, out)` and biases `(M, out)`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        x_MBI = x.unflatten(0, (self.weight.shape[0], -1))
        return torch.baddbmm(self.bias[:, None], x_MBI, self.weight).flatten(0, 1)


class StackedLinearEncoder(nn.Module):
    """mu_mb = x_mb W_m + b_m and one logvar for each model, `(M * B, *shape) -> (M * B, 2K)`."""

    def __init__(self, logvar: nn.Parameter, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.logvar, self.mu = logvar, StackedLinear(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        mu: Tensor = self.mu(x.flatten(1))
        return torch.cat([mu, to_rows(self.logvar, x.shape[0])], dim=1)


class StackedDropout(nn.Module):
    """Dropout where each model draws its masks from its own generator, as it draws them alone from torch's."""

    def __init__(self, p: float, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.p, self.generators = p, generators

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.empty_like(x)
        for part, generator in zip(kept.chunk(len(self.generators)), self.generators, strict=True):
            part.bernoulli_(1 - self.p, generator=generator)
        return x * kept.div_(1 - self.p)


class StackedLikelihood(Likelihood):
    """p(x|z) with one sigma for each model, log_sigma `(M,)`; the other likelihoods treat all rows alike."""

    def __init__(self, one: Likelihood, log_sigma: Tensor) -> None:
        super().__init__(one.name, one.shape, levels=one.levels, components=one.components)
        self.log_sigma = log_sigma

    def forward(self, raw: Tensor) -> Density:
        if self.name != "gaussian":
            return super().forward(raw)
        event_ndim = len(self.shape)
        sigma = to_rows(self.log_sigma.exp(), raw.shape[0])
        return Gaussian(raw, sigma.reshape(-1, *[1] * event_ndim), event_ndim)


def to_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat each model's value for each of its rows, `(M, ...) -> (rows, ...)`."""
    return x[:, None].expand(x.shape[0], rows // x.shape[0], *x.shape[1:]).flatten(0, 1)
