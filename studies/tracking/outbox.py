"""Runs on disk until the tracker has them."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vaebench.studies.tracking.record import Record


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
