"""Models: networks, likelihoods, the VAE, the flow as a model of its own."""

from vaebench.vae.model.autoencoder import LOGVAR_LIMIT, VAE
from vaebench.vae.model.build import build, move_to_device, require_memory
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.model.generative import GenerativeModel
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.model.own import digest_source

__all__ = [
    "LOGVAR_LIMIT",
    "VAE",
    "FlowModel",
    "GenerativeModel",
    "Likelihood",
    "build",
    "digest_source",
    "move_to_device",
    "require_memory",
]
