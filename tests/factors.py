"""Random factors, and codes that mix them."""

import torch

from vaebench.vae.data import sprites

SIZES = tuple(sprites.SIZES.values())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_factors(sizes=SIZES, count=10_000, seed=0):
    """Return independent factors, `(count, F)`."""
    generator = seeded(seed)
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)


def mix_factors(factors, latents, seed=1):
    """Return codes in which every latent depends on every factor."""
    weight = torch.randn(factors.shape[1], latents, generator=seeded(seed))
    return factors.float() @ weight + 0.5 * torch.randn(len(factors), latents, generator=seeded(seed + 1))
