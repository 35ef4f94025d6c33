"""Models and modules of scvi-tools: their encoders draw from a `FusedNormal`, whose KL their losses then ask for."""

from collections.abc import Sequence
from typing import Any

from vaebench.vae.integrations.adapter import Adapter, Replacement
from vaebench.vae.integrations.torch_distributions import replace_normals


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    if not type(model).__module__.startswith("scvi."):
        return []
    return replace_normals(getattr(model, "module", model), "scvi.")


ADAPTER = Adapter("a model or module of scvi-tools", _find)
