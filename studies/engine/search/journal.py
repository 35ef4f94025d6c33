"""Optuna's journal file, made safe against killed writers: they block nobody, and a torn line loses nothing."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from vaebench.studies.whole_file import end_of_lines
from vaebench.vae.errors import InputError

LOCK_SECONDS = 5


class JournalLock(JournalFileSymlinkLock):
    """A symlink lock whose holder may be killed.

    The link must lead to the journal by an absolute path: Optuna judges a lock's age by the link's target, and would
    wait for ever for a dangling link. A slow holder may find that another process has removed its lock; that is no
    error.
    """

    def release(self) -> None:
        """Remove the lock, if it is still there."""
        with contextlib.suppress(RuntimeError):
            super().release()


class JournalBackend(JournalFileBackend):
    """A journal whose every line is complete: a writer first cuts off an unfinished last line.

    Otherwise the torn line of a writer that was killed, or met a full disk, would merge with the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, JournalLock(str(path.resolve()), grace_period=LOCK_SECONDS)
        super().__init__(str(path), self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one line for each entry, all of them or none."""
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        self.lock.acquire()
        try:
            with self.path.open("r+b", buffering=0) as file:
                end = end_of_lines(file.fileno())
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
    """Open a journal, or create it; the error for a damaged journal names the line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalBackend(path))
        _require_records(path, last=1)  # Optuna reads a line only when another one follows it
    except (ValueError, KeyError, TypeError):
        _require_records(path)
        raise
    except OSError as error:
        raise InputError(f"cannot write to {path} ({error.strerror}); give another place with --storage.") from error
    return storage


def _require_records(path: Path, *, last: int | None = None) -> None:
    """Raise at the first line that is no JSON record; an unfinished last line may still be being written."""
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in list(enumerate(lines, start=1))[-last if last else None :]:
        try:
            is_record = isinstance(json.loads(line), dict)
        except ValueError:
            is_record = False
        if not is_record:
            raise InputError(
                f"line {number} of the journal {path} is damaged; put back a copy of the file, or give another name "
                "with --study. What it had finished is still in MLflow."
            )


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)
