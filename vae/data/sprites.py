"""Sprites with known factors: 737 280 binary images of 64 x 64, rendered from their index for each batch.

    shape 3 (square, ellipse, heart) x scale 6 (0.5 to 1) x orientation 40 x x 32 x y 32,    y varies fastest

Orientations are 2 pi k / 40, so that no angle occurs twice. But a square looks the same after a quarter turn and an
ellipse after half a turn: `labels` counts the orientations that can be distinguished, 10, 20 and 40. A sprite moves by
whole pixels, and all its pixels are within 13 of its centre: it is inside the frame at any position and angle.

Disentanglement is scored against `labels`, since a code can only know what the image shows: an encoder can extract at
most ln 10 nats about the angle of a square. The cost is that the range of the orientation carries 0.38 nats about the
shape, so that labels used as a code score lower than factors would (docs/metrics.md has both).

No file is read. Each of the 720 outlines is drawn once on a canvas of 95 x 95; an image is a window of a canvas.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from vaebench.vae.config.run import Data
from vaebench.vae.data.splits import FactorGrid, Split, Splits
from vaebench.vae.errors import InputError

SIZES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
COUNT = math.prod(SIZES.values())
SIDE, CANVAS = 64, 64 + 31
TURNS_ALIKE = (4, 2, 1)

HALF_SQUARE, ELLIPSE, HEART = 9.0, (12.0, 6.5), 9.0


def load(config: Data) -> Splits:
    """Return `size` different images drawn at random, split by the seed into 80 % train, 10 % valid, 10 % test."""
    if config.size > COUNT:
        raise InputError(f"there are {COUNT} sprites, got data.size = {config.size}.")
    drawn = torch.randperm(COUNT, generator=torch.Generator().manual_seed(config.seed))[: config.size]
    tenth = config.size // 10
    test, valid, train = drawn.split([tenth, tenth, config.size - 2 * tenth])
    return from_indices(train, valid, test)


def from_indices(train: Tensor, valid: Tensor, test: Tensor) -> Splits:
    """Make splits from the indices of images, for instance to hold out combinations of factors with `subset`."""
    rendered = [Split(chosen, top=1, render=render, labels=labels(chosen)) for chosen in (train, valid, test)]
    grid = FactorGrid(tuple(SIZES.values()), find)
    return Splits("sprites", rendered[0], rendered[1], rendered[2], 2, tuple(SIZES), grid)


def factors(index: Tensor) -> Tensor:
    """Return the factors of images, `(N,) -> (N, 5)`, each from 0 to its size in `SIZES` - 1.

    Example:
        >>> factors(torch.tensor([33]))
        tensor([[0, 0, 0, 1, 1]])
    """
    return torch.stack(torch.unravel_index(index, tuple(SIZES.values())), dim=-1)


def index(factors: Tensor) -> Tensor:
    """Return the index of the images with these factors, `(N, 5) -> (N,)`: the inverse of `factors`.

    Example:
        >>> index(torch.tensor([[0, 0, 0, 1, 1]]))
        tensor([33])
    """
    found = torch.zeros_like(factors[:, 0])
    for size, factor in zip(SIZES.values(), factors.unbind(-1), strict=True):
        found = found * size + factor
    return found


def labels(index: Tensor) -> Tensor:
    """Return the factors, with orientations that look alike counted as one, `(N,) -> (N, 5)`."""
    found = factors(index)
    periods = torch.tensor([SIZES["orientation"] // turns for turns in TURNS_ALIKE], device=index.device)
    found[:, 2] %= periods[found[:, 0]]
    return found


def find(factors: Tensor) -> Tensor:
    """Return the lowest index of an image that looks like these factors, `(N, 5) -> (N,)`."""
    return index(labels(index(factors)))


def subset(kept: Mapping[str, Sequence[int]] | None = None) -> Tensor:
    """Return the indices of the images whose factors have the kept values; factors that are not named are free.

    Example:
        >>> len(subset({"shape": [0, 2], "scale": [5]})) == 2 * 40 * 32 * 32
        True
    """
    kept = kept or {}
    unknown = [name for name in kept if name not in SIZES]
    if unknown:
        raise InputError(f"sprites have the factors {', '.join(SIZES)}, got {unknown[0]!r}.")
    for name, members in kept.items():
        if not members or not all(0 <= member < SIZES[name] for member in members):
            raise InputError(f"{name} takes values from 0 to {SIZES[name] - 1}, got {list(members)}.")
    axes = [torch.tensor(sorted(set(kept.get(name, range(size))))) for name, size in SIZES.items()]
    return index(torch.cartesian_prod(*axes))


def render(index: Tensor) -> Tensor:
    """Return images, `(N,) -> (N, 1, 64, 64)` in uint8, on the device of the index."""
    shape, scale, orientation, x, y = labels(index).unbind(-1)
    outline = (shape * SIZES["scale"] + scale) * SIZES["orientation"] + orientation
    windows = _outlines(index.device).unfold(1, SIDE, 1).unfold(2, SIDE, 1)
    return windows[outline, SIZES["y"] - 1 - y, SIZES["x"] - 1 - x].unsqueeze(1)


@cache
def _outlines(device: torch.device) -> Tensor:
    """Draw every shape, scale and orientation in the middle of a canvas, `(720, 95, 95)`."""
    offset = torch.arange(CANVAS, dtype=torch.float64) - CANVAS // 2
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    drawn = []
    for shape in range(SIZES["shape"]):
        for scale in range(SIZES["scale"]):
            size = 0.5 + 0.5 * scale / (SIZES["scale"] - 1)
            for orientation in range(SIZES["orientation"]):
                angle = 2 * math.pi * orientation / SIZES["orientation"]
                u = (math.cos(angle) * right + math.sin(angle) * down) / size
                v = (math.cos(angle) * down - math.sin(angle) * right) / size
                drawn.append(_contains(shape, u, v))
    return torch.stack(drawn).to(torch.uint8).to(device)


def _contains(shape: int, u: Tensor, v: Tensor) -> Tensor:
    """Return which points (u, v), in pixels from the centre with v downwards, lie inside a shape of scale 1."""
    if shape == 0:
        return torch.maximum(u.abs(), v.abs()) <= HALF_SQUARE
    if shape == 1:
        return (u / ELLIPSE[0]) ** 2 + (v / ELLIPSE[1]) ** 2 <= 1
    x, y = u / HEART, -v / HEART
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
