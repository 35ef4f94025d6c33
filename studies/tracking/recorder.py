"""One run while it is being made: written to the outbox at once, to the tracker in batches."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import Point, Record, StoreError, _log, milliseconds
from vaebench.vae.training.epoch import Metrics

FLUSH_SECONDS = 10.0


class Store(Protocol):
    """What a recorder asks of a tracker; everything may raise `StoreError`."""

    def begin(self, record: Record) -> str:
        """Create the run and return its id."""

    def extend(self, run: str, metrics: list[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write metrics, params and tags in one call."""

    def attach(self, run: str, files: list[str]) -> None:
        """Copy files to the run."""

    def close(self, run: str, status: str, end: int) -> None:
        """End the run."""


@dataclass
class Recorder:
    """Writes one trial to the tracker in few calls; once one fails, the whole record goes to the outbox at the end."""

    record: Record
    store: Store | None
    outbox: Outbox
    run: str | None = None
    sent: int = 0
    written: set[str] = field(default_factory=set)
    flushed: float = field(default_factory=time.monotonic)
    broken: bool = False

    def begin(self) -> None:
        """Create the run, so that it is seen while it trains."""
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
        """Write what is buffered: metrics, params, and tags that came after the beginning."""
        self.flushed = time.monotonic()
        if self.store is None or self.run is None or self.broken:
            return
        params, tags = (
            {name: value for name, value in pairs.items() if name not in self.written}
            for pairs in (self.record.params, self.record.tags)
        )
        try:
            self.store.extend(self.run, self.record.metrics[self.sent :], params, tags)
            self.sent = len(self.record.metrics)
            self.written |= {*params, *tags}
        except StoreError as error:
            self._fail(error)

    def conclude(self, status: str) -> None:
        """Write all but the end, before the study is told: a crash in between leaves a run that can be closed."""
        self.record.status, self.record.end = status, milliseconds()
        self.flush()
        if self.store is not None and self.run is not None and not self.broken:
            try:
                self.store.attach(self.run, self.record.files)
            except StoreError as error:
                self._fail(error)
        if self.store is not None and self.broken:
            self.outbox.put(self.record)

    def close(self) -> None:
        """End the run, after the study was told."""
        if self.store is None or self.run is None or self.broken:
            return
        try:
            self.store.close(self.run, self.record.status, self.record.end)
        except StoreError as error:
            self._fail(error)
            self.outbox.put(self.record)

    def _fail(self, error: StoreError) -> None:
        self.broken = True
        _log.info("%s; trial %d goes to %s.", error, self.record.trial, self.outbox.path)
