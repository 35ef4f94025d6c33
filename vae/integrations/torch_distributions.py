"""Models on `torch.distributions`: their methods use `FusedNormal` where they have imported `Normal`."""

import types
from collections.abc import Sequence
from typing import Any

from torch import distributions, nn

from vaebench.kernels.adapters import FusedNormal
from vaebench.vae.integrations.adapter import Adapter, Replacement
from vaebench.vae.integrations.rebind import names_read, rebind_methods

# A method that asks for the class of a distribution could take the answer for another one.
_ASKS = {"isinstance", "issubclass", "type"}
# torch.distributions with another Normal: a class, since copies and pickles of a model refer to a class by its name.
Distributions = type(
    "Distributions",
    (),
    {name: value for name, value in vars(distributions).items() if not name.startswith("__")}
    | {"Normal": FusedNormal, "__module__": __name__},
)


def substitutes(function: types.FunctionType) -> dict[str, Any]:
    """Return the names by which a function reaches torch's Normal: the class, or the module that holds it."""
    (names, attributes), scope = names_read(function), function.__globals__
    if names & _ASKS:
        return {}
    found: dict[str, Any] = {name: FusedNormal for name in names if scope.get(name) is distributions.Normal}
    if "Normal" in attributes:
        found |= {name: Distributions for name in names if scope.get(name) is distributions}
    return found


def replace_normals(model: Any, package: str = "") -> list[Replacement]:
    """Return replacements for all methods of a model and its parts, of classes in a package, that build a Normal."""
    parts = (
        [model, *(part for part in model.modules() if part is not model)] if isinstance(model, nn.Module) else [model]
    )
    return [one for part in parts for one in rebind_methods(part, substitutes, package)]


def _find(model: Any, shape: Sequence[int]) -> list[Replacement]:
    return replace_normals(model)


ADAPTER = Adapter("methods that call torch.distributions.Normal, imported by name", _find)
