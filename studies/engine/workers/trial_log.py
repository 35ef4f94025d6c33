"""What the rest of the study hears of a trial while it trains: its run in the tracker, and the driver's terminal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna

from vaebench.studies.engine.study.space import Point
from vaebench.studies.engine.workers.job import STATUS, Job
from vaebench.studies.engine.workers.outcome import Outcome, hash_weights
from vaebench.studies.tracking.record import milliseconds
from vaebench.studies.tracking.recorder import Recorder
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

    def begin(self, point: Point) -> None:
        """Begin the run of a setting."""
        record = self.job.begin_record(self.trial.number, point)
        self.recorder = Recorder(record, self.job.tracker, self.job.outbox)
        self.recorder.begin()

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Note the figures of an epoch."""
        if not self.is_wanted():
            raise Orphaned
        self.recorder.log(epoch, metrics)
        self.tell({"trial": self.trial.number, "epoch": epoch, **metrics})

    def conclude(self, outcome: Outcome) -> None:
        """Write everything but the end: final figures, files, and tags that identify the weights or the error."""
        record = self.recorder.record
        record.files = [str(path) for path in outcome.save(self.job.trial_folder(self.trial.number))]
        if outcome.best is not None:
            record.tags["weights_sha256"] = hash_weights(outcome.best.model)
        if outcome.error is not None:
            record.tags["error"] = sentence(outcome.error)
        if outcome.repeats is not None:
            record.tags["repeats"] = str(outcome.repeats)
        now, last = milliseconds(), max((step for *_, step in record.metrics), default=0)
        record.metrics += [(name, value, now, last) for name, value in outcome.metrics.items()]
        self.recorder.conclude(STATUS[outcome.word])

    def close(self) -> None:
        """End the run."""
        self.recorder.close()
