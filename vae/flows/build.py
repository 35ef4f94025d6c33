"""Flows of several layers, as the configuration names them: each takes data, or codes, to noise."""

from collections.abc import Sequence

import torch

from vaebench.vae.errors import InputError
from vaebench.vae.flows.autoregressive import HIDDEN, Autoregressive
from vaebench.vae.flows.coupling import Coupling, alternating, checkerboard
from vaebench.vae.flows.elements import Affine, ElementMap
from vaebench.vae.flows.normalisation import ActivationNorm
from vaebench.vae.flows.splines import RationalQuadratic
from vaebench.vae.flows.transform import Compose, Transform


def couplings(shape: tuple[int, ...], layers: int, bins: int, hidden: Sequence[int] = HIDDEN) -> Compose:
    """Return a normalisation before each of `layers` couplings and after the last, for flattened data of `shape`.

    Masks are a checkerboard for an image, else every other element, and the opposite in turn. Cost: `layers` passes,
    either way.
    """
    features = torch.Size(shape).numel()
    if features < 2:
        raise InputError(f"a coupling flow needs at least two elements to couple, got {features}.")
    mask = checkerboard((shape[0], shape[1], shape[2])) if len(shape) == 3 else alternating(features)
    masks = [~mask if i % 2 else mask for i in range(layers)]
    return _normalised(features, [Coupling(mask, element=_element(bins), hidden=hidden) for mask in masks])


def autoregressions(features: int, layers: int, bins: int, hidden: Sequence[int] = HIDDEN, context: int = 0) -> Compose:
    """Return a normalisation before each of `layers` autoregressive layers and after the last; orders take turns.

    Cost: forward `layers` passes, inverse `layers * features`.
    """
    order = torch.arange(features)
    orders = [order.flip(0) if i % 2 else order for i in range(layers)]
    return _normalised(
        features, [Autoregressive(order, element=_element(bins), hidden=hidden, context=context) for order in orders]
    )


def _element(bins: int) -> ElementMap:
    return RationalQuadratic(bins) if bins else Affine()


def _normalised(features: int, layers: Sequence[Transform]) -> Compose:
    pairs = [part for layer in layers for part in (ActivationNorm(features), layer)]
    return Compose(*pairs, ActivationNorm(features))
