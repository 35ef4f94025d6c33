"""Models of pythae: the draw `_sample_gauss(mu, std)`, and the KL of `loss_function` where it is the textbook's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vaebench.kernels.adapters import FusedDraw, fuse_draw
from vaebench.kernels.adapters.closed_form import elementwise_kl
from vaebench.kernels.adapters.probe import ROWS, fixed_inputs, pinned, unchanged
from vaebench.vae.integrations.adapter import Adapter, Replacement

DRAW, LOSS = "_sample_gauss", "loss_function"


class FusedLoss:
    """`loss_function(recon_x, x, mu, log_var, z)` with the KL of the draw, in models whose loss is

        loss = mean_b (reconstruction_b + weight KL_b),    weight = model.beta, or 1

    The model's own function is called with mu = log_var = 0, where its KL is 0 and costs nothing.
    """

    def __init__(self, model: Any, draw: FusedDraw) -> None:
        self._model, self._draw, self._original = model, draw, getattr(model, LOSS)

    def __call__(self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        kl = self._draw.kl_of(mu, z)
        if kl is None:
            return self._original(recon_x, x, mu, log_var, z)
        zero = mu.new_zeros(1, 1)
        _, reconstruction, _ = self._original(recon_x, x, zero, zero, z)
        mean = kl.mean()
        return reconstruction + _weight(self._model) * mean, reconstruction, mean


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    if not callable(getattr(model, DRAW, None)) or not callable(getattr(model, LOSS, None)):
        return []
    draw = fuse_draw(model, DRAW, shape=shape)
    fits = all(_has_textbook_loss(model, training, beta) for training in (True, False) for beta in (1.0, 3.0))
    return [Replacement(model, DRAW, draw), *([Replacement(model, LOSS, FusedLoss(model, draw))] if fits else [])]


def _weight(model: Any) -> float:
    return getattr(model, "beta", 1.0)


def _has_textbook_loss(model: Any, training: bool, beta: float) -> bool:
    """Return whether the loss is that of `FusedLoss` on fixed inputs; a model with another one keeps it."""
    mu, logvar = (moments.double() for moments in fixed_inputs((8,)))
    x, recon, zero = (mu.new_full(shape, value) for shape, value in (((ROWS, 3), 0.2), ((ROWS, 3), 0.7), ((1, 1), 0.0)))
    kl = elementwise_kl(mu, logvar).sum(-1).mean()
    try:
        with unchanged(model, training=training), pinned():
            if hasattr(model, "beta"):
                model.beta = beta
            loss, reconstruction, own_kl = getattr(model, LOSS)(recon, x, mu, logvar, mu)
            bare, again, none = getattr(model, LOSS)(recon, x, zero, zero, mu)
            pairs = [(loss, reconstruction + _weight(model) * kl), (own_kl, kl), (bare, reconstruction)]
            return all(
                torch.allclose(*pair) for pair in (*pairs, (again, reconstruction), (none, torch.zeros_like(none)))
            )
    except Exception:  # another signature, or images where these are rows
        return False


ADAPTER = Adapter("pythae's _sample_gauss(mu, std) and loss_function", _find)
