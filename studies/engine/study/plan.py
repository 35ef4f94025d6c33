"""What a study is: the record that every worker runs by, and the fingerprint that keeps two studies apart."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaebench.studies.engine.study import space as spaces
from vaebench.studies.engine.study.space import Space
from vaebench.studies.engine.study.target import TARGETS, Target
from vaebench.studies.tracking.provenance import code_version
from vaebench.vae.config import run as configs
from vaebench.vae.config.run import Run

REPORTS_PER_TRIAL = 10
AUTO = 0
RUNS, JOURNAL, KEPT_PLAN = Path("runs"), "study.journal", "plan.json"

TRIAL_DEFAULTS = {
    "train.epochs": 50,
    "train.batch_size": 128,
    "train.patience": 0,
    "eval.samples": 200,
}


@dataclass(frozen=True)
class Plan:
    """A study, resolved: what is searched, how, where it is kept.

    Attributes:
        base: the run that each trial changes in the settings of `space`.
        seeds: trainings of each setting, with train.seed counted up from that of `base`.
        trials: how many are to be finished.
        storage: journal path or database URL of Optuna.
        tracking: URI of MLflow, or `none`.
        folder: keeps weights, report and outbox.
        data: the digest of what it is on, wherever that is kept; empty where the plan was kept by code without it.
        stack: how many trials a worker trains side by side; `AUTO` leaves it to a measurement.
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
    stack: int = 1

    @property
    def report_epochs(self) -> int:
        """Return the number of epochs between two reports to the pruner."""
        return max(1, self.base.train.epochs // REPORTS_PER_TRIAL)

    def config(self, point: spaces.Point) -> Run:
        """Return the run of one point of the space."""
        return self.base.replace(point).resolved()

    def identity(self) -> dict[str, str]:
        """Return what a study must have in common to be continued, each part as a short hash."""
        held = {**self.base.identity(), "target": self.target.name, "seeds": self.seeds}
        for dimension in self.space.dimensions:
            del held[dimension.name]
        space = [dataclasses.asdict(dimension) for dimension in self.space.dimensions]
        return {"space": digest(space), "settings": digest(held), "data": self.data[:8], "code": code_version()}

    def to_json(self) -> dict[str, Any]:
        """Return what another worker of the study needs to know, in plain values."""
        return {
            **{
                name: getattr(self, name)
                for name in ("seeds", "sampler", "pruner", "trials", "tracking", "data", "stack")
            },
            "target": self.target.name,
            "space": self.space.to_json(),
            "base": self.base.flat(),
        }

    def kept(self) -> dict[str, Any]:
        """Return the plan as it is kept beside the study, for a process that starts later."""
        return {**self.to_json(), "name": self.name, "storage": self.storage, "workers": self.workers}


def from_json(values: dict[str, Any], **here: Any) -> Plan:
    """Read what `Plan.to_json` wrote, adding what is particular to this process: name, workers, storage, folder."""
    known = {
        **values,
        "space": spaces.from_json(values["space"]),
        "base": configs.from_flat(values["base"]),
        "target": TARGETS[values["target"]],
    }
    return Plan(**known, **here)


def digest(values: Any) -> str:
    """Return eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
