"""Command lines: their parser, their exit codes, where a failure is one sentence on stderr, and printed commands.

It imports nothing that takes seconds. A command reads its options first and imports what it needs afterwards, so that
`--help` and a wrong option are answered at once.
"""

import argparse
import gc
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from vaebench.studies.passwords import without_passwords

FAILED = 2
STOPPED = 128 + signal.SIGINT
NOT_READ = 128 + signal.SIGPIPE


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the page of usage, and whose options have no abbreviations."""

    def __init__(self, description: str | None) -> None:
        shown_as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=shown_as_written, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the message, and end the process with the exit code of a failure."""
        self.exit(FAILED, f"{self.prog}: {without_passwords(message)}; see --help.\n")

    def add_settings(self) -> None:
        """Add `--set`, which reaches every setting of a run."""
        doc = "any setting: train.epochs=50"
        self.add_argument("--set", action="append", default=[], type=_split_assignment, metavar="NAME=X", help=doc)


def run_command(name: str, parser: Parser, arguments: Sequence[str] | None) -> int:
    """Read the options of a command, then import its module in studies/commands/ and run it; return the exit code.

    Garbage collections while torch, MLflow and Optuna are imported would take a second.
    """

    def work() -> None:
        options = parser.parse_args(arguments)
        options.command = format_command(name, *(sys.argv[1:] if arguments is None else arguments))
        gc.disable()
        module = importlib.import_module(f"vaebench.studies.commands.{name}")
        gc.enable()
        module.run(options)

    return run(f"{name}.py", work)


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
    except KeyboardInterrupt as stop:
        return _fail(f"\n{str(stop) or 'Stopped; the same command goes on.'}", STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it exits
        return NOT_READ
    except Exception as error:
        if (message := _explain(error)) is None:
            raise
        return _fail(f"{script}: {message}", FAILED)
    return 0


def format_command(name: str, *arguments: str) -> str:
    """Return the shell command of a script in studies/, spelled as this process was started.

    It begins with `vaebench sweep` under the console command, see vaebench/__main__.py, and otherwise with
    `python studies/sweep.py`. Passwords are left out, since it is printed and written.
    """
    script = ["vaebench", name] if sys.argv[0].startswith("vaebench ") else ["python", f"studies/{name}.py"]
    return shlex.join([*script, *map(without_passwords, arguments)])


def _split_assignment(text: str) -> tuple[str, str]:
    """Read `NAME=VALUE`."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, as in train.epochs=50, got {text!r}")
    return name, value


def _explain(error: Exception) -> str | None:
    """Return the sentence for an error that a user can cause, None for an error of the program."""
    from vaebench.studies.tracking.record import StoreError
    from vaebench.vae.errors import DivergedError, InputError, explain_memory

    if isinstance(error, InputError | DivergedError | StoreError):
        return without_passwords(str(error))
    return explain_memory(error)


def _fail(message: str, code: int) -> int:
    """Print a message, by the first of the processes that `torchrun` started alone; return the exit code."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        print(message, file=sys.stderr, flush=True)
    return code
