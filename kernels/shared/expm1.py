"""expm1(v) - v with its digits near 0, where the difference cancels: the part of the KL that depends on logvar.

Near 0 it follows from v / expm1(v) = 1 - v/2 + v^2/12 - v^4/720 + ...:

    expm1(v) - v = expm1(v) (v/2 - v^2/12 + v^4/720 - ...)

The first two terms serve up to v^4 = 360 eps, where the third is as large as the rounding error of the difference.
Above, the difference keeps its bits. Cut-offs choose between them, because masks and `where` take five times as long.
"""

import torch
from torch import Tensor


def expm1_minus_identity(v: Tensor) -> Tensor:
    """Return expm1(v) - v, to 3e-6 of itself in float32 and to 1e-12 in float64.

    To autograd it is this difference plus a constant: its rounding error near 0, exactly 0 elsewhere. In the square v
    is cut off at 3, so that the series exceeds the bound for every v above it.
    """
    expm1 = torch.expm1(v)
    difference = expm1 - v
    x, bound = v.detach(), _bound(v)
    low = x.clamp_max(3)
    twice_series = torch.addcmul(x, low, low, value=-1 / 6).mul_(expm1.detach()).clamp_max_(2 * bound)
    return difference - difference.detach().clamp_max(bound).sub_(twice_series, alpha=0.5)


def _bound(v: Tensor) -> float:
    """Return expm1(v) - v at v^4 = 360 eps."""
    return 0.5 * float(360 * torch.finfo(v.dtype).eps) ** 0.5
