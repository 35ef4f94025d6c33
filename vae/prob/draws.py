"""Random draws in the shape, dtype and device of a tensor, from a generator or from torch's global one."""

from collections.abc import Callable

import torch
from torch import Tensor


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return draws of N(0, 1).

    Example:
        >>> normal_like(torch.zeros(2, 3, dtype=torch.float64)).dtype
        torch.float64
    """
    return _draw(torch.randn, x, generator)


def uniform_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return draws of the uniform distribution over [0, 1)."""
    return _draw(torch.rand, x, generator)


def _draw(function: Callable[..., Tensor], x: Tensor, generator: torch.Generator | None) -> Tensor:
    # Leave the argument out where there is none: with `generator=None` torch.compile fails at the second batch size.
    source = {} if generator is None else {"generator": generator}
    return function(x.shape, dtype=x.dtype, device=x.device, **source)
