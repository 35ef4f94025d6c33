"""Optuna's journal file, so that a killed writer stalls nobody and a line that it tore loses nothing."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from vaebench.vae.errors import InputError

LOCK_SECONDS = 5


class Lock(JournalFileSymlinkLock):
    """The symlink lock of a process that may be killed while it holds it.

    Its link must lead to the journal, by an absolute path: a dangling one has no age, and would be waited for for ever.
    Where the others took a lock from a slow holder, there is nothing left for it to release, and that is no error.
    """

    def release(self) -> None:
        """Remove the lock, if it is still there."""
        with contextlib.suppress(RuntimeError):
            super().release()


class Backend(JournalFileBackend):
    """A journal in which every line is whole: a writer first cuts off what another left unfinished.

    Without that, the line of a killed writer, or of one that met a full disk, would swallow the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock(str(path.resolve()), grace_period=LOCK_SECONDS)
        super().__init__(str(path), self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one line for each entry, all of them or none."""
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        self.lock.acquire()
        try:
            with self.path.open("r+b", buffering=0) as file:
                end = _whole_lines(file.fileno())
                file.truncate(end)
                file.seek(end)
                try:
                    _write_all(file.fileno(), lines)
                except OSError:
                    file.truncate(end)
                    raise
        finally:
            self.lock.release()


def open_journal(path: Path) -> JournalStorage:
    """Open a journal, created where there is none; one with a damaged line is refused by its number."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(Backend(path))
        _require_whole(path, last=1)  # Optuna only looks at a line when another one follows it
    except (ValueError, KeyError, TypeError):
        _require_whole(path)
        raise
    except OSError as error:
        raise InputError(f"cannot write to {path} ({error.strerror}); give another place with --storage.") from error
    return storage


def _require_whole(path: Path, *, last: int | None = None) -> None:
    """Raise at the first line that is no JSON record; a last line without an end may still be being written."""
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in list(enumerate(lines, start=1))[-last if last else None :]:
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            raise InputError(
                f"line {number} of the journal {path} is damaged; put back a copy of the file, or give another name "
                "with --study. What it had finished is still in MLflow."
            )


def _whole_lines(file: int) -> int:
    """Return the size of a file up to the end of its last whole line."""
    end = os.fstat(file).st_size
    if end == 0 or os.pread(file, 1, end - 1) == b"\n":
        return end
    return os.pread(file, end, 0).rfind(b"\n") + 1


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)
