"""Files that are locked for as long as a process lives: how a driver or a worker is known to be alive.

The kernel drops the lock however the process ends, SIGKILL included, and a process id that was given out again
deceives nobody.
"""

import fcntl
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


def is_held(path: Path) -> bool:
    """Whether another process that is alive holds the file."""
    file = hold(path) if path.exists() else None
    if file is None:
        return path.exists()
    file.close()
    return False
