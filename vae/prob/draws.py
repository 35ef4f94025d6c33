"""Draws of the shape, dtype and device of a tensor, from a generator or from torch's own."""

from collections.abc import Callable

import torch
from torch import Tensor


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return draws of N(0, 1).

    Example:
        >>> normal_like(torch.zeros(2, 3, dtype=torch.float64)).dtype
        torch.float64
    """
    return _drawn(torch.randn, x, generator)


def uniform_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return draws of the uniform distribution over [0, 1)."""
    return _drawn(torch.rand, x, generator)


def _drawn(draw: Callable[..., Tensor], x: Tensor, generator: torch.Generator | None) -> Tensor:
    # `generator=None` would do, but that torch.compile then fails at the second size of a batch.
    source = {} if generator is None else {"generator": generator}
    return draw(x.shape, dtype=x.dtype, device=x.device, **source)
