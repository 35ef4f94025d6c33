"""Reference codes with known scores: the highest that a score can reach, and the lowest, of uninformative codes."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ANGLE = 0.23


def reference_codes(
    sizes: Sequence[int], latents: int, *, generator: torch.Generator | None = None
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions from factors `(N, F)`, with values from 0, to codes `(N, F)` or `(N, latents)`.

    perfect: the factors themselves, standardised like the codes of a prior N(0, I), since SAP depends on the scale.
    rotated: the perfect codes rotated by 0.23 in the planes of all pairs at once, so that every latent mixes factors.
    constant: zeros. random: normals, independent of the factors.

    Example:
        >>> codes = reference_codes((2, 3), latents=4)
        >>> codes["perfect"](torch.tensor([[1, 2]])), codes["constant"](torch.tensor([[1, 2]]))
        (tensor([[1.0000, 1.2247]]), tensor([[0., 0., 0., 0.]]))
    """
    middle = torch.tensor([(size - 1) / 2 for size in sizes])
    spread = torch.tensor([math.sqrt(max(size**2 - 1, 1) / 12) for size in sizes])
    planes = torch.ones(len(sizes), len(sizes)).triu(1)
    rotation = torch.matrix_exp(ANGLE * (planes - planes.T))

    def perfect(factors: Tensor) -> Tensor:
        return (factors - middle.to(factors.device)) / spread.to(factors.device)

    return {
        "perfect": perfect,
        "rotated": lambda factors: perfect(factors) @ rotation.to(factors.device),
        "constant": lambda factors: torch.zeros(len(factors), latents, device=factors.device),
        "random": lambda factors: torch.randn(len(factors), latents, generator=generator).to(factors.device),
    }
