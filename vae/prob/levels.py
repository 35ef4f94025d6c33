"""Levels of discrete data: to a grid of values in [0, 1], and to continuous ones by uniform noise."""

from torch import Tensor


def dequantise(x: Tensor, levels: int, u: Tensor | float) -> Tensor:
    """Return (k + u) / levels for elements k / (levels - 1): cells of one width side by side, u in [0, 1) the place.

    The volume of a cell is levels^-D. With u uniform, the density p that a continuous model gives to the result bounds
    the probability that it gives to the cells:

        E_u log p((k + u) / levels) - D log levels <= log P(k)

    with equality where p is constant in each cell, as that of a model of the levels themselves is.

    Reference: Theis et al., A Note on the Evaluation of Generative Models, 2016, section 3.1.

    Example:
        >>> dequantise(torch.tensor([0.0, 0.5, 1.0]), levels=3, u=0.75)
        tensor([0.2500, 0.5833, 0.9167])
    """
    return (x * (levels - 1) + u) / levels


def quantise(y: Tensor, levels: int) -> Tensor:
    """Return k / (levels - 1) of the cell k that y lies in, those outside [0, 1] in the outermost: see `dequantise`."""
    return (y * levels).floor().clamp(0, levels - 1) / (levels - 1)
