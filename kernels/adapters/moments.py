"""Distributions of packed moments `(B, 2C, ...)`, as in autoencoders for latent diffusion, by the kernel."""

import functools
from typing import Any, Self

import torch
from torch import Tensor

from .. import reparam_kl
from .closed_form import elementwise_kl, still_serves
from .probe import WIDE, fixed_inputs, pinned

AXES = (1, 2, 3)


class FusedMoments:
    """What `fuse_moments` puts before a class of moments: `sample()` and `kl()` are one call of the kernel.

    All else is the class's own: the clamp of logvar, `mode`, `nll`, `deterministic`, `kl(other)`, and `sample` with a
    generator, which draws the class's noise, so that a seeded pipeline gives the same codes as before.
    """

    mean: Tensor
    logvar: Tensor
    deterministic: bool = False
    _base: Any = None
    _kl: Tensor | None = None

    @classmethod
    def of(cls, posterior: Any) -> Self:
        """Return an object of this class with the attributes of a posterior."""
        fused = object.__new__(cls)
        vars(fused).update(vars(posterior))
        return fused

    def sample(self, generator: Any = None) -> Tensor:
        """Return z = mean + std eps. Without a generator, eps is the noise of the kernel."""
        if generator is not None or self.deterministic or self.mean.ndim < 4:
            own = {} if generator is None else {"generator": generator}
            return self._base.sample(self, **own)
        z, self._kl = reparam_kl(self.mean, self.logvar, reduction="sample" if self.mean.ndim == 4 else "none")
        return z

    def kl(self, other: Any = None) -> Tensor:
        """Return KL(q || N(0, I)) in float32 or float64, summed over axes 1 to 3, or the class's own KL(q || other)."""
        if other is not None or self.deterministic or self.mean.ndim < 4:
            return self._base.kl(self, *(() if other is None else (other,)))
        kl, self._kl = self._kl, None  # handed out once: the caller may change the tensor in place
        if kl is None or not still_serves(kl, self.mean, self.logvar):
            return elementwise_kl(self.mean, self.logvar).sum(AXES)
        return kl if self.mean.ndim == 4 else kl.sum(AXES)


def fuse_moments(posterior: Any) -> Any:
    """Return a posterior of the same moments that draws by the kernel; it is an instance of the posterior's class too.

    The class is probed first, and refused with a ValueError of one sentence if its `sample` or `kl` is not

        z = mean + exp(logvar / 2) eps,    kl = 1/2 * sum (mean^2 + exp(logvar) - 1 - logvar) over axes 1, 2, 3

    Example:
        >>> class Gaussian:
        ...     def __init__(self, parameters):
        ...         self.parameters = parameters
        ...         self.mean, self.logvar = parameters.chunk(2, 1)
        ...     def sample(self):
        ...         return self.mean + torch.exp(self.logvar / 2) * torch.randn_like(self.mean)
        ...     def kl(self):
        ...         return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).sum((1, 2, 3))
        >>> posterior = fuse_moments(Gaussian(torch.zeros(2, 6, 4, 4)))
        >>> posterior.sample().shape, posterior.kl(), isinstance(posterior, Gaussian)
        (torch.Size([2, 3, 4, 4]), tensor([0., 0.]), True)
    """
    base: Any = type(posterior)
    return fused_class(base).of(posterior)


@functools.cache
def fused_class(base: type) -> type[FusedMoments]:
    """Return the subclass of a class of moments that draws by the kernel, or raise a ValueError of one sentence."""
    reason = _why_not(base)
    if reason is not None:
        raise ValueError(f"{base.__name__} cannot be drawn from by the kernel: {reason}")
    return type(f"Fused{base.__name__}", (FusedMoments, base), {"_base": base})


def _why_not(base: Any) -> str | None:
    """Return None if the class is the textbook's Gaussian of moments, otherwise the reason as a clause."""
    mu, logvar = fixed_inputs((3, 4, 4))
    try:
        posterior = base(torch.cat([mu, logvar], 1))
        with pinned():
            z = posterior.sample()
        with pinned():
            eps = base(torch.zeros_like(torch.cat([mu, logvar], 1))).sample()
        kl = posterior.kl()
        scales = [_scaled(base, mu, value) for value in WIDE]
    except Exception as error:
        return f"on fixed moments of shape {(len(mu), 6, 4, 4)} it raised {type(error).__name__} ({error})"
    if not _close(getattr(posterior, "mean", None), mu) or not _close(getattr(posterior, "logvar", None), logvar):
        return "its mean and logvar are not the two halves of the moments"
    if not _close(z, mu + torch.exp(logvar / 2) * eps):
        return "its sample() is not mean + exp(logvar / 2) eps"
    if not all(_close(scaled, eps) for scaled in scales):
        return f"its sample() is not mean + exp(logvar / 2) eps where logvar is one of {WIDE}"
    expected = elementwise_kl(mu, logvar).sum(AXES)
    if not _close(kl, expected):
        times = f"; on fixed moments it is {float(kl.mean() / expected.mean()):.3g} times this" if kl.numel() else ""
        return f"its kl() is not the KL from N(0, I), summed over axes 1 to 3 for each example{times}"
    return None


def _scaled(base: Any, mu: Tensor, logvar: float) -> Tensor:
    """Return z / sigma of draws at mu = 0 and one logvar, with sigma as the class has it after its clamp."""
    zero = torch.zeros_like(mu)
    posterior = base(torch.cat([zero, zero + logvar], 1))
    with pinned():
        z: Tensor = posterior.sample()
    return z / torch.exp(posterior.logvar / 2)


def _close(value: object, expected: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == expected.shape and torch.allclose(value, expected, 1e-4, 1e-4)
