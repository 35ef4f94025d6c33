"""Exit codes of the command lines, where a failure is one sentence on stderr, and the commands that they print."""

import os
import shlex
import signal
import sys
from collections.abc import Callable

from vaebench.studies.tracking.record import StoreError
from vaebench.vae.errors import DivergedError, InputError
from vaebench.vae.training import distributed

FAILED = 2
STOPPED = 128 + signal.SIGINT
NOT_READ = 128 + signal.SIGPIPE


def run(script: str, work: Callable[[], None]) -> int:
    """Do the work of a script and return its exit code.

    0 where all was done, 2 after an error whose message is a sentence for the user, 130 after Ctrl-C (the message of
    the `KeyboardInterrupt` says how to go on), 141 where the reader of the output, such as `head`, has closed it.
    """
    try:
        try:
            work()
        finally:
            print(end="", flush=True)  # a closed pipe is noticed here, and not when Python exits
    except (InputError, DivergedError, StoreError) as error:
        return _fail(f"{script}: {error}", FAILED)
    except KeyboardInterrupt as stop:
        return _fail(f"\n{str(stop) or 'Stopped; the same command goes on.'}", STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it exits
        return NOT_READ
    return 0


def format_command(name: str, *arguments: str) -> str:
    """Return the shell command of a script in studies/, spelled as this process was started.

    It begins with `vaebench sweep` under the console command, see vaebench/__main__.py, and otherwise with
    `python studies/sweep.py`.
    """
    script = ["vaebench", name] if sys.argv[0].startswith("vaebench ") else ["python", f"studies/{name}.py"]
    return shlex.join([*script, *arguments])


def _fail(message: str, code: int) -> int:
    """Print a message, once for all processes of a training; return the exit code."""
    if distributed.is_main_process():
        print(message, file=sys.stderr, flush=True)
    return code
