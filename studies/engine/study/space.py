"""The search space of a study: named presets and TOML files, drawn from with Optuna.

A space file looks like a config file. A table gives a range or a choice, and a plain value holds a setting:

    [model]
    latent = { low = 2, high = 32, log = true }
    [objective]
    beta = { low = 0.1, high = 10.0, log = true }
    divergence = { choices = ["mmd", "kl"] }
    [train]
    epochs = 30
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from vaebench.vae.config.fields import Plain, to_plain
from vaebench.vae.config.run import Run, read_toml
from vaebench.vae.config.unused import unused
from vaebench.vae.data import Splits, load
from vaebench.vae.errors import InputError
from vaebench.vae.model.build import build, require_memory
from vaebench.vae.model.own import digest_source

LATENT = {"low": 2, "high": 32, "log": True}
BETA = {"low": 0.1, "high": 10.0, "log": True}
ALPHA = {"low": 0.0, "high": 1.0}
LAMBDA = {"low": 1.0, "high": 1000.0, "log": True}
RATE = {"low": 5e-4, "high": 2e-2, "log": True}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {
        "model": {"latent": LATENT},
        "objective": {"beta": BETA, "alpha": ALPHA, "lambda": LAMBDA},
        "train": {"learning_rate": RATE},
    },
    "infovae": {
        "model": {"latent": LATENT},
        "objective": {"alpha": ALPHA, "lambda": LAMBDA, "beta": 1.0},
        "train": {"learning_rate": RATE},
    },
    "beta": {"model": {"latent": LATENT}, "objective": {"beta": BETA, "alpha": 0.0, "lambda": 1.0}},
    "latent": {"model": {"latent": LATENT}, "objective": {"beta": 1.0, "alpha": 0.0, "lambda": 1.0}},
}

WEIGHTS = ("objective.beta", "objective.alpha", "objective.lambda")
RANGE_KEYS = {"low", "high", "log"}
Point = dict[str, Plain]


@dataclass(frozen=True)
class Dimension:
    """One setting that varies: all numbers from `low` to `high`, or one of `choices`."""

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Plain, ...] = ()

    @property
    def positive(self) -> bool:
        """Whether every value is a number above zero, so that its logarithm exists."""
        return not self.choices and self.low > 0

    @property
    def size(self) -> float:
        """Return the number of values."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if isinstance(self.low, int) else math.inf

    def suggest(self, trial: optuna.Trial) -> Plain:
        """Draw a value."""
        if self.choices:
            choice: Any = trial.suggest_categorical(self.name, self.choices)
            value: Plain = choice
            return value
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def restore_type(self, value: Any) -> Plain:
        """Return a value as `suggest` drew it, from a table that holds integers as other numbers."""
        number: Plain = int(value) if isinstance(self.low, int) and not self.choices else value
        return next((choice for choice in self.choices if choice == value), number)

    def grid(self, count: int) -> tuple[Plain, ...]:
        """Return `count` values from end to end, evenly spaced (in the logarithm, if `log`), or all choices."""
        if self.choices:
            return self.choices
        if count == 1:
            return (self.low,)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inner = [low + i / (count - 1) * (high - low) for i in range(1, count - 1)]
        values = [self.low, *(math.exp(value) if self.log else value for value in inner), self.high]
        return tuple(dict.fromkeys(round(value) if isinstance(self.low, int) else value for value in values))

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        kind = "integers" if isinstance(self.low, int) else "numbers"
        return f"{self.low:g} to {self.high:g}, {kind}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """The dimensions of a study, and the settings that it holds constant."""

    name: str
    dimensions: tuple[Dimension, ...]
    constants: Point = field(default_factory=dict)

    def drop(self, names: Collection[str], why: str = "--set fixes") -> "Space":
        """Return the space without some settings; `why` says in the error why they are dropped."""
        dimensions = tuple(dimension for dimension in self.dimensions if dimension.name not in names)
        if not dimensions:
            raise InputError(f"space {self.name} must keep a setting that varies; {why} {', '.join(names)}.")
        constants = {name: value for name, value in self.constants.items() if name not in names}
        return dataclasses.replace(self, dimensions=dimensions, constants=constants)

    def suggest(self, trial: optuna.Trial) -> Point:
        """Draw one value for each dimension."""
        return {dimension.name: dimension.suggest(trial) for dimension in self.dimensions}

    @property
    def coarsest(self) -> int:
        """The number of points of the coarsest grid: two values of each range, and all choices."""
        return math.prod(len(dimension.grid(2)) for dimension in self.dimensions)

    def grid(self, budget: int) -> list[Point]:
        """Return the finest grid of at most `budget` points with equally many values on every dimension, at least 2."""
        axes = [dimension.grid(2) for dimension in self.dimensions]
        for count in range(3, budget + 1):
            finer = [dimension.grid(count) for dimension in self.dimensions]
            if math.prod(map(len, finer)) > budget:
                break
            axes = finer
        return self._combine(axes)

    def _combine(self, axes: Sequence[Sequence[Plain]]) -> list[Point]:
        names = [dimension.name for dimension in self.dimensions]
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]

    def points(self, most: int) -> list[Point] | None:
        """Return every point of a space of whole numbers and choices, None where it is none or has more than `most`."""
        sizes = [dimension.size for dimension in self.dimensions]
        if math.prod(sizes) > most:
            return None
        return self._combine(
            [dimension.choices or range(int(dimension.low), int(dimension.high) + 1) for dimension in self.dimensions]
        )

    def is_point(self, params: Mapping[str, Any]) -> bool:
        """Whether there is a value for every dimension: a trial that is killed early has drawn only some."""
        return all(dimension.name in params for dimension in self.dimensions)

    def to_json(self) -> dict[str, Any]:
        """Return the space in plain values, to be stored with the study."""
        dimensions = [dataclasses.asdict(dimension) for dimension in self.dimensions]
        return {"name": self.name, "dimensions": dimensions, "constants": self.constants}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Space":
        """Build a space from `to_json`."""
        dimensions = [Dimension(**{**entry, "choices": tuple(entry["choices"])}) for entry in values["dimensions"]]
        return cls(values["name"], tuple(dimensions), dict(values["constants"]))

    @classmethod
    def from_tables(cls, name: str, tables: Mapping[str, Any]) -> "Space":
        """Build a space from `{"model": {"latent": {"low": 2, "high": 32}}}`."""
        dimensions: list[Dimension] = []
        constants: Point = {}
        for section, table in tables.items():
            if not isinstance(table, dict):
                raise InputError(
                    f"space {name} has {section!r} outside any table; write it under one such as [objective]."
                )
            for key, value in table.items():
                if isinstance(value, dict):
                    dimensions.append(_read_dimension(name, f"{section}.{key}", value))
                else:
                    constants[f"{section}.{key}"] = _require_constant(name, f"{section}.{key}", value)
        if not dimensions:
            raise InputError(f"space {name} must vary at least one setting, as in latent = {{ low = 2, high = 32 }}.")
        return cls(name, tuple(dimensions), constants)

    def __str__(self) -> str:
        width = max(map(len, [*(dimension.name for dimension in self.dimensions), *self.constants]))
        rows = [f"{dimension.name:<{width}}  {dimension}" for dimension in self.dimensions]
        rows += [f"{name:<{width}}  {value} (held)" for name, value in self.constants.items()]
        return "\n".join(rows)


def load_space(text: str) -> Space:
    """Return a preset by its name, or read a file."""
    if text in PRESETS:
        return Space.from_tables(text, PRESETS[text])
    path = Path(text)
    if not path.suffix and not path.exists():
        raise InputError(f"there is no space {text!r}; choose from {', '.join(PRESETS)}, or give a TOML file.")
    return Space.from_tables(path.stem, read_toml(path, "space"))


def check_space(space: Space, base: Run, raw: Splits) -> None:
    """Refuse a space with a point that is no valid run on these data.

    Every bound of a run is monotone in each setting, alpha + lambda - 1 >= 0 included. So it suffices to check the
    corner of all lowest and the corner of all highest values, under every combination of choices.
    """
    fixed = [dimension.name for dimension in space.dimensions if dimension.name.startswith(("data.", "eval."))]
    if fixed:
        raise InputError(f"space {space.name} varies {fixed[0]}, and figures of different data do not compare.")
    if any(dimension.name == "model.build" for dimension in space.dimensions):
        raise InputError(f"space {space.name} varies model.build, and a study is of one model; start one for each.")
    digest_source(base.model.build)  # a file that cannot be read is refused for itself
    for corner in _corners(space):
        try:
            run = base.replace(corner)
            data = load(run.data, raw)
            require_memory(run.model, data.shape, data.levels)
            build(run.model, data.shape, data.levels)
        except InputError as error:
            at = ", ".join(f"{name} = {value}" for name, value in corner.items())
            raise InputError(f"space {space.name} reaches {at}, where {error}") from error


def find_unused(space: Space, base: Run) -> list[str]:
    """Return the settings that vary without effect in every run of a space, such as beta in tc_vae.

    A setting without effect at the corners has none in between: a weight that is 0 at both ends is 0.
    """
    unused_at = [unused(base.replace(corner)) for corner in _corners(space)]
    return [dimension.name for dimension in space.dimensions if all(dimension.name in names for names in unused_at)]


def _corners(space: Space) -> Iterator[Point]:
    ranges = [dimension for dimension in space.dimensions if not dimension.choices]
    chosen = [dimension for dimension in space.dimensions if dimension.choices]
    for values in itertools.product(*(dimension.choices for dimension in chosen)):
        point = {dimension.name: value for dimension, value in zip(chosen, values, strict=True)}
        yield point | {dimension.name: dimension.low for dimension in ranges}
        yield point | {dimension.name: dimension.high for dimension in ranges}


def _require_constant(space: str, name: str, value: Any) -> Any:
    """Return the value of a setting that is held; refuse a list where the setting is no list."""
    settings = Run()
    if isinstance(value, list) and name in settings.flat() and not isinstance(settings.get(name), tuple):
        raise InputError(
            f"space {space}: {name} takes one value, {{ low, high }}, or {{ choices = {value} }}; got {value}."
        )
    return value


def _read_dimension(space: str, name: str, spec: Mapping[str, Any]) -> Dimension:
    """Read `{low, high, log}` or `{choices}` in the type of the setting."""
    settings = Run().flat()
    if name not in settings:
        Run().replace({name: None})  # raises the sentence for an unknown setting
    if set(spec) == {"choices"} and isinstance(spec["choices"], list) and spec["choices"]:
        return Dimension(name, choices=tuple(to_plain(tuple(c)) if isinstance(c, list) else c for c in spec["choices"]))
    integer = isinstance(settings[name], int)
    low, high, log = spec.get("low"), spec.get("high"), spec.get("log", False)
    if (
        not set(spec) <= RANGE_KEYS
        or isinstance(settings[name], bool | str)
        or not isinstance(low, int if integer else int | float)
        or not isinstance(high, int if integer else int | float)
        or [isinstance(value, bool) for value in (low, high, log)] != [False, False, True]
    ):
        kind = "whole numbers low and high" if integer else "numbers low and high"
        kind = "choices" if isinstance(settings[name], bool | str) else f"{kind} (and log, true or false), or choices"
        raise InputError(f"space {space}: {name} must have {kind}; got {dict(spec)}.")
    low, high = (low, high) if integer else (float(low), float(high))
    if not low < high or (log and low <= 0):
        rule = "0 < low < high, since it is log" if log else "low < high"
        raise InputError(f"space {space}: {name} must have {rule}; got {low:g} and {high:g}.")
    return Dimension(name, low, high, log)
