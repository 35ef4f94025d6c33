"""Records of runs on disk, until the tracker has them."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vaebench.studies.tracking.record import RunRecord
from vaebench.studies.whole_file import append_line


@dataclass(frozen=True)
class Outbox:
    """A file of records that wait for the tracker: JSON lines with fsync, written by many processes, emptied by one."""

    path: Path

    def put(self, record: RunRecord) -> None:
        """Append a record."""
        with self._lock() as file:
            _append(file, json.dumps(dataclasses.asdict(record)))

    def __len__(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in (self.path, self._sending) if path.exists())

    @property
    def waiting(self) -> bool:
        """Whether it holds any record."""
        return any(path.exists() and path.stat().st_size for path in (self.path, self._sending))

    @property
    def _sending(self) -> Path:
        return self.path.with_suffix(".sending")

    def take(self) -> list[RunRecord]:
        """Set all records aside and return them; `take` returns them again, also after a crash, until `confirm`."""
        with self._lock() as file:
            waiting = file.read()
            if waiting:
                with self._sending.open("a+") as sending:
                    _append(sending, waiting.rstrip("\n"))
                file.truncate(0)
        return list(_read(self._sending))

    def confirm(self) -> None:
        """Delete the records that `take` set aside."""
        self._sending.unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[IO[str]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file


def _append(file: IO[str], line: str) -> None:
    append_line(file, line)
    os.fsync(file.fileno())


def _read(path: Path) -> Iterator[RunRecord]:
    """Yield the records of a file, without a last line whose writer was killed while it wrote."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            tuples = {name: [tuple(entry) for entry in values[name]] for name in ("metrics", "slides")}
            yield RunRecord(**{**values, **tuples})
