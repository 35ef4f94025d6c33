"""Masked networks, and flows whose element i depends on the elements before it.

An order gives each element a level, and element i depends on the elements of lower levels. The usual order is
`torch.arange(D)`; two levels make a coupling. Axes: D elements, P parameters of an element, C context, L levels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.flows.elementwise import Affine, ElementMap
from vaebench.vae.flows.transform import Transform, ValueAndLogDet
from vaebench.vae.prob.densities import at_least_single

HIDDEN = (128, 128)


class MaskedLinear(nn.Linear):
    """y = (weight * mask) x + bias, mask `(outputs, inputs)`."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedNetwork(nn.Module):
    """A network with P outputs for each element i, which depend on the elements of lower levels and on the context.

    A hidden unit of level m sees inputs and hidden units up to level m; an output of level l sees hidden units below l.
    With a context there are also units of level -1, which see the context alone. The last layer starts at zero.

    Shapes: x `(..., D)`, context `(..., C)` -> `(..., D, P)`. Reference: Germain et al., MADE, 2015.
    """

    def __init__(self, order: Tensor, parameters: int, hidden: Sequence[int] = HIDDEN, context: int = 0) -> None:
        super().__init__()
        lowest = -1 if context else 0
        count = max(int(order.max()) - lowest, 1)
        levels = [order, *(lowest + torch.arange(width) * count // width for width in hidden)]
        masks = [after[:, None] >= before for before, after in pairwise(levels)]
        masks.append((order[:, None] > levels[-1]).repeat_interleave(parameters, 0))
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self.context = nn.Linear(context, len(masks[0]), bias=False) if context else None
        self.parameters_per_element = parameters
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.layers[0](x)
        if self.context is not None:
            h = h + self.context(context)
        for layer in self.layers[1:]:
            h = layer(F.silu(h))
        return at_least_single(h).unflatten(-1, (-1, self.parameters_per_element))


class Autoregressive(Transform):
    """z_i = m(x_i; theta_i), theta_i = network(x_<i, context), m increasing: the Jacobian is triangular.

        log |det df/dx| = sum_i log m'(x_i; theta_i)

    With the affine m, the default, this is the Gaussian autoregressive flow x_i | x_<i ~ N(mu_i, s_i^2).
    Cost: forward one pass; inverse L passes, one for each level, since x_i needs x_<i. Its `Inverse` is the inverse
    autoregressive flow, which draws in one pass.

    Args:
        order: the level of each element, `(D,)`: every whole number from 0 to L - 1, ties allowed.
        element: the family of m.
        hidden: widths of the network.
        context: C, the size of the context.

    Reference: Papamakarios et al., Masked Autoregressive Flow, 2017; Kingma et al., Improving Variational Inference
    with Inverse Autoregressive Flow, 2016.
    """

    by_level: Tensor

    def __init__(
        self, order: Tensor, *, element: ElementMap | None = None, hidden: Sequence[int] = HIDDEN, context: int = 0
    ) -> None:
        super().__init__()
        levels, sizes = order.unique(return_counts=True)
        if order.ndim != 1 or levels.tolist() != list(range(len(levels))):
            raise InputError(
                f"an order must be (D,) and hold the levels 0, 1, ... without a gap, got {order.tolist()}."
            )
        self.element = element or Affine()
        self.network = MaskedNetwork(order, self.element.parameters, hidden, context)
        self.sizes = sizes.tolist()
        self.register_buffer("by_level", order.argsort(stable=True))

    @property
    def passes(self) -> tuple[int, int]:
        return 1, len(self.sizes)

    def extra_repr(self) -> str:
        return f"features={sum(self.sizes)}, levels={len(self.sizes)}, element={self.element}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        z, log_slopes = self.element.forward(x, self.network(x, context))
        return z, log_slopes.sum(-1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        x, log_det = torch.zeros_like(z), z.new_zeros(z.shape[:-1])
        for index in self.by_level.split(self.sizes):
            raw = self.network(x, context)[..., index, :]
            values, log_slopes = self.element.inverse(z[..., index], raw)
            x = x.index_copy(-1, index, values)
            log_det = log_det + log_slopes.sum(-1)
        return x, log_det
