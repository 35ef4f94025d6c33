"""What every worker of a study is given, and what it writes about a trial."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.search.queue import RAISED, REASON
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import Record, milliseconds
from vaebench.vae.config.fields import Plain
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused
from vaebench.vae.data import Splits
from vaebench.vae.training.setup import pick_device, resolve

OUTBOX, TRIALS = "outbox.jsonl", "trials"
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


@dataclass(frozen=True)
class Job:
    """A plan, the data that it needs, and where its runs go.

    Attributes:
        raw: the data, before the `data.binarise` of a trial.
        tracker: None where tracking is off.
        tags: what holds for every run of the study: code, versions, device.
        threads: for the arithmetic of one worker.
    """

    plan: Plan
    raw: Splits
    tracker: Tracker | None
    tags: dict[str, str]
    threads: int

    @property
    def outbox(self) -> Outbox:
        """Return where records wait for the tracker."""
        return Outbox(self.plan.folder / OUTBOX)

    def under(self, folder: Path) -> "Job":
        """Return the same job in another folder."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, folder=folder))

    def folder(self, trial: int) -> Path:
        """Return where a trial leaves its weights."""
        return self.plan.folder / TRIALS / str(trial)

    def record(self, trial: int, point: Point) -> Record:
        """Return the record of a trial that begins: as tags, the settings that are not searched and matter to it."""
        config = self.plan.config(point)
        settled = resolve(config, pick_device(config.train), None, self.raw.shape).flat()
        said = {*point, *unused(config)}
        constants = {name: str(value) for name, value in settled.items() if name not in said}
        return Record(
            trial=trial,
            name=f"{self.plan.name} {trial}",
            start=milliseconds(),
            params={name: str(value) for name, value in axes(self.plan, point, config).items()},
            tags={**constants, **self.tags, "target": self.plan.target.name},
        )

    def ended(self, trial: FrozenTrial) -> Record:
        """Return what Optuna alone knows of a finished trial, for a run that its worker did not live to close."""
        record = self.record(trial.number, trial.params) if self._whole(trial) else Record(trial.number, "", 0)
        times = (trial.datetime_start or trial.datetime_complete, trial.datetime_complete)
        record.name = f"{self.plan.name} {trial.number}"
        record.start, record.end = (int(time.timestamp() * 1000) if time else milliseconds() for time in times)
        record.status = STATUS[trial.state]
        error = trial.user_attrs.get(RAISED) or trial.user_attrs.get(REASON)
        record.tags |= {"error": error} if error else {}
        if trial.state == TrialState.COMPLETE:
            pairs = zip(self.plan.target.metrics, trial.values, strict=True)
            record.metrics = [(name, value, record.end, 0) for name, value in pairs]
        return record

    def _whole(self, trial: FrozenTrial) -> bool:
        return all(dimension.name in trial.params for dimension in self.plan.space.dimensions)


def axes(plan: Plan, point: Point, config: Run) -> dict[str, Plain]:
    """Return the coordinates of a trial: what is searched, logarithms of what cannot be zero, and the two weights.

    Three weights have two degrees of freedom, w_kl = beta (1 - alpha) and w_d = beta (alpha + lambda - 1); parallel
    coordinates in `mlflow ui` have no logarithmic axis.
    """
    logs = {
        f"log10_{dimension.name}": math.log10(value)
        for dimension in plan.space.dimensions
        if dimension.positive and is_number(value := point[dimension.name])
    }
    return {**point, **logs, "w_kl": config.objective.w_kl, "w_d": config.objective.w_d}


def is_number(value: Plain) -> TypeGuard[int | float]:
    """Whether a plain value is a number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
