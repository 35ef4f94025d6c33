"""Encoders `(B, *shape) -> (B, H)` and decoders `(B, K) -> (B, P * C, ...)`, where P numbers describe each element.

H is 2K, and more where a flow of q(z|x) is to see x.

Each family is one function that returns the pair, mirrored: `mlp` for anything small, `conv` for images of 8 to 64
pixels a side, `linear` for the VAE whose optimum is probabilistic PCA.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae.config import Model
from vae.errors import InputError

Shape = tuple[int, ...]


def build(config: Model, shape: Shape, parameters: int, context: int = 0) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder for data of `shape`, with `parameters` outputs for each element of it.

    The encoder's output has `context` numbers beside the 2K of a Gaussian.
    """
    families = {"mlp": mlp, "conv": conv, "linear": linear}
    return families[config.network](config, shape, parameters, 2 * config.latent + context)


def mlp(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """Fully connected layers of the widths in `hidden`, and the same backwards."""
    widths = (math.prod(shape), *config.hidden)
    encoder = nn.Sequential(nn.Flatten(), *_dense_layers(widths, config.dropout), nn.Linear(widths[-1], head))
    decoder = nn.Sequential(
        *_dense_layers((config.latent, *reversed(config.hidden)), config.dropout),
        nn.Linear(widths[1] if config.hidden else config.latent, parameters * widths[0]),
        nn.Unflatten(1, (parameters * shape[0], *shape[1:])),
    )
    return encoder, decoder


def conv(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """Halve the sides with 4x4 strided convolutions while they are even and above 4; transposed ones mirror them.

    `hidden` gives the channels after each halving; its last entry serves all further ones.
    """
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2 or not 8 <= shape[1] <= 64 or not config.hidden:
        raise InputError(
            "network conv needs (C, H, H) data with an even side of 8 to 64 and at least one entry in model.hidden; "
            f"got {shape} and {config.hidden}."
        )
    sides = [shape[1]]
    while sides[-1] > 4 and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    channels = [shape[0]] + [config.hidden[min(i, len(config.hidden) - 1)] for i in range(len(sides) - 1)]
    features = channels[-1] * sides[-1] ** 2
    down: list[nn.Module] = []
    up: list[nn.Module] = [nn.Linear(config.latent, features), nn.SiLU()]
    up.append(nn.Unflatten(1, (channels[-1], sides[-1], sides[-1])))
    for narrow, wide in pairwise(channels):
        down += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.SiLU()]
    for wide, narrow in pairwise(reversed(channels[1:])):
        up += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.SiLU()]
    up.append(nn.ConvTranspose2d(channels[1], parameters * shape[0], 4, stride=2, padding=1))
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(features, head))
    return encoder, nn.Sequential(*up)


def linear(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """One affine map each way; the posterior's variances do not depend on x, as in probabilistic PCA."""
    features = math.prod(shape)
    decoder = nn.Sequential(
        nn.Linear(config.latent, parameters * features),
        nn.Unflatten(1, (parameters * shape[0], *shape[1:])),
    )
    return LinearEncoder(features, config.latent, head - 2 * config.latent), decoder


class LinearEncoder(nn.Module):
    """mu = W x + b, one logvar for all x, and a context affine in x: `(B, *shape) -> (B, 2K + C)`."""

    def __init__(self, features: int, latent: int, context: int = 0) -> None:
        super().__init__()
        self.mu = nn.Linear(features, latent)
        self.logvar = nn.Parameter(torch.zeros(latent))
        self.context = nn.Linear(features, context) if context else None

    def forward(self, x: Tensor) -> Tensor:
        mu: Tensor = self.mu(x.flatten(1))
        context = [self.context(x.flatten(1))] if self.context is not None else []
        return torch.cat([mu, self.logvar.expand_as(mu), *context], dim=1)


def _dense_layers(widths: tuple[int, ...], dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return layers
