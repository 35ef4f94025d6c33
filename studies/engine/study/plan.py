"""The plan of a study: the record that every worker runs by, and the hashes that keep two studies apart."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaebench.studies.engine.study.space import Point, Space
from vaebench.studies.engine.study.target import TARGETS, Target
from vaebench.studies.passwords import without_passwords
from vaebench.studies.tracking.provenance import code_version
from vaebench.vae.config.run import LARGEST_SEED, Run, restore
from vaebench.vae.errors import InputError, sentence
from vaebench.vae.model.own import digest_source

REPORTS_PER_TRIAL = 10
RUNS, JOURNAL, PLAN_FILE, TRIALS = Path("runs"), "study.journal", "plan.json", "trials"

TRIAL_DEFAULTS = {
    "train.epochs": 50,
    "train.batch_size": 128,
    "train.patience": 0,
    "eval.samples": 200,
}


@dataclass(frozen=True)
class Plan:
    """A study: what is searched, how, and where it is kept.

    Attributes:
        base: the run that each trial changes in the settings of `space`.
        seeds: trainings of each setting, with train.seed counted up from the seed of `base`; 0 follows the largest.
        trials: how many are to be finished.
        storage: journal path or database URL of Optuna.
        tracking: URI of MLflow, or `none`.
        folder: keeps weights, report and outbox.
        data: the digest of the data, wherever they are kept; empty in plans of versions that did not record it.
    """

    name: str
    space: Space
    base: Run
    target: Target
    seeds: int
    sampler: str
    pruner: str
    trials: int
    workers: int
    storage: str
    tracking: str
    folder: Path
    data: str = ""

    @property
    def report_epochs(self) -> int:
        """Return the number of epochs between two reports to the pruner."""
        return max(1, self.base.train.epochs // REPORTS_PER_TRIAL)

    def config(self, point: Point) -> Run:
        """Return the run of one point of the space."""
        return self.base.replace(point).resolve()

    def trial_folder(self, number: int) -> Path:
        """Return the folder in which a trial leaves its weights."""
        return self.folder / TRIALS / str(number)

    def seeded(self, config: Run) -> list[Run]:
        """Return the runs of a setting, one for each seed."""
        seeds = [(config.train.seed + i) % (LARGEST_SEED + 1) for i in range(self.seeds)]
        return [config.replace({"train.seed": seed}) for seed in seeds]

    def identity(self) -> dict[str, str]:
        """Return a short hash of each part that must be the same for a study to be continued."""
        held = {**self.base.identity(), "target": self.target.name, "seeds": self.seeds}
        for dimension in self.space.dimensions:
            del held[dimension.name]
        space = [dataclasses.asdict(dimension) for dimension in self.space.dimensions]
        return {
            "space": digest(space),
            "settings": digest(held),
            "model": digest_source(self.base.model.build),
            "data": self.data[:8],
            "code": code_version(),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the plain values that another worker of the study needs to know; passwords are not among them."""
        names = ("seeds", "sampler", "pruner", "trials", "data")
        return {
            **{name: getattr(self, name) for name in names},
            "tracking": without_passwords(self.tracking),
            "target": self.target.name,
            "space": self.space.to_json(),
            "base": self.base.flat(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], **here: Any) -> "Plan":
        """Build a plan from `to_json` and the fields that depend on this process: name, workers, storage, folder."""
        records = {
            "base": restore(values["base"]),
            "space": Space.from_json(values["space"]),
            "target": TARGETS[values["target"]],
        }
        known = {one.name for one in dataclasses.fields(cls)}  # earlier versions wrote more
        return cls(**{name: value for name, value in {**values, **records, **here}.items() if name in known})

    def list_changes(self, stored: Mapping[str, Any]) -> list[str]:
        """Return what differs from a stored plan of the same study in words, such as `train.epochs = 7, not 50`."""
        here = {name: getattr(self, name) for name in ("name", "workers", "storage", "folder")}
        then = Plan.from_json(stored, **here)._describe()
        changed = {name: text for name, text in self._describe().items() if text != then[name]}
        return [f"{name} {text}, not {then[name].removeprefix('= ')}" for name, text in changed.items()]

    def _describe(self) -> dict[str, str]:
        """Return in words what may differ: the value or the range of each setting, seeds and target."""
        held = {**self.base.identity(), "--seeds": self.seeds, "--target": self.target.name}
        varied = {dimension.name: f"in {dimension}" for dimension in self.space.dimensions}
        return {name: f"= {value}" for name, value in held.items()} | varied

    def save(self) -> None:
        """Write the plan beside the study, for a process that starts later."""
        here = {"name": self.name, "storage": without_passwords(self.storage), "workers": self.workers}
        (self.folder / PLAN_FILE).write_text(json.dumps({**self.to_json(), **here}))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read the file that `save` wrote; the journal beside it is found where the folder has moved."""
        journal = path.parent / JOURNAL
        try:
            values = json.loads(path.read_text())
            moved = "://" not in values["storage"] and journal.exists()
            return cls.from_json(values, folder=path.parent, **({"storage": str(journal)} if moved else {}))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({sentence(error)}); the sweep's command writes it again, with --study "
                f"{path.parent.name}."
            ) from error


def study_folder(name: str) -> Path:
    """Return the folder of a study, whose name is checked here for all commands: it never leads out of runs/."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. +-]{0,99}", name):
        raise InputError(
            "the name of a study must be of letters, digits, spaces and _ . + -, begin with a letter, a digit or _, "
            f"and have at most 100 of them, since it names a folder in {RUNS}; got {name!r}."
        )
    return RUNS / name


def digest(values: Any) -> str:
    """Return eight hexadecimal digits that identify plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
