"""`torch.distributions.Normal` by the kernel."""

import torch
from torch import Tensor
from torch.distributions import Normal, register_kl

from .. import reparam_kl
from ..shared.accumulate import accumulator
from ..shared.expm1 import expm1_minus_identity
from .closed_form import can_draw, holds_everywhere, still_serves


class FusedNormal(Normal):
    """A `torch.distributions.Normal` whose `rsample` draws z and measures KL(q || N(0, 1)) in one call of the kernel.

    `kl_divergence(q, p)` hands out this KL, element by element, if p is the standard normal. For any other p, and if q
    was not drawn from, it computes

        kl = 1/2 * ((mu - mu_p)^2 / sigma_p^2 + expm1(x) - x),    x = 2 log(sigma / sigma_p)

    which keeps its digits where q is close to p. `sample` and draws with a `sample_shape` are those of Normal.

    Example:
        >>> from torch.distributions import Normal, kl_divergence
        >>> q = FusedNormal(torch.zeros(3, 2), torch.ones(3, 2))
        >>> z = q.rsample()
        >>> z.shape, kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
        (torch.Size([3, 2]), tensor([0., 0., 0.]))
    """

    _kl: Tensor | None = None

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Return z = mu + sigma eps, with noise of the kernel; eps differs from that of Normal under the same seed."""
        if len(sample_shape) > 0 or not can_draw(self.loc, self.scale):
            return super().rsample(torch.Size(sample_shape))
        z, self._kl = reparam_kl(self.loc, self.scale, scale="std", reduction="none")
        return z

    def take_kl(self) -> Tensor | None:
        """Return KL(q || N(0, 1)) of the latest draw once: the caller may change the tensor in place."""
        kl, self._kl = self._kl, None
        return kl if still_serves(kl, self.loc, self.scale) else None


def _kl_fused_normal(q: FusedNormal, p: Normal) -> Tensor:
    if p.loc.shape in (q.loc.shape, ()) and holds_everywhere(p.loc, 0.0) and holds_everywhere(p.scale, 1.0):
        kl = q.take_kl()
        if kl is not None:
            return kl.to(q.loc.dtype)
    dtype = accumulator(q.loc)
    d, scale, p_scale = q.loc.to(dtype) - p.loc.to(dtype), q.scale.to(dtype), p.scale.to(dtype)
    kl = 0.5 * ((d / p_scale).square() + expm1_minus_identity(2 * _log_ratio(scale, p_scale)))
    return kl.to(q.loc.dtype)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return log(a / b) with all digits, since a - b is exact where a is close to b."""
    above = a >= b
    log = torch.log1p(torch.where(above, a - b, b - a) / torch.where(above, b, a))
    return torch.where(above, log, -log)


register_kl(FusedNormal, Normal)(_kl_fused_normal)
