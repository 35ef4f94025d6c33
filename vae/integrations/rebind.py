"""Copies of functions that read other globals: how one model uses a substitute of what its library imports by name."""

import dis
import types
from collections.abc import Callable, Iterator
from typing import Any

from vaebench.vae.integrations.adapter import Replacement


class Rebound:
    """A method of a model whose code is the class's own, with substitutes for some of the names that it reads.

    Only this model is concerned: the library's module keeps what it has imported.
    """

    def __init__(self, owner: Any, method: str, substitutes: dict[str, Any]) -> None:
        self._owner, self._method, self._substitutes = owner, method, substitutes
        self._function = _rebind(_functions(owner)[method], substitutes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self._owner, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model builds its functions anew, since these cannot be pickled."""
        return _empty, (), {"owner": self._owner, "method": self._method, "substitutes": self._substitutes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def rebind_methods(
    owner: Any, substitutes_for: Callable[[types.FunctionType], dict[str, Any]], package: str = ""
) -> list[Replacement]:
    """Return replacements for the methods of an object, defined in a package, that read substituted names.

    `substitutes_for(function)` returns the substitutes of a function by name.
    """
    found = []
    for name, function in _functions(owner).items():
        if function.__module__.startswith(package) and (substitutes := substitutes_for(function)):
            found.append(Replacement(owner, name, Rebound(owner, name, substitutes)))
    return found


def names_read(function: types.FunctionType) -> tuple[set[str], set[str]]:
    """Return the names of the globals and of the attributes that a function reads, inner functions included."""

    def walk(code: types.CodeType) -> Iterator[dis.Instruction]:
        yield from dis.get_instructions(code)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from walk(constant)

    read = [(one.opname, one.argval) for one in walk(function.__code__)]
    attributes = {name for operation, name in read if operation in ("LOAD_ATTR", "LOAD_METHOD")}
    return {name for operation, name in read if operation == "LOAD_GLOBAL"}, attributes


def _empty() -> Rebound:
    return object.__new__(Rebound)


def _functions(owner: Any) -> dict[str, types.FunctionType]:
    """Return the methods of an object's class by name, without properties and static methods."""
    members: dict[str, Any] = {}
    for base in reversed(type(owner).__mro__):
        members |= vars(base)
    return {name: value for name, value in members.items() if isinstance(value, types.FunctionType)}


def _rebind(function: types.FunctionType, substitutes: dict[str, Any]) -> types.FunctionType:
    # Without its module's name, torch.compile looks names up in these globals and not in the module.
    scope = {name: value for name, value in function.__globals__.items() if name != "__name__"} | substitutes
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
