"""A run while it goes on: written to the tracker in batches, or to the outbox if the tracker cannot be reached."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import MetricValue, RunRecord, StoreError, milliseconds
from vaebench.vae.training.epoch import Metrics

FLUSH_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Store(Protocol):
    """The methods of a tracker that a recorder calls; each may raise `StoreError`."""

    def begin(self, record: RunRecord) -> str:
        """Create the run and return its id."""

    def extend(self, run: str, metrics: list[MetricValue], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write metrics, params and tags in one call."""

    def attach(self, run: str, files: list[str]) -> None:
        """Copy files to the run."""

    def close(self, run: str, status: str, end: int) -> None:
        """End the run."""


@dataclass
class Recorder:
    """Writes one trial to the tracker in few calls; if one of them fails, the whole record goes to the outbox."""

    record: RunRecord
    store: Store | None
    outbox: Outbox
    run: str | None = None
    sent: int = 0
    written: set[str] = field(default_factory=set)
    flushed: float = field(default_factory=time.monotonic)
    broken: bool = False

    def begin(self) -> None:
        """Create the run, so that it is visible while it trains."""
        if self.store is not None:
            try:
                self.run = self.store.begin(self.record)
                self.written = set(self.record.tags)
            except StoreError as error:
                self._fail(error)

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
        self._write(lambda store, run: store.extend(run, metrics, params, tags))
        self.sent += len(metrics)
        self.written |= {*params, *tags}

    def conclude(self, status: str) -> None:
        """Write everything but the end, before Optuna is told: after a crash in between the run can still be closed."""
        self.record.status, self.record.end = status, milliseconds()
        self.flush()
        self._write(lambda store, run: store.attach(run, self.record.files))
        if self.broken:
            self.outbox.put(self.record)

    def close(self) -> None:
        """End the run, after Optuna was told."""
        if self._write(lambda store, run: store.close(run, self.record.status, self.record.end)):
            self.outbox.put(self.record)

    def _write(self, call: Callable[[Store, str], None]) -> bool:
        """Make a call to the store, unless there is none or an earlier call failed; return whether it failed."""
        if self.store is None or self.run is None or self.broken:
            return False
        try:
            call(self.store, self.run)
        except StoreError as error:
            self._fail(error)
        return self.broken

    def _fail(self, error: StoreError) -> None:
        self.broken = True
        _log.info("%s; trial %d goes to %s.", error, self.record.trial, self.outbox.path)
