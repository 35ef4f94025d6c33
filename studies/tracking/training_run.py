"""The run of one training in MLflow: its curves while it trains, then its figures, note and files."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vaebench.studies.tracking import figures
from vaebench.studies.tracking.provenance import provenance
from vaebench.studies.tracking.record import RunRecord, milliseconds
from vaebench.studies.tracking.recorder import Recorder
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused
from vaebench.vae.data import Splits
from vaebench.vae.errors import sentence
from vaebench.vae.evaluation.evaluate import process_peak_mb
from vaebench.vae.training.epoch import Metrics

EXPERIMENT, KEY = "training", "training_run"
EVERY_EPOCH = "valid/elbo"  # a figure that each epoch has

_log = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """A training's run; without a tracker it records nothing.

    Attributes:
        known: the figure `EVERY_EPOCH` of each epoch that the run holds, also of earlier starts.
    """

    recorder: Recorder
    known: dict[int, float] = field(default_factory=dict)
    seconds: float = field(default_factory=time.perf_counter)
    cpu_seconds: float = field(default_factory=time.process_time)

    def begin(self) -> None:
        """Create the run, or open that of an earlier start again."""
        self.recorder.begin()
        self.known = self.recorder.read_curve(EVERY_EPOCH)

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Note the figures of an epoch, and what the process has used of the machine; nothing is noted twice."""
        if self.known.get(epoch) == metrics[EVERY_EPOCH]:
            return
        self.known[epoch] = metrics[EVERY_EPOCH]
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        used = {
            "system/cpu_percent": 100 * (cpu_seconds - self.cpu_seconds) / (seconds - self.seconds),
            "system/peak_memory_mb": process_peak_mb(),
        }
        self.seconds, self.cpu_seconds = seconds, cpu_seconds
        self.recorder.log(epoch, {**metrics, **used})

    def finish(self, metrics: Metrics, history: Sequence[Metrics], files: Sequence[Path]) -> str:
        """Write the final figures, the note and the files; return where the run is, in words, or an empty string.

        The history has the figures of all epochs. Those are written too that the run lacks, since an earlier start was
        killed before it wrote them, or could not reach the tracker. They have the time of the start: of several points
        at one step MLflow shows the latest, which is the final figure.
        """
        record = self.recorder.record
        for epoch, values in enumerate(history, start=1):
            if self.known.get(epoch) != values[EVERY_EPOCH]:
                record.metrics += [(name, value, record.start, epoch) for name, value in values.items()]
        steps = {name: epoch for epoch, values in enumerate(history, start=1) for name in values}
        figures.add_figures(record, metrics, before=self.recorder.sent, steps=steps)
        figures.add_note(record, metrics, f"**{record.name}**, to train it again:", record.tags["command"])
        record.files = [str(path) for path in files]
        self.end("FINISHED")
        return f"; in MLflow: experiment {EXPERIMENT}" if self.recorder.run and not self.recorder.error else ""

    def end(self, status: str) -> None:
        """End the run; a tracker that cannot be reached costs a sentence, not the training."""
        self.recorder.conclude(status)
        self.recorder.close()
        if self.recorder.error:
            _log.warning("%s; the results are written, and the same command tries again.", self.recorder.error)


@contextlib.contextmanager
def track_training(uri: str | None, config: Run, data: Splits, folder: Path, command: str) -> Iterator[TrainingRun]:
    """Yield the run of a training, which `begin` creates or opens again; an error or Ctrl-C ends it as such."""
    without_effect = unused(config)
    record = RunRecord(
        None,
        folder.name,
        milliseconds(),
        params={name: str(value) for name, value in config.flat().items() if name not in without_effect},
        tags={**provenance(command), KEY: identify(config, folder)},
        key=KEY,
    )
    tracker = None
    if uri is not None:
        from vaebench.studies.tracking.mlflow_runs import Tracker, describe  # MLflow takes seconds to import

        tracker = Tracker(uri, EXPERIMENT, describe(data))
    run = TrainingRun(Recorder(record, tracker))
    try:
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except Exception as error:
        record.tags["error"] = sentence(error)
        run.end("FAILED")
        raise


def identify(config: Run, folder: Path) -> str:
    """Return a hash of the settings and the folder of a training."""
    identity = json.dumps([config.flat(), str(folder.resolve())], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
