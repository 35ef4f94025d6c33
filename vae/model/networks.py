"""Encoders `(B, *shape) -> (B, H)` and decoders `(B, K) -> (B, P * C, ...)`, where P numbers describe each element.

H is 2K, plus the context where a flow of q(z|x) depends on x.

Each family is one function that returns the pair, mirrored: `mlp` for small data, `conv` and `residual` for images of 8
to 64 pixels a side, `linear` for the VAE whose optimum is probabilistic PCA. In none does the output for one example
depend on another example.
"""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from vaebench.vae.config.fields import to_plain
from vaebench.vae.config.run import Model
from vaebench.vae.errors import InputError

Shape = tuple[int, ...]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}


def build(config: Model, shape: Shape, parameters: int, context: int = 0) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder for data of `shape`, with `parameters` outputs for each element of it.

    The encoder's output has `context` numbers beside the 2K of a Gaussian.
    """
    families = {"mlp": mlp, "conv": conv, "residual": residual, "linear": linear}
    return families[config.network](config, shape, parameters, 2 * config.latent + context)


def mlp(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """Use fully connected layers of the widths in `hidden`, in reverse order for the decoder."""
    widths = (math.prod(shape), *config.hidden)
    layers = partial(dense_layers, dropout=config.dropout, activation=ACTIVATIONS[config.activation])
    encoder = nn.Sequential(nn.Flatten(), *layers(widths), nn.Linear(widths[-1], head))
    decoder = nn.Sequential(
        *layers((config.latent, *reversed(config.hidden))),
        nn.Linear(widths[1] if config.hidden else config.latent, parameters * widths[0]),
        nn.Unflatten(1, (parameters * shape[0], *shape[1:])),
    )
    return encoder, decoder


def conv(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """Halve the sides with 4x4 strided convolutions while they are even and above 4; transposed ones mirror them.

    `hidden` gives the channels after each halving; its last entry serves all further ones. `dense` layers lie between
    the smallest image and the code. hidden = (32, 32, 64, 64) and dense = (256,) on 64 pixels a side are the networks
    of the disentanglement literature, with SiLU in place of ReLU.

    Reference: Locatello et al., Challenging Common Assumptions in the Unsupervised Learning of Disentangled
    Representations, 2019, table 1 of the appendix.
    """
    channels, side = _pyramid(config, shape)
    features = channels[-1] * side**2
    down: list[nn.Module] = []
    widths = (config.latent, *reversed(config.dense), features)
    up = [*dense_layers(widths), nn.Unflatten(1, (channels[-1], side, side))]
    for narrow, wide in pairwise(channels):
        down += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.SiLU()]
    for wide, narrow in pairwise(reversed(channels[1:])):
        up += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.SiLU()]
    up.append(nn.ConvTranspose2d(channels[1], parameters * shape[0], 4, stride=2, padding=1))
    return nn.Sequential(*down, *_flat_head(features, config.dense, head)), nn.Sequential(*up)


def residual(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """Halve as `conv` does, with a residual block after each halving, and before each nearest-neighbour doubling.

    The blocks normalise over groups of channels of one example. Normalised over the batch, its code would depend on the
    other examples.
    """
    channels, side = _pyramid(config, shape)
    features = channels[-1] * side**2
    down: list[nn.Module] = []
    for narrow, wide in pairwise(channels):
        down += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), Residual(wide)]
    widths = (config.latent, *reversed(config.dense))
    up = [*dense_layers(widths), nn.Linear(widths[-1], features), nn.Unflatten(1, (channels[-1], side, side))]
    for wide, narrow in pairwise((*reversed(channels[1:]), channels[1])):
        up += [Residual(wide), nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1)]
    up += [nn.SiLU(), nn.Conv2d(channels[1], parameters * shape[0], 3, padding=1)]
    return nn.Sequential(*down, nn.SiLU(), *_flat_head(features, config.dense, head)), nn.Sequential(*up)


class Residual(nn.Module):
    """x + f(x), f two 3x3 convolutions, each after a group norm and a nonlinearity: `(B, C, H, W) -> (B, C, H, W)`.

    There are at most 8 groups, each of at least 4 channels if there are that many.

    References: He et al., Identity Mappings in Deep Residual Networks, 2016; Wu and He, Group Normalization, 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = math.gcd(8, channels, max(1, channels // 4))
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


def linear(config: Model, shape: Shape, parameters: int, head: int) -> tuple[nn.Module, nn.Module]:
    """Use one affine map each; the variances of q(z|x) do not depend on x, as in probabilistic PCA."""
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


def _pyramid(config: Model, shape: Shape) -> tuple[list[int], int]:
    """Return the channels of an image and after each of its halvings, and the side after the last.

    Widths that no halving would use are refused, unless they are the default.
    """
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2 or not 8 <= shape[1] <= 64 or not config.hidden:
        raise InputError(
            f"network {config.network} needs (C, H, H) data with an even side of 8 to 64 and at least one entry in "
            f"model.hidden; got {shape} and {config.hidden}."
        )
    channels, side = [shape[0]], shape[1]
    while side > 4 and side % 2 == 0:
        channels.append(config.hidden[min(len(channels), len(config.hidden)) - 1])
        side //= 2
    halvings, default = len(channels) - 1, type(config)().hidden
    if len(config.hidden) > halvings and config.hidden != default:
        raise InputError(
            f"network {config.network} halves images of {shape[1]} pixels to {side} pixels in {halvings} steps, and "
            f"model.hidden has {len(config.hidden)} entries, {to_plain(config.hidden)}; give at most {halvings}."
        )
    return channels, side


def _flat_head(features: int, dense: tuple[int, ...], head: int) -> list[nn.Module]:
    """Return the layers from the smallest image to the encoder's output."""
    return [nn.Flatten(), *dense_layers((features, *dense)), nn.Linear((features, *dense)[-1], head)]


def dense_layers(
    widths: tuple[int, ...], dropout: float = 0.0, activation: type[nn.Module] = nn.SiLU
) -> list[nn.Module]:
    """Return a fully connected layer, an activation and the dropout between each two successive widths."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return layers
