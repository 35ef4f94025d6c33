"""What training maximises, from one draw of codes."""

from vaebench.vae.objective.named import beta_tcvae, beta_vae, capacity_vae, factor_vae, infovae, mmd_vae, tc_vae, vae
from vaebench.vae.objective.terms import Terms, elbo, terms
from vaebench.vae.objective.value import divergence, others, value

__all__ = [
    "Terms",
    "beta_tcvae",
    "beta_vae",
    "capacity_vae",
    "divergence",
    "elbo",
    "factor_vae",
    "infovae",
    "mmd_vae",
    "others",
    "tc_vae",
    "terms",
    "vae",
    "value",
]
