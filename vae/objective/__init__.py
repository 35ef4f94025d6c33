"""Objectives that training maximises, estimated from one draw of codes."""

from vaebench.vae.objective.named import beta_tcvae, beta_vae, capacity_vae, factor_vae, infovae, mmd_vae, tc_vae, vae
from vaebench.vae.objective.terms import Terms, elbo, terms
from vaebench.vae.objective.value import divergence, draw_negatives, value

__all__ = [
    "Terms",
    "beta_tcvae",
    "beta_vae",
    "capacity_vae",
    "divergence",
    "draw_negatives",
    "elbo",
    "factor_vae",
    "infovae",
    "mmd_vae",
    "tc_vae",
    "terms",
    "vae",
    "value",
]
