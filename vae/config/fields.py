"""Fields of configuration records: each declares its sentence, its range and when it matters, for all its readers."""

import dataclasses
import json
import math
import operator
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from vaebench.vae.errors import InputError

Plain = str | int | float | bool
Stack = Literal["own", "shared"]
Predicate = Callable[[Any], bool]  # of a Run, whose file imports this one

_BOUNDS = (("at_least", ">=", operator.ge), ("above", ">", operator.gt), ("at_most", "<=", operator.le))


def field(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    used: Predicate | None = None,
    stack: Stack | None = None,
    location: bool = False,
) -> Any:
    """Declare a setting. Its type annotation declares its choices, as a `Literal`.

    Args:
        doc: one sentence, for error messages and `describe`.
        at_least, above, at_most: the range of each number.
        used: whether the setting has an effect in a Run; always, if None.
        stack: `own` if models that `fit_many` trains together may differ in it, `shared` if they must agree. If None,
            the section decides; without its decision a stack needs the default.
        location: it says where data lie; runs that differ only in locations are the same run.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    metadata = {"doc": doc, **bounds, "used": used, "stack": stack, "location": location}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section:
    """A record whose fields are typed, bounded and documented by `field`."""

    stack: ClassVar[Stack | None] = None
    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        section: type = type(self)
        hints = _read_types(section)
        for declared in dataclasses.fields(self):
            path = f"{self.section or type(self).__name__.lower()}.{flat_name(declared)}"
            value = _convert(path, getattr(self, declared.name), hints[declared.name])
            _check_bounds(path, value, declared.metadata)
            object.__setattr__(self, declared.name, value)


@cache
def _read_types(section: type) -> dict[str, Any]:
    """Return the types of a record's fields. To evaluate the annotations takes longer than to check the values."""
    return typing.get_type_hints(section)


def flat_name(field: "dataclasses.Field[Any]") -> str:
    """Return the name outside Python: `lambda_` is `lambda`."""
    return field.name.rstrip("_")


def to_plain(value: Any) -> Plain:
    """Convert a value for a tracker: a tuple becomes `256,256`, an empty one `auto`."""
    if isinstance(value, tuple):
        return ",".join(str(entry) for entry in value) or "auto"
    plain: Plain = value
    return plain


def to_toml_value(value: Any) -> str:
    """Write a value in the syntax of TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(to_toml_value(entry) for entry in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON may hold it, TOML may not
    return repr(value)


def _convert(path: str, value: object, hint: Any) -> object:
    """Return the value in the field's type: text is parsed, an int serves as a float, a list as a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        value = _convert(path, value, type(arguments[0]))
        if value not in arguments:
            raise InputError(f"{path} must be one of {', '.join(map(str, arguments))}, got {value!r}.")
        return value
    if origin is tuple:
        item = arguments[0]
        if isinstance(value, str):
            value = [] if value in ("", "auto") else value.split(",")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, value, f"a list of {item.__name__}")
        return tuple(_convert(path, entry, item) for entry in value)
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


def _check_bounds(path: str, value: object, declared: Mapping[str, Any]) -> None:
    """Raise one sentence unless every number is finite and within the declared range."""
    for entry in value if isinstance(value, tuple) else (value,):
        if isinstance(entry, float) and not math.isfinite(entry):
            raise InputError(f"{path} must be finite, got {entry}.")
        for name, sign, holds in _BOUNDS:
            bound = declared[name]
            if bound is not None and not holds(entry, bound):
                raise InputError(f"{path} must be {sign} {bound:g}, got {entry!r}: {declared['doc']}")
