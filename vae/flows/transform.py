"""Invertible maps with known log-determinants, their composition and inverse, and the densities that they define.

A transform f takes data x to noise z, both `(..., D)`. Costs are counted in passes, evaluations of its network. Every
method also takes a context `(..., C)`, which transforms that were built without one ignore.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vaebench.vae.prob.densities import Density

ValueAndLogDet = tuple[Tensor, Tensor]


class Transform(nn.Module, ABC):
    """A differentiable bijection f of R^D; a subclass must define `forward_and_log_det`."""

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Return z = f(x) and log |det df/dx|, `(..., D) -> (..., D), (...)`."""

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Return x = f^-1(z) and log |det df^-1/dz|, `(..., D) -> (..., D), (...)`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse: it gives the density of data, but cannot draw any."
        )

    @property
    def passes(self) -> tuple[int, int]:
        """Return the number of successive passes of the forward and of the inverse direction."""
        return 1, 1

    def initialise(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialise the parameters that depend on data from a first batch `(B, D)`, and return f of it."""
        return self.forward_and_log_det(x, context)[0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        return self.forward_and_log_det(x, context)


class Compose(Transform):
    """f = f_n o ... o f_1; the first argument is f_1, applied to the data.

        log |det df/dx| = sum_i log |det df_i/dx_i|,    x_1 = x,    x_(i+1) = f_i(x_i)

    Cost of either direction: the sum of its parts.
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = cast("Sequence[Transform]", nn.ModuleList(transforms))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        total = x.new_zeros(x.shape[:-1])
        for transform in self.transforms:
            x, log_det = transform.forward_and_log_det(x, context)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        total = z.new_zeros(z.shape[:-1])
        for transform in reversed(self.transforms):
            z, log_det = transform.inverse_and_log_det(z, context)
            total = total + log_det
        return z, total

    @property
    def passes(self) -> tuple[int, int]:
        counts = [transform.passes for transform in self.transforms]
        return sum(forward for forward, _ in counts), sum(inverse for _, inverse in counts)

    def initialise(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for transform in self.transforms:
            x = transform.initialise(x, context)
        return x


class Inverse(Transform):
    """f = g^-1, with the costs of the two directions of g exchanged.

    `initialise` does not reach g: whoever needs it must initialise g itself.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        return self.transform.inverse_and_log_det(x, context)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        return self.transform.forward_and_log_det(z, context)

    @property
    def passes(self) -> tuple[int, int]:
        forward, inverse = self.transform.passes
        return inverse, forward


@dataclass(frozen=True)
class FlowDistribution:
    """The density of x where f(x) has the density of `base`.

        log p(x) = log p_base(f(x)) + log |det df/dx|,    x = f^-1(z),  z ~ base

    The base has one event for each draw, and for each row of the context if there is one.

    Example:
        >>> from vaebench.vae.flows import LU
        >>> from vaebench.vae.prob.densities import DiagonalGaussian
        >>> halve = LU(torch.tensor([[0.5]]))
        >>> flow = FlowDistribution(halve, DiagonalGaussian(torch.zeros(1), torch.zeros(1)))
        >>> x = torch.randn(5, 1)
        >>> torch.allclose(flow.log_prob(x), DiagonalGaussian(torch.zeros(1), torch.tensor([4.0]).log()).log_prob(x))
        True
    """

    transform: Transform
    base: Density
    context: Tensor | None = None

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) at the cost of one forward direction, `(..., D) -> (...)`."""
        z, log_det = self.transform.forward_and_log_det(x, self.context)
        return self.base.log_prob(z) + log_det

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one x for each event of the base, differentiably, at the cost of one inverse direction."""
        return self.rsample_and_log_prob(generator)[0]

    def rsample_and_log_prob(self, generator: torch.Generator | None = None) -> ValueAndLogDet:
        """Return draws and their log p(x) at the cost of one inverse direction, without a forward one.

        log p(x) = log p_base(z) - log |det df^-1/dz|
        """
        z = self.base.sample(generator)
        x, log_det = self.transform.inverse_and_log_det(z, self.context)
        return x, self.base.log_prob(z) - log_det
