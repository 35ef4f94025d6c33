"""Coupling layers: one part of x is unchanged and determines the map of the other part, cheap in both directions.

Masks are booleans `(D,)`, True where x is unchanged; `~mask` is the other half.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.flows.autoregressive import HIDDEN
from vaebench.vae.flows.elementwise import Affine, ElementMap
from vaebench.vae.flows.transform import Transform, ValueAndLogDet
from vaebench.vae.prob.densities import at_least_single


def alternating_mask(features: int) -> Tensor:
    """Return True at elements 0, 2, 4, ..."""
    return torch.arange(features) % 2 == 0


def checkerboard_mask(shape: tuple[int, int, int]) -> Tensor:
    """Return True at the even squares, row + column even, of every channel of a flattened image `(C, H, W)`."""
    C, H, W = shape
    board = (torch.arange(H)[:, None] + torch.arange(W)) % 2 == 0
    return board.expand(C, H, W).flatten()


def channel_mask(shape: tuple[int, int, int]) -> Tensor:
    """Return True in the first half of the channels of a flattened image `(C, H, W)`."""
    C, H, W = shape
    return (torch.arange(C) < C // 2).repeat_interleave(H * W)


class Coupling(Transform):
    """z_a = x_a and z_b = m(x_b; theta_b), theta_b = network(x_a, context), m increasing.

        log |det df/dx| = sum_(i in b) log m'(x_i; theta_i)

    Cost: one pass, either way. It is an autoregressive flow of two levels, a before b, that does not change a. The
    network starts at zero and m at the identity; the affine m, the default, has a smoothly bounded scale.

    Args:
        mask: True at the elements a, which are unchanged, `(D,)`.
        element: the family of m.
        hidden: widths of the network.
        context: C, the size of the context.

    Reference: Dinh et al., Density Estimation Using Real NVP, 2017.
    """

    stays: Tensor
    moves: Tensor

    def __init__(
        self, mask: Tensor, *, element: ElementMap | None = None, hidden: Sequence[int] = HIDDEN, context: int = 0
    ) -> None:
        super().__init__()
        if mask.ndim != 1 or mask.dtype != torch.bool or mask.all() or not mask.any():
            raise InputError(f"a mask must be booleans (D,), some True and some False, got {mask.tolist()}.")
        self.element, self.context = element or Affine(), context
        stays, moves = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.network = _dense((len(stays) + context, *hidden, len(moves) * self.element.parameters))
        self.register_buffer("stays", stays)
        self.register_buffer("moves", moves)

    def extra_repr(self) -> str:
        return f"unchanged={len(self.stays)}, mapped={len(self.moves)}, element={self.element}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        z, log_slopes = self.element.forward(x[..., self.moves], self._raw(x, context))
        return x.index_copy(-1, self.moves, z), log_slopes.sum(-1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        x, log_slopes = self.element.inverse(z[..., self.moves], self._raw(z, context))
        return z.index_copy(-1, self.moves, x), log_slopes.sum(-1)

    def _raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return the parameters of the mapped elements from the unchanged ones, `(..., len(b), P)`."""
        if x.shape[-1] != len(self.stays) + len(self.moves):
            raise InputError(f"this coupling is of {len(self.stays) + len(self.moves)} elements, got {tuple(x.shape)}.")
        inputs = x[..., self.stays]
        if self.context and context is not None:
            inputs = torch.cat([inputs, context.expand(*inputs.shape[:-1], -1)], dim=-1)
        raw: Tensor = self.network(inputs)
        return at_least_single(raw).unflatten(-1, (-1, self.element.parameters))


def _dense(widths: Sequence[int]) -> nn.Sequential:
    """Return fully connected layers with SiLU between them; the last one starts at zero."""
    linear = [nn.Linear(before, after) for before, after in pairwise(widths)]
    for parameter in linear[-1].parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*[layer for pair in linear for layer in (nn.SiLU(), pair)][1:])
