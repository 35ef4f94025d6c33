"""The job of a worker: plan, data and tracker, and the records of trials that it writes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.command_line import format_command
from vaebench.studies.engine.search.states import RAISED, REASON, state_of
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import RunRecord, milliseconds
from vaebench.studies.tracking.views import NUMBER
from vaebench.vae.config.fields import Plain
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused
from vaebench.vae.data import Splits
from vaebench.vae.training.setup import pick_device, resolve

OUTBOX = "outbox.jsonl"
STATE, ERROR = "state", "error"  # tags: what became of a trial, in the words of `states`, and why it failed
STATUS = {  # MLflow shows KILLED as it shows FAILED, and a pruned trial is no failure
    "finished": "FINISHED",
    "repeated": "FINISHED",
    "pruned": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "lost": "FAILED",
}
SYMBOLS = {
    "model.latent": "K",
    "objective.beta": "β",
    "objective.alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "objective.lambda": "λ",
    "train.learning_rate": "lr ",
}


@dataclass(frozen=True)
class Job:
    """A plan, its data, and the tracker of its runs.

    Attributes:
        raw: the data before `data.binarise`, which each trial applies.
        tracker: None where tracking is off.
        tags: tags of every run of the study: code, versions, device.
        threads: threads for the arithmetic of one worker.
    """

    plan: Plan
    raw: Splits
    tracker: Tracker | None
    tags: dict[str, str]
    threads: int

    @property
    def outbox(self) -> Outbox:
        """Return the file in which records wait for the tracker."""
        return Outbox(self.plan.folder / OUTBOX)

    def trial_folder(self, number: int) -> Path:
        """Return the folder in which a trial leaves its weights."""
        return self.plan.trial_folder(number)

    def begin_record(self, trial: int, point: Point) -> RunRecord:
        """Return the record of a trial that begins; its tags are the settings that are not searched and have effect."""
        config, now = self.plan.config(point), milliseconds()
        resolved = resolve(config, pick_device(config.train), None, self.raw.shape).flat()
        left_out = {*point, *unused(config)}
        constants = {name: str(value) for name, value in resolved.items() if name not in left_out}
        return RunRecord(
            trial=trial,
            name=name_run(trial, point),
            start=now,
            params={name: str(value) for name, value in trial_params(self.plan, point, config).items()},
            tags={**constants, **self.tags, "target": self.plan.target.name},
            metrics=[(NUMBER, float(trial), now, 0)],
        )

    def end_record(self, trial: FrozenTrial) -> RunRecord:
        """Return the record of a finished trial as Optuna knows it, for a run that its worker did not live to close."""
        if self.plan.space.is_point(trial.params):
            record = self.begin_record(trial.number, trial.params)
        else:
            record = RunRecord(trial.number, name_run(trial.number, {}), 0)
        times = (trial.datetime_start or trial.datetime_complete, trial.datetime_complete)
        record.start, record.end = (int(time.timestamp() * 1000) if time else milliseconds() for time in times)
        state = state_of(trial)
        record.status = STATUS[state]
        error = trial.user_attrs.get(RAISED) or trial.user_attrs.get(REASON)
        record.tags |= {STATE: state} | ({ERROR: error} if error else {})
        if trial.state == TrialState.COMPLETE:
            pairs = zip(self.plan.target.metrics, trial.values, strict=True)
            record.metrics += [(name, value, record.end, 0) for name, value in pairs]
        return record


def name_run(trial: int, point: Point) -> str:
    """Return the name of a trial's run: its number and its searched settings, by which runs are told apart.

    >>> name_run(28, {"model.latent": 18, "objective.beta": 0.9617, "model.hidden": "64,64"})
    '28 · K18 β0.96 hidden=64,64'
    """
    parts = [SYMBOLS.get(name, name.rpartition(".")[2] + "=") + _shorten(value) for name, value in point.items()]
    return " · ".join([str(trial), " ".join(parts)] if parts else [str(trial)])


def train_command(config: Run, default: Mapping[str, Plain]) -> str:
    """Return the command that trains with these settings; it names those that differ from the default."""
    changed = {name: value for name, value in config.flat().items() if value != default[name]}
    settings = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    return format_command("train", *settings)


def trial_params(plan: Plan, point: Point, config: Run) -> dict[str, Plain]:
    """Return the params of a trial: searched settings, logarithms of positive ones, weights that the objective logs.

    Parallel coordinates in `mlflow ui` have no logarithmic axis.
    """
    logs = {
        f"log10_{dimension.name}": math.log10(value)
        for dimension in plan.space.dimensions
        if dimension.positive and isinstance(value := point[dimension.name], int | float)
    }
    return {**point, **logs, **config.objective.logged_weights}


def _shorten(value: Plain) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"
    return str(value)
