"""Build the model of a configuration and move it to a device."""

import math

import torch

from vaebench.vae.config.run import Model
from vaebench.vae.flows import Inverse
from vaebench.vae.flows.build import autoregressions, couplings
from vaebench.vae.model import networks
from vaebench.vae.model.autoencoder import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.model.likelihoods import Likelihood

CONTEXT = 32


def build(config: Model, shape: tuple[int, ...], levels: int) -> VAE:
    """Build the model of a configuration for data of `shape` with `levels` values (0: continuous)."""
    layers, bins = config.flow_layers, config.spline_bins
    if config.kind == "coupling":
        return FlowModel(couplings(shape, layers, bins, config.hidden), shape, levels, kind=config.kind)
    if config.kind == "autoregressive":
        flow = autoregressions(math.prod(shape), layers, bins, config.hidden)
        return FlowModel(flow, shape, levels, kind=config.kind)
    likelihood = Likelihood(
        config.likelihood,
        shape,
        levels=levels,
        sigma=config.sigma,
        learn=config.learn_sigma,
        components=config.components,
    )
    K, context = config.latent, CONTEXT if config.posterior == "iaf" else 0
    encoder, decoder = networks.build(config, shape, likelihood.parameters_per_element, context)
    prior = couplings((K,), layers, bins) if config.prior == "flow" else None
    posterior = Inverse(autoregressions(K, layers, bins, context=context)) if config.posterior == "iaf" else None
    return VAE(encoder, decoder, likelihood, K, prior_flow=prior, posterior_flow=posterior, context=context)


def place(model: VAE, device: torch.device) -> VAE:
    """Move a model to the device that trains it; on a GPU the weights of convolutions lie channels last.

    Their outputs then lie so too, whatever the layout of their inputs, and no kernel has to reorder them.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model
