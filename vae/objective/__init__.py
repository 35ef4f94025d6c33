"""Objectives that training maximises, estimated from draws of codes. Each family is one file and one line below."""

from vaebench.vae.config.run import register
from vaebench.vae.objective.capacity import Capacity
from vaebench.vae.objective.factor_vae import FactorVAE
from vaebench.vae.objective.infovae import InfoVAE
from vaebench.vae.objective.iwae import IWAE
from vaebench.vae.objective.named import beta_tcvae, beta_vae, capacity_vae, factor_vae, infovae, mmd_vae, tc_vae, vae
from vaebench.vae.objective.tc_vae import TCVAE
from vaebench.vae.objective.terms import elbo, terms
from vaebench.vae.objective.value import draw_negatives, value
from vaebench.vae.prob.terms import Terms

register(InfoVAE)
register(TCVAE)
register(FactorVAE)
register(Capacity)
register(IWAE)

__all__ = [
    "IWAE",
    "TCVAE",
    "Capacity",
    "FactorVAE",
    "InfoVAE",
    "Terms",
    "beta_tcvae",
    "beta_vae",
    "capacity_vae",
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
