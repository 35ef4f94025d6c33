"""Dequantise discrete data, whose n levels lie on a grid in [0, 1], by uniform noise, and quantise them again."""

from torch import Tensor


def dequantise(x: Tensor, levels: int, u: Tensor | float) -> Tensor:
    """Return (k + u) / levels for elements k / (levels - 1): level k becomes a cell of width 1 / levels, u in [0, 1).

    A cell has the volume levels^-D. With u uniform, the density p of a continuous model bounds the probability P(k)
    that the model gives to the cell:

        E_u log p((k + u) / levels) - D log levels <= log P(k)

    with equality where p is constant in each cell, as for a model of the levels themselves.

    Reference: Theis et al., A Note on the Evaluation of Generative Models, 2016, section 3.1.

    Example:
        >>> import torch
        >>> dequantise(torch.tensor([0.0, 0.5, 1.0]), levels=3, u=0.75)
        tensor([0.2500, 0.5833, 0.9167])
    """
    return (x * (levels - 1) + u) / levels


def quantise(y: Tensor, levels: int) -> Tensor:
    """Return k / (levels - 1) for the cell k that holds y, clamped to the outer cells: the inverse of `dequantise`."""
    return (y * levels).floor().clamp(0, levels - 1) / (levels - 1)
