"""Draws and distributions with the interfaces of other libraries, computed by `reparam_kl`; they need torch alone.

FusedNormal     a `torch.distributions.Normal`
fuse_draw       a method like `z = model.reparameterize(mu, logvar)`, after a probe of what it does
fuse_moments    a distribution of packed moments, as in autoencoders for latent diffusion, after a probe of its class
halves          `h.chunk(2, dim)` whose gradients are joined without a copy
"""

from .draw import FusedDraw, fuse_draw
from .halves import halves
from .moments import FusedMoments, fuse_moments
from .torch_distributions import FusedNormal

__all__ = ["FusedDraw", "FusedMoments", "FusedNormal", "fuse_draw", "fuse_moments", "halves"]
