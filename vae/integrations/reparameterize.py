"""Models with a method `reparameterize(mu, logvar)`, whatever their library."""

from collections.abc import Sequence
from typing import Any

from vaebench.kernels.adapters import fuse_draw
from vaebench.vae.integrations.adapter import Adapter, Replacement

METHODS = ("reparameterize", "reparametrize", "reparameterise", "reparametrise")


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    method = next((name for name in METHODS if callable(getattr(model, name, None))), None)
    return [] if method is None else [Replacement(model, method, fuse_draw(model, method, shape=shape))]


ADAPTER = Adapter("a method reparameterize(mu, logvar)", _find)
