"""The settings of a run: frozen records, validated on construction, with conversions to a flat dict and to TOML.

    Run = Data + Model + Objective + Train + Eval

Trackers log the flat form (`model.latent`, `objective.lambda`), sweeps vary it and `--set` changes it.
"""

import dataclasses
import difflib
import itertools
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaebench.vae.config.fields import Plain, Section, field, flat_name, to_plain, to_toml_value
from vaebench.vae.config.model import Model as Model
from vaebench.vae.config.objective import Objective as Objective
from vaebench.vae.config.sections import LARGEST_SEED as LARGEST_SEED
from vaebench.vae.config.sections import Data as Data
from vaebench.vae.config.sections import Eval as Eval
from vaebench.vae.config.sections import Train as Train
from vaebench.vae.errors import InputError


@dataclass(frozen=True)
class _Choice:
    name: str = field("infovae", "What is maximised")


NAME = dataclasses.fields(_Choice)[0]
FAMILIES: dict[str, type[Objective]] = {}  # filled by `register`


@dataclass(frozen=True)
class Run:
    """All settings that determine a run's result.

    Attributes:
        idle: the settings of objectives of other families, by name; those of a family that is missing are its defaults.
    """

    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    objective: Objective = dataclasses.field(default_factory=lambda: FAMILIES["infovae"]())
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)
    idle: Mapping[str, Objective] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}.")
        self.objective.require_densities(self.model)

    @property
    def ramp_epochs(self) -> int:
        """Return the number of epochs in which the objective still changes: patience and the best begin after them."""
        return max(self.train.warmup_epochs, self.objective.settled_after)

    def resolve(self, shape: Sequence[int] = ()) -> "Run":
        """Return the run with every `auto` replaced that follows from the record, or from the shape of the data.

        The objective may depend on the size K of a code: `model.latent`, or the data's size for a flow of its own.
        """
        own_flow = self.model.kind != "vae"
        if own_flow and not shape:
            return self
        latent = math.prod(shape) if own_flow else self.model.latent
        return dataclasses.replace(self, objective=self.objective.resolve(latent))

    def get(self, name: str) -> Any:
        """Return a setting by its flat name; an objective's from the family in use, or else from the first with it."""
        section, declared = SETTINGS[name]
        if section != "objective":
            return getattr(getattr(self, section), declared.name)
        if declared is NAME:
            return self.objective.name
        records = (self.objective, *(self._objective(family) for family in FAMILIES))
        return next(getattr(one, declared.name) for one in records if declared.name in names_of(type(one)))

    def _objective(self, family: str) -> Objective:
        """Return the settings of a family, in use or not."""
        if family == self.objective.name:
            return self.objective
        return self.idle[family] if family in self.idle else FAMILIES[family]()

    def flat(self) -> dict[str, Plain]:
        """Return `{"data.name": "digits", ...}`: plain values only; a tuple becomes `256,256`, an empty one `auto`."""
        return {name: to_plain(self.get(name)) for name in SETTINGS}

    def identity(self) -> dict[str, Plain]:
        """Return `flat` without the locations of data: two runs are the same run if their identities are equal."""
        return {name: value for name, value in self.flat().items() if not SETTINGS[name][1].metadata["location"]}

    def replace(self, changes: Mapping[str, object]) -> "Run":
        """Return the run with flat names changed: `run.replace({"objective.lambda": 10})`."""
        _require_registered(changes.get("objective.name", self.objective.name))
        sections: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for name, value in changes.items():
            _require_known(name)
            section, declared = SETTINGS[name]
            sections[section][declared.name] = value
        own = sections.pop("objective")
        records = {name: dataclasses.replace(getattr(self, name), **sections[name]) for name in sections}
        return Run(**records, **self._replace_objective(own))

    def _replace_objective(self, changes: dict[str, object]) -> dict[str, Any]:
        """Return the fields `objective` and `idle` after changes, which reach every family that has such a setting."""
        chosen = str(changes.pop(NAME.name, self.objective.name))
        found: dict[str, Objective] = {**self.idle, self.objective.name: self.objective}
        for name, family in FAMILIES.items():
            own = {field: value for field, value in changes.items() if field in names_of(family)}
            if own or name == chosen:
                found[name] = dataclasses.replace(found.get(name) or family(), **own)
        return {"objective": found.pop(chosen), "idle": found}


SECTIONS: dict[str, type[Section]] = {name: kind for name, kind in typing.get_type_hints(Run).items() if name != "idle"}
SETTINGS: dict[str, tuple[str, "dataclasses.Field[Any]"]] = {}  # the section and the field of each flat name


def register(family: type[Objective]) -> None:
    """Add a family of objectives to the table; its settings then belong to every run.

    A name that two families declare must have one type, and is one setting.
    """
    _require_complete(family)
    hints = typing.get_type_hints(family)
    for other in FAMILIES.values():
        shared = names_of(other) & names_of(family) if other.name != family.name else ()
        for name in sorted(shared):
            if typing.get_type_hints(other)[name] != hints[name]:
                raise InputError(f"objective.{name} of {family.name} must have the type that it has in {other.name}.")
    FAMILIES[family.name] = family
    _collect_settings()


