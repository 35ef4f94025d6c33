"""Files that a process locks for as long as it lives, so that other processes can tell whether it is alive.

The kernel releases the lock however the process ends, SIGKILL included. A process id would be no proof, since it may be
given to another process.
"""

import fcntl
import time
from pathlib import Path
from typing import IO


def hold(path: Path) -> IO[str] | None:
    """Lock a file until it is closed or the process ends, or return None where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def wait(path: Path, seconds: float) -> IO[str] | None:
    """Lock a file as soon as no other process holds it; return None where one does all the time."""
    until = time.monotonic() + seconds
    while (file := hold(path)) is None and time.monotonic() < until:
        time.sleep(0.05)
    return file


def is_held(path: Path) -> bool:
    """Whether another living process holds the lock."""
    file = hold(path) if path.exists() else None
    if file is None:
        return path.exists()
    file.close()
    return False
