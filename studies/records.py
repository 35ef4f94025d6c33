"""What a tracker is told of a trial, and the outbox that keeps it while the tracker cannot be reached."""

import dataclasses
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from vaebench.vae.training.epoch import Metrics

FLUSH_SECONDS = 10.0
PARENT_TRIAL = -1

Point = tuple[str, float, int, int]  # name, value, milliseconds, step

_log = logging.getLogger(__name__)


class StoreError(Exception):
    """The tracker cannot be written to, for now."""


@dataclass
class Record:
    """One run: all that there is to write about it, so that it can be written late, or again.

    Attributes:
        trial: number in the study, which with the study's name identifies the run; -1 is the study's own, the parent.
        status: RUNNING, FINISHED, KILLED (pruned) or FAILED.
        start, end: milliseconds since 1970; end is 0 while it runs.
        metrics: points whose time and step make writing them twice the same as once.
        files: files on this machine to attach.
        slides: pictures of a slider: its name, a file, a step.
    """

    trial: int
    name: str
    start: int
    status: str = "RUNNING"
    end: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Point] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    slides: list[tuple[str, str, int]] = field(default_factory=list)


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


@dataclass(frozen=True)
class Outbox:
    """Records waiting for the tracker: JSON lines, fsynced, appended by many and emptied by one."""

    path: Path

    def put(self, record: Record) -> None:
        """Append a record."""
        with self._locked() as file:
            _append(file, json.dumps(dataclasses.asdict(record)))

    def __len__(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in (self.path, self._sending) if path.exists())

    @property
    def waiting(self) -> bool:
        """Whether there is anything in it."""
        return any(path.exists() and path.stat().st_size for path in (self.path, self._sending))

    @property
    def _sending(self) -> Path:
        return self.path.with_suffix(".sending")

    def take(self) -> list[Record]:
        """Set aside what is waiting and return it; until `taken` is called, a crash leaves it to be taken again."""
        with self._locked() as file:
            waiting = file.read()
            if waiting:
                with self._sending.open("a") as sending:
                    _append(sending, waiting.rstrip("\n"))
                file.truncate(0)
        return list(_records(self._sending))

    def taken(self) -> None:
        """Forget what `take` set aside."""
        self._sending.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file


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


def milliseconds() -> int:
    """Return the time since 1970."""
    return time.time_ns() // 1_000_000


def _append(file: IO[str], line: str) -> None:
    file.write(line + "\n")
    file.flush()
    os.fsync(file.fileno())


def _records(path: Path) -> Iterator[Record]:
    """Yield the records of a file; a last line that its writer did not live to finish is left out."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            pairs = {name: [tuple(entry) for entry in values[name]] for name in ("metrics", "slides")}
            yield Record(**{**values, **pairs})
