"""Factors, and codes made of them."""

import torch

from vaebench.vae.data import sprites

SIZES = tuple(sprites.SIZES.values())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(sizes=SIZES, count=10_000, seed=0):
    """Return independent factors, `(count, F)`."""
    generator = seeded(seed)
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)


def mixed(factors, latents, seed=1):
    """Return codes that know something of every factor."""
    weight = torch.randn(factors.shape[1], latents, generator=seeded(seed))
    return factors.float() @ weight + 0.5 * torch.randn(len(factors), latents, generator=seeded(seed + 1))
