"""Fields that know their sentence and their range: what configuration records are made of."""

import dataclasses
import json
import math
import operator
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaebench.vae.errors import InputError

Plain = str | int | float | bool

_BOUNDS = (("at_least", ">=", operator.ge), ("above", ">", operator.gt), ("at_most", "<=", operator.le))


def knob(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: tuple[Plain, ...] | None = None,
    place: bool = False,
) -> Any:
    """Declare a field with its sentence and its range; both end up in the error message and in `describe`.

    A `place` says where something is and not what it is: a run whose place has changed is still that run.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "choices": choices}
    return dataclasses.field(default=default, metadata={"doc": doc, "place": place, **bounds})


@dataclass(frozen=True)
class Section:
    """A record whose fields are typed, bounded and documented by `knob`."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            path = f"{type(self).__name__.lower()}.{flat_name(field)}"
            value = _typed(path, getattr(self, field.name), hints[field.name])
            _check_bounds(path, value, field.metadata)
            object.__setattr__(self, field.name, value)


def flat_name(field: "dataclasses.Field[Any]") -> str:
    """Return the name outside Python: `lambda_` is `lambda`."""
    return field.name.rstrip("_")


def plain(value: Any) -> Plain:
    """Return the value as a tracker takes it: a tuple becomes `256,256`, an empty one `auto`."""
    if isinstance(value, tuple):
        return ",".join(str(entry) for entry in value) or "auto"
    kept: Plain = value
    return kept


def toml(value: Any) -> str:
    """Return the value as TOML writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(entry) for entry in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _typed(path: str, value: object, hint: Any) -> object:
    """Return the value in the field's type: text is parsed, an int serves as a float, a list as a tuple."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = [] if value in ("", "auto") else value.split(",")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, value, f"a list of {item.__name__}")
        return tuple(_typed(path, entry, item) for entry in value)
    if isinstance(value, str) and hint is not str:
        return _parse(path, value, hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _wrong_type(path, value, hint.__name__)
    return value


def _parse(path: str, text: str, hint: type) -> object:
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.strip().lower()]
        return hint(text)
    except (ValueError, KeyError):
        raise _wrong_type(path, text, "true or false" if hint is bool else hint.__name__) from None


def _wrong_type(path: str, value: object, required: str) -> InputError:
    return InputError(f"{path} must be {required}, got {value!r}.")


def _check_bounds(path: str, value: object, bounds: Mapping[str, Any]) -> None:
    """Raise one sentence unless every number is finite and within the declared range."""
    for entry in value if isinstance(value, tuple) else (value,):
        if isinstance(entry, float) and not math.isfinite(entry):
            raise InputError(f"{path} must be finite, got {entry}.")
        if bounds["choices"] is not None and entry not in bounds["choices"]:
            raise InputError(f"{path} must be one of {', '.join(map(str, bounds['choices']))}, got {entry!r}.")
        for name, sign, holds in _BOUNDS:
            bound = bounds[name]
            if bound is not None and not holds(entry, bound):
                raise InputError(f"{path} must be {sign} {bound:g}, got {entry!r}: {bounds['doc']}")


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """Read what a command line's `--set` was given, `NAME=VALUE` each."""
    for text in texts:
        if "=" not in text:
            raise InputError(f"--set takes NAME=VALUE, as in train.epochs=50; got {text!r}.")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}
