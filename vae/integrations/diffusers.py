"""Autoencoders of diffusers: the posterior in what `encode` returns, whose class is probed beforehand."""

import sys
from collections.abc import Sequence
from typing import Any

from vaebench.vae.integrations.adapter import Adapter, Replacement
from vaebench.vae.integrations.encode import FusedEncode


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    homes = [
        base.__module__ for base in type(model).__mro__ if base.__module__.startswith("diffusers.models.autoencoders")
    ]
    if not homes or not callable(getattr(model, "encode", None)):
        return []
    for home in homes:
        for name, value in vars(sys.modules[home]).items():
            if name.endswith("DiagonalGaussianDistribution"):
                return [Replacement(model, "encode", FusedEncode(model, value))]
    raise ValueError(
        f"patch looked for a diffusers autoencoder whose file uses DiagonalGaussianDistribution, "
        f"and {type(model).__name__} has another posterior"
    )


ADAPTER = Adapter("an autoencoder of diffusers", _find)
