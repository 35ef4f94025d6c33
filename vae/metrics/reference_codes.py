"""Codes whose worth is known, to read a score against: what it can reach, and what it gives for nothing."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TURN = 0.23


def references(
    sizes: Sequence[int], latents: int, *, generator: torch.Generator | None = None
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions from factors `(N, F)`, each from 0 to its size, to codes `(N, F)` or `(N, latents)`.

    perfect: the factors themselves, in units of their standard deviations, as the codes of a prior N(0, I) would be:
    SAP depends on it. rotated: these, turned by 0.23 in every plane of two at once, so that none has a latent of its
    own. constant: zeros. random: normals, whatever the factors are.

    Example:
        >>> codes = references((2, 3), latents=4)
        >>> codes["perfect"](torch.tensor([[1, 2]])), codes["constant"](torch.tensor([[1, 2]]))
        (tensor([[1.0000, 1.2247]]), tensor([[0., 0., 0., 0.]]))
    """
    middle = torch.tensor([(size - 1) / 2 for size in sizes])
    spread = torch.tensor([math.sqrt(max(size**2 - 1, 1) / 12) for size in sizes])
    turn = torch.ones(len(sizes), len(sizes)).triu(1)
    rotation = torch.matrix_exp(TURN * (turn - turn.T))

    def perfect(factors: Tensor) -> Tensor:
        return (factors - middle.to(factors.device)) / spread.to(factors.device)

    return {
        "perfect": perfect,
        "rotated": lambda factors: perfect(factors) @ rotation.to(factors.device),
        "constant": lambda factors: torch.zeros(len(factors), latents, device=factors.device),
        "random": lambda factors: torch.randn(len(factors), latents, generator=generator).to(factors.device),
    }
