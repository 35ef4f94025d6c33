"""A run while it goes on: written to the tracker in batches, or to an outbox if the tracker cannot be reached."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import RunRecord, StoreError, milliseconds
from vaebench.vae.training.epoch import Metrics

if TYPE_CHECKING:
    from vaebench.studies.tracking.mlflow_runs import Tracker  # MLflow takes seconds to import

FLUSH_SECONDS = 10.0

_log = logging.getLogger(__name__)


@dataclass
class Recorder:
    """Writes one run to the tracker in few calls; if one of them fails, the whole record goes to the outbox, if any.

    Attributes:
        sent: how many metrics of the record are written.
        error: why a call failed, empty while none has.
    """

    record: RunRecord
    tracker: Optional["Tracker"]
    outbox: Outbox | None = None
    run: str | None = None
    sent: int = 0
    written: set[str] = field(default_factory=set)
    flushed: float = field(default_factory=time.monotonic)
    error: str = ""

    def begin(self) -> None:
        """Create the run, so that it is visible while it trains."""
        if self.tracker is not None:
            try:
                self.run = self.tracker.begin(self.record)
                self.written = set(self.record.tags)
            except StoreError as error:
                self._fail(error)

    def read_curve(self, metric: str) -> dict[int, float]:
        """Return the values of a metric that the run holds already, by step; none if the tracker cannot be reached."""
        curve: dict[int, float] = {}
        self._call(lambda tracker, run: curve.update(tracker.curve(run, metric)))
        return curve

    def log(self, step: int, metrics: Metrics) -> None:
        """Buffer metrics; write them out every ten seconds."""
        now = milliseconds()
        self.record.metrics += [(name, value, now, step) for name, value in metrics.items()]
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the metrics, params and tags that are not written yet."""
        self.flushed = time.monotonic()
        metrics = self.record.metrics[self.sent :]
        params, tags = (
            {name: value for name, value in pairs.items() if name not in self.written}
            for pairs in (self.record.params, self.record.tags)
        )
        self._call(lambda tracker, run: tracker.extend(run, metrics, params, tags))
        self.sent += len(metrics)
        self.written |= {*params, *tags}

    def conclude(self, status: str) -> None:
        """Write everything but the end, before Optuna is told: after a crash in between the run can still be closed."""
        self.record.status, self.record.end = status, milliseconds()
        self.flush()
        self._call(lambda tracker, run: tracker.attach(run, self.record.files))
        if self.error and self.outbox is not None:
            self.outbox.put(self.record)

    def close(self) -> None:
        """End the run, after Optuna was told."""
        failed = self._call(lambda tracker, run: tracker.close(run, self.record.status, self.record.end))
        if failed and self.outbox is not None:
            self.outbox.put(self.record)

    def _call(self, call: Callable[["Tracker", str], None]) -> bool:
        """Make a call to the tracker, unless there is none or an earlier call failed; return whether it failed."""
        if self.tracker is None or self.run is None or self.error:
            return False
        try:
            call(self.tracker, self.run)
        except StoreError as error:
            self._fail(error)
        return bool(self.error)

    def _fail(self, error: StoreError) -> None:
        self.error = str(error)
        _log.info("%s; run %s is written later.", error, self.record.name)
