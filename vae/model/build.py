"""Build the model of a configuration and move it to a device."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

from vaebench.vae.config.run import Model
from vaebench.vae.flows import MAF, NSF, Inverse, RationalQuadratic, RealNVP, Transform
from vaebench.vae.flows.autoregressive import HIDDEN
from vaebench.vae.model import networks
from vaebench.vae.model.autoencoder import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.model.generative import GenerativeModel
from vaebench.vae.model.likelihoods import Likelihood

CONTEXT = 32

M = TypeVar("M", bound=GenerativeModel)


def build(config: Model, shape: tuple[int, ...], levels: int) -> GenerativeModel:
    """Build the model of a configuration for data of `shape` with `levels` values (0: continuous)."""
    if config.kind != "vae":
        build_flow = _coupling_flow if config.kind == "coupling" else _autoregressive_flow
        return FlowModel(build_flow(config, shape, config.hidden), shape, levels, kind=config.kind)
    return build_vae(config, shape, levels)


def build_vae(config: Model, shape: tuple[int, ...], levels: int) -> VAE:
    """Build the VAE of a configuration whose `kind` is vae."""
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
    prior = _coupling_flow(config, (K,)) if config.prior == "flow" else None
    posterior = Inverse(_autoregressive_flow(config, (K,), context=context)) if config.posterior == "iaf" else None
    return VAE(encoder, decoder, likelihood, K, prior_flow=prior, posterior_flow=posterior, context=context)


def _coupling_flow(config: Model, shape: tuple[int, ...], hidden: Sequence[int] = HIDDEN) -> Transform:
    if config.spline_bins:
        return NSF(shape, layers=config.flow_layers, bins=config.spline_bins, hidden=hidden)
    return RealNVP(shape, layers=config.flow_layers, hidden=hidden)


def _autoregressive_flow(
    config: Model, shape: tuple[int, ...], hidden: Sequence[int] = HIDDEN, context: int = 0
) -> Transform:
    element = RationalQuadratic(config.spline_bins) if config.spline_bins else None
    return MAF(math.prod(shape), layers=config.flow_layers, hidden=hidden, context=context, element=element)


def move_to_device(model: M, device: torch.device) -> M:
    """Move a model to the device that trains it; on a GPU, store the weights of convolutions channels last.

    Their outputs then have this layout too, whatever the layout of their inputs, and no kernel has to reorder them.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model
