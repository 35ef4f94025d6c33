"""How a command ends."""

import atexit
import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process with an exit code, without taking apart what it imported: of torch and MLflow two seconds.

    What was registered for the exit is done first, and what was printed is written: where a disk is full that raises;
    a reader that has gone is no error. Threads are not waited for, and a profiler that started it finds nothing.
    """
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