def _require_complete(family: type[Objective]) -> None:
    """Refuse a class that could not be a run's objective, with what it lacks."""
    label = family.__name__
    if "__dataclass_fields__" not in vars(family):
        raise InputError(f"{label} must have the decorator @dataclass(frozen=True).")
    if not isinstance(vars(family).get("name"), str):
        raise InputError(f"{label} must have a name of its own, the value of objective.name.")
    if not isinstance(getattr(family, "sentence", None), str):
        raise InputError(f"{label} must have a sentence, which says what is maximised.")
    if family.__abstractmethods__:
        raise InputError(f"{label} must define {', '.join(sorted(family.__abstractmethods__))}.")
    for declared in dataclasses.fields(family):
        if "doc" not in declared.metadata:
            raise InputError(f"{label}.{declared.name} must be a ClassVar or declared by `field(default, sentence)`.")


def unregister(name: str) -> None:
    """Remove a family from the table."""
    del FAMILIES[name]
    _collect_settings()


def names_of(family: type[Objective]) -> set[str]:
    """Return the names of a family's settings in Python."""
    return {declared.name for declared in dataclasses.fields(family)}


def field_of(run: Run, name: str) -> "dataclasses.Field[Any] | None":
    """Return the declaration of a setting in a run, None if it belongs to an objective of another family."""
    section, declared = SETTINGS[name]
    if section != "objective" or declared is NAME:
        return declared
    own = {one.name: one for one in dataclasses.fields(run.objective)}
    return own.get(declared.name)


def _collect_settings() -> None:
    """Fill `SETTINGS` from the sections and, for the objective, from all families."""
    SETTINGS.clear()
    for section, kind in SECTIONS.items():
        kinds = FAMILIES.values() if section == "objective" else (kind,)
        declared = [NAME] if section == "objective" else []
        for one in (*declared, *itertools.chain.from_iterable(map(dataclasses.fields, kinds))):
            SETTINGS.setdefault(f"{section}.{flat_name(one)}", (section, one))


_collect_settings()


def restore(stored: Mapping[str, object]) -> Run:
    """Build a run from a `flat` of it, stored by a process that may have registered other families of objectives."""
    return Run().replace({key: stored[key] for key in stored if key in SETTINGS or not key.startswith("objective.")})


def from_toml(path: Path) -> Run:
    """Build a run from a file with the tables `[data]`, `[model]`, `[objective]`, `[train]`, `[eval]`."""
    tables = read_toml(path, "config")
    strange = [name for name, table in tables.items() if name not in SECTIONS or not isinstance(table, dict)]
    if strange:
        raise InputError(
            f"{path} has {strange[0]!r} where only the tables {', '.join(f'[{name}]' for name in SECTIONS)} may stand."
        )
    settings = {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}
    return Run().replace(settings)


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Read a TOML file; errors call it a file of this kind."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the {kind} file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error


def to_toml(run: Run) -> str:
    """Write a run as the file that `from_toml` reads, without defaults of families that are not in use."""
    lines: list[str] = []
    for section in SECTIONS:
        kept = [name for name, (place, _) in SETTINGS.items() if place == section and _is_kept(run, name)]
        own = [(name, name.partition(".")[2]) for name in kept]
        lines += [f"[{section}]", *(f"{short} = {to_toml_value(run.get(name))}" for name, short in own), ""]
    return "\n".join(lines)


def write_toml(run: Run, path: Path) -> None:
    """Write a run to a file; bytes of a path that are not text are written as escapes, which `from_toml` refuses."""
    path.write_text(to_toml(run), encoding="utf-8", errors="backslashreplace")


def _is_kept(run: Run, name: str) -> bool:
    """Whether a setting belongs to the objective in use, or is changed in another: those may not exist elsewhere."""
    _, declared = SETTINGS[name]
    idle = ((record, one) for record in run.idle.values() for one in dataclasses.fields(record))
    changed = (getattr(record, one.name) != one.default for record, one in idle if one.name == declared.name)
    return field_of(run, name) is not None or any(changed)


def describe() -> str:
    """Return one line for each setting: flat name, default, sentence."""
    width = max(map(len, SETTINGS))
    return "\n".join(
        f"{name:<{width}}  {to_plain(declared.default)!s:<20}  {_sentence(name)}"
        for name, (_, declared) in SETTINGS.items()
    )


def _sentence(name: str) -> str:
    """Return the sentence of a setting; an objective's begins with the families that have it."""
    section, declared = SETTINGS[name]
    if section != "objective":
        return str(declared.metadata["doc"])
    if declared is NAME:
        return f"{NAME.metadata['doc']}: {'; '.join(f'{one.name}, {one.sentence}' for one in FAMILIES.values())}."
    fields = [(family.name, one) for family in FAMILIES.values() for one in dataclasses.fields(family)]
    return " ".join(f"{family}: {one.metadata['doc']}" for family, one in fields if one.name == declared.name)


def _require_registered(family: object) -> None:
    if not isinstance(family, str) or family not in FAMILIES:
        families = ", ".join(FAMILIES)
        raise InputError(f"objective.name must be one of {families}, got {family!r}; register your own family first.")


def _require_known(name: str) -> None:
    if name not in SETTINGS:
        close = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the sections are {', '.join(SECTIONS)}."
        raise InputError(f"there is no setting {name!r}; {hint}")
