"""Monotone rational-quadratic splines: an element-wise map more flexible than an affine one."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.vae.errors import InputError
from vaebench.vae.flows.elementwise import ElementMap

SMALLEST_BIN = 1e-3
SMALLEST_SLOPE = 1e-3
RAW_SLOPE_START = math.log(math.expm1(1 - SMALLEST_SLOPE))  # the slope is 1 where raw is 0


class Bin(NamedTuple):
    """The bin of each element: lower corner, width and height, and the slopes at both ends, `(...)` each."""

    left: Tensor
    bottom: Tensor
    width: Tensor
    height: Tensor
    slope_left: Tensor
    slope_right: Tensor


@dataclass(frozen=True)
class RationalQuadratic(ElementMap):
    """A spline of `bins` pieces that maps [-bound, bound] to itself; the identity outside, joined with slope 1.

    In a bin of slope s = height / width with slopes d0 and d1 at its ends, xi = (x - left) / width and u = xi (1 - xi),

        z = bottom + height (s xi^2 + d0 u) / (s (1 - 2 u) + (d0 + d1) u)
        dz/dx = s^2 (d1 xi^2 + 2 s u + d0 (1 - xi)^2) / (s (1 - 2 u) + (d0 + d1) u)^2

    raw holds 3 bins - 1 numbers: widths and heights, by softmax shares of the interval, and the slopes at inner knots,
    by softplus. Both directions cost the same.

    Reference: Durkan et al., Neural Spline Flows, 2019; Gregory and Delbourgo, Piecewise Rational Quadratic
    Interpolation to Monotonic Data, 1982.
    """

    bins: int = 8
    bound: float = 4.0

    def __post_init__(self) -> None:
        if not 2 <= self.bins < 1 / SMALLEST_BIN or self.bound <= 0:
            raise InputError(
                f"a spline needs 2 to {1 / SMALLEST_BIN - 1:.0f} bins and a bound > 0, got {self.bins}, {self.bound:g}."
            )

    @property
    def parameters(self) -> int:
        return 3 * self.bins - 1

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        part = self._bin(inside, raw, by_height=False)
        xi = (inside - part.left) / part.width
        fraction, log_slope = _evaluate(part, xi)
        outside = x.abs() > self.bound
        z = torch.where(outside, x, part.bottom + part.height * fraction)
        return z, log_slope.masked_fill(outside, 0.0)

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        inside = z.clamp(-self.bound, self.bound)
        part = self._bin(inside, raw, by_height=True)
        xi = _solve(part, (inside - part.bottom) / part.height)
        _, log_slope = _evaluate(part, xi)
        outside = z.abs() > self.bound
        x = torch.where(outside, z, part.left + part.width * xi)
        return x, (-log_slope).masked_fill(outside, 0.0)

    def _bin(self, value: Tensor, raw: Tensor, *, by_height: bool) -> Bin:
        """Return the bin that each value lies in, found among the heights for the inverse."""
        widths, heights, slopes = raw.split([self.bins, self.bins, self.bins - 1], dim=-1)
        x, z = self._knots(widths), self._knots(heights)
        slopes = F.pad(SMALLEST_SLOPE + F.softplus(slopes + RAW_SLOPE_START), (1, 1), value=1.0)
        inner = (z if by_height else x)[..., 1:-1]
        index = (value[..., None] >= inner).sum(-1, keepdim=True)
        left, bottom, slope_left = (knots.gather(-1, index)[..., 0] for knots in (x, z, slopes))
        right, top, slope_right = (knots.gather(-1, index + 1)[..., 0] for knots in (x, z, slopes))
        return Bin(left, bottom, right - left, top - bottom, slope_left, slope_right)

    def _knots(self, raw: Tensor) -> Tensor:
        """Return the borders of bins from -bound to bound, `(..., bins) -> (..., bins + 1)`."""
        shares = SMALLEST_BIN + (1 - SMALLEST_BIN * self.bins) * torch.softmax(raw, dim=-1)
        inner = 2 * self.bound * shares[..., :-1].cumsum(-1) - self.bound
        return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)


def _evaluate(part: Bin, xi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fraction of the height reached at xi, and the log-slope there."""
    s, u = part.height / part.width, xi * (1 - xi)
    below = s * (1 - 2 * u) + (part.slope_left + part.slope_right) * u
    rise = part.slope_right * xi.square() + 2 * s * u + part.slope_left * (1 - xi).square()
    return (s * xi.square() + part.slope_left * u) / below, 2 * (s.log() - below.log()) + rise.log()


def _solve(part: Bin, t: Tensor) -> Tensor:
    """Return xi at the fraction t of the height, the root of a quadratic, as a quotient in which nothing cancels.

        xi = 2 s t / (p + 2 s t),    p = g + r,  g = d0 (1 - t) - d1 t,  r^2 = g^2 + 4 s^2 t (1 - t)

    Where g < 0, p is 4 s^2 t (1 - t) / (r - g).
    """
    s = part.height / part.width
    g = part.slope_left * (1 - t) - part.slope_right * t
    product = 4 * s.square() * t * (1 - t)
    larger = g.abs() + torch.sqrt(g.square() + product)
    p = torch.where(g >= 0, larger, product / larger)
    return 2 * s * t / (p + 2 * s * t)
