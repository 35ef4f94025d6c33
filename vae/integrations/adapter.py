"""What a library needs to be patched, and what holds a patched model's own methods meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from vaebench.kernels.adapters import FusedDraw
from vaebench.vae.errors import InputError

_HANDLE = "_patched"


@dataclass(frozen=True)
class Replacement:
    """One attribute of a model, or of a part of it, and what stands in its place."""

    owner: Any
    name: str
    substitute: Callable[..., Any]


@dataclass(frozen=True)
class Adapter:
    """How models of one library use the kernels.

    Attributes:
        looks_for: what `find` looks for, as a clause.
        find: returns the replacements for a model, none if the model is not of this library; it raises a ValueError of
            one sentence where it is, and does something else than the textbook.
    """

    looks_for: str
    find: Callable[[Any, Sequence[int]], list[Replacement]]


class Patched:
    """The replaced methods of one model; `restore()`, or the end of a `with` block, gives the model its own ones back.

    A copy of the model is patched too, with an object of its own: `Patched.of(copied)`.
    """

    def __init__(self, model: Any, replacements: list[Replacement]) -> None:
        self._model, self._replacements = model, replacements
        self._before = [vars(one.owner).get(one.name) for one in replacements]
        for one, before in zip(replacements, self._before, strict=True):
            if type(before) is type(one.substitute):
                raise InputError(
                    f"patch needs a model that is not patched, and the {type(one.owner).__name__} of this "
                    f"{type(model).__name__} is, as part of another model; restore() that one."
                )
        for one in replacements:
            vars(one.owner)[one.name] = one.substitute  # setattr would remove a submodule of this name from the weights
        vars(model)[_HANDLE] = self

    @staticmethod
    def of(model: Any) -> "Patched | None":
        """Return the object that holds a patched model's own methods, or None."""
        return vars(model).get(_HANDLE) if hasattr(model, "__dict__") else None

    @property
    def kl(self) -> Tensor | None:
        """KL(q(z|x) || N(0, I)) of each example in the latest draw of `reparameterize`, in nats, `(B,)`, or None.

        It is None too where the model itself asks for the KL of its draw, as on distributions.
        """
        draws = [one.substitute for one in self._replacements if isinstance(one.substitute, FusedDraw)]
        return draws[0].kl if draws else None

    def restore(self) -> None:
        """Give the model its own methods back; nothing happens if it has them already."""
        if Patched.of(self._model) is not self:
            return
        for one, before in zip(self._replacements, self._before, strict=True):
            if vars(one.owner).get(one.name) is not one.substitute:  # someone has set another one since
                continue
            del vars(one.owner)[one.name]
            if before is not None:
                vars(one.owner)[one.name] = before
        del vars(self._model)[_HANDLE]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
