"""Build the model of a configuration and move it to a device."""

import math
import os
from collections.abc import Sequence
from typing import TypeVar

import torch

from vaebench.vae.config.model import OWN_NONE, Model
from vaebench.vae.errors import InputError, explain_memory, sentence
from vaebench.vae.flows import MAF, NSF, Inverse, RationalQuadratic, RealNVP, Transform
from vaebench.vae.flows.autoregressive import HIDDEN
from vaebench.vae.model import networks
from vaebench.vae.model.autoencoder import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.model.generative import GenerativeModel
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.model.own import Pair, build_own, require_shapes

CONTEXT = 32

M = TypeVar("M", bound=GenerativeModel)


def build(config: Model, shape: tuple[int, ...], levels: int) -> GenerativeModel:
    """Build the model of a configuration for data of `shape` with `levels` values (0: continuous)."""
    if config.build != OWN_NONE:
        built = build_own(config.build, config, shape)
        model = built if isinstance(built, GenerativeModel) else _surround(built, config, shape, levels)
        require_shapes(config.build, model, shape)
        return model
    if config.kind != "vae":
        build_flow = _coupling_flow if config.kind == "coupling" else _autoregressive_flow
        return FlowModel(build_flow(config, shape, config.hidden), shape, levels, kind=config.kind)
    return build_vae(config, shape, levels)


def build_vae(config: Model, shape: tuple[int, ...], levels: int) -> VAE:
    """Build the VAE of a configuration whose `kind` is vae."""
    return _surround(_networks(config, _likelihood(config, shape, levels)), config, shape, levels)


def _surround(networks: Pair, config: Model, shape: tuple[int, ...], levels: int) -> VAE:
    """Return the VAE of an encoder and a decoder, with the likelihood, the prior and the flows of the configuration."""
    likelihood = _likelihood(config, shape, levels)
    K, context = config.latent, _context(config)
    prior = _coupling_flow(config, (K,)) if config.prior == "flow" else None
    posterior = Inverse(_autoregressive_flow(config, (K,), context=context)) if config.posterior == "iaf" else None
    return VAE(*networks, likelihood, K, prior_flow=prior, posterior_flow=posterior, context=context)


def require_memory(config: Model, shape: tuple[int, ...], levels: int) -> None:
    """Refuse networks whose training needs more memory than this machine has; they are counted, not allocated.

    Training with Adam keeps four numbers for each parameter: its value, its gradient and two moments. Flows are left
    out, so that the figure is a lower bound.
    """
    if config.kind != "vae" or config.build != OWN_NONE:
        return
    try:
        with torch.device("meta"):
            pair = _networks(config, _likelihood(config, shape, levels))
    except RuntimeError as error:  # a size beyond 2^63
        raise InputError(explain_memory(error) or sentence(error)) from error
    parameters = sum(parameter.numel() for network in pair for parameter in network.parameters())
    required, available = 4 * 4 * parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if required > available:
        raise InputError(
            f"a model of {parameters:.3g} parameters needs at least {required / 1e9:,.0f} GB to be trained, and this "
            f"machine has {available / 1e9:,.0f} GB; choose a smaller model.latent or model.hidden."
        )


def _likelihood(config: Model, shape: tuple[int, ...], levels: int) -> Likelihood:
    return Likelihood(
        config.likelihood,
        shape,
        levels=levels,
        sigma=config.sigma,
        learn=config.learn_sigma,
        components=config.components,
    )


def _context(config: Model) -> int:
    """Return how many outputs of the encoder the posterior flow depends on."""
    return CONTEXT if config.posterior == "iaf" else 0


def _networks(config: Model, likelihood: Likelihood) -> Pair:
    return networks.build(config, likelihood.shape, likelihood.parameters_per_element, _context(config))


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
