"""Models of MultiVae: `rsample_from_gaussian` and `kl_divergence`, which each model's file has imported by name."""

import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vaebench.kernels import reparam_kl
from vaebench.kernels.adapters.closed_form import can_draw, elementwise_kl, holds_everywhere, still_serves
from vaebench.kernels.adapters.probe import find_scale, fixed_inputs
from vaebench.vae.integrations.adapter import Adapter, Replacement
from vaebench.vae.integrations.rebind import names_read, rebind_methods
from vaebench.vae.integrations.torch_distributions import substitutes

HOME = "multivae.models.base.base_utils"
DRAW, KL = "rsample_from_gaussian", "kl_divergence"


class FusedGaussians:
    """The two functions for one model: the KL of the latest draw is handed out once, to whom asks for it."""

    def __init__(self) -> None:
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def draw(self, mu: Tensor, log_var: Tensor, N: int = 1, return_mean: bool = False, flatten: bool = False) -> Tensor:
        """Return one code for each row; several codes, and means, are the library's own."""
        if N != 1 or return_mean or not can_draw(mu, log_var):
            return _library(DRAW)(mu, log_var, N, return_mean, flatten)
        z, kl = reparam_kl(mu, log_var, reduction="none")
        self._latest = mu, log_var, kl
        return z

    def kl(self, mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
        """Return the KL between two Gaussians, summed over the last axis."""
        latest, self._latest = self._latest, None
        is_standard = holds_everywhere(prior_mean, 0.0) and holds_everywhere(prior_log_var, 0.0)
        if is_standard and latest is not None and latest[0] is mean and latest[1] is log_var:
            kl = latest[2]
            if still_serves(kl, mean, log_var):
                return kl.sum(-1)
        return elementwise_kl(mean, log_var, prior_mean, prior_log_var).sum(-1)

    def __getstate__(self) -> dict[str, Any]:
        return {"_latest": None}


def _library(name: str) -> Any:
    return getattr(sys.modules[HOME], name)


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    if not type(model).__module__.startswith("multivae."):
        return []
    _require_the_textbook()
    fused = FusedGaussians()

    def names(function: types.FunctionType) -> dict[str, Any]:
        (read, _), scope = names_read(function), function.__globals__
        ours = {DRAW: fused.draw, KL: fused.kl}
        mine = {name: ours[name] for name in ours if name in read and scope.get(name) is _library(name)}
        return mine | substitutes(function)

    return rebind_methods(model, names, "multivae.")


def _require_the_textbook() -> None:
    scale, _ = find_scale(_library(DRAW), (8,), None)
    (mu, logvar), (prior_mu, prior_logvar) = fixed_inputs((8,)), reversed(fixed_inputs((8,)))
    expected = elementwise_kl(mu, logvar, prior_mu, prior_logvar).sum(-1)
    if scale != "logvar" or not torch.allclose(_library(KL)(mu, logvar, prior_mu, prior_logvar), expected, 1e-4, 1e-4):
        raise ValueError(
            f"{HOME} cannot be replaced: its {DRAW} or its {KL} is not that of a Gaussian with mu and log_var"
        )


ADAPTER = Adapter("a model of MultiVae", _find)
