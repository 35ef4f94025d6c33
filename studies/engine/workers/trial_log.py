"""What the rest of the study hears of a trial while it trains: its run in the tracker, and the driver's terminal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna

from vaebench.studies.engine.study.space import Point
from vaebench.studies.engine.workers.job import ERROR, STATE, STATUS, Job, train_command
from vaebench.studies.engine.workers.outcome import Outcome, hash_weights
from vaebench.studies.tracking import figures, local_runs
from vaebench.studies.tracking.record import RunRecord
from vaebench.studies.tracking.recorder import Recorder
from vaebench.vae.config.run import Run
from vaebench.vae.errors import sentence
from vaebench.vae.training.epoch import Metrics

Tell = Callable[[dict[str, Any]], None]
IsWanted = Callable[[], bool]


class Orphaned(BaseException):
    """The driver of this worker is gone."""


@dataclass
class TrialLog:
    """The log of one trial.

    Attributes:
        tell: takes a message for the driver after each epoch.
        is_wanted: whether the driver still wants this worker; asked after each epoch.
        recorder: writes the run, from when the trial begins.
    """

    job: Job
    trial: optuna.Trial
    tell: Tell
    is_wanted: IsWanted
    recorder: Recorder = field(init=False)
    point: Point = field(init=False)
    epochs: int = field(init=False)

    def begin(self, point: Point) -> None:
        """Begin the run of a setting."""
        self.point, self.epochs = point, self.job.plan.config(point).train.epochs
        record = self.job.begin_record(self.trial.number, point)
        self.recorder = Recorder(record, self.job.tracker, self.job.outbox)
        self.recorder.begin()

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Note the figures of an epoch."""
        if not self.is_wanted():
            raise Orphaned
        self.recorder.log(epoch, metrics)
        self.tell({"trial": self.trial.number, "epoch": epoch, "epochs": self.epochs, **metrics})

    def conclude(self, outcome: Outcome) -> None:
        """Write everything but the end: figures, note, files, and tags that tell the state, weights or error."""
        record = self.recorder.record
        record.tags[STATE] = outcome.word
        record.files = [str(path) for path in outcome.save(self.job.trial_folder(self.trial.number))]
        if outcome.best is not None:
            record.tags["weights_sha256"] = hash_weights(outcome.best.model)
        if outcome.error is not None:
            record.tags[ERROR] = sentence(outcome.error)
        if outcome.repeats is not None:
            record.tags["repeats"] = str(outcome.repeats)
        figures.add_figures(record, outcome.metrics, self.job.plan.target.metrics, before=self.recorder.sent)
        if outcome.best is not None:
            add_note(record, outcome.metrics, self.job.plan.config(self.point), outcome.best.config.train.seed)
        self.recorder.conclude(STATUS[outcome.word])
        if self.job.tracker is None:
            local_runs.write(record, self.job.trial_folder(self.trial.number))

    def close(self) -> None:
        """End the run."""
        self.recorder.close()


def add_note(record: RunRecord, metrics: Metrics, config: Run, seed: int) -> None:
    """Give a trial's page the command that trains its best seed again, and a table of its final figures."""
    command = train_command(config.replace({"train.seed": seed}), Run().flat())
    figures.add_note(record, metrics, f"Trial {record.trial}, to train it again:", command)
