"""Run one call in a forked child and collect its result later.

So the driver never opens a database connection, and never blocks.
"""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_context: ForkContext = multiprocessing.get_context("fork")


@dataclass
class BackgroundCall(Generic[T]):
    """A forked process that runs one call."""

    process: ForkProcess
    pipe: Connection

    @property
    def is_done(self) -> bool:
        """Whether the process has ended."""
        return not self.process.is_alive()

    def result(self) -> T | None:
        """Wait for the value that the call returns; None where it raised or its process was killed."""
        try:
            value: T | None = self.pipe.recv()
        except EOFError:
            value = None
        self.process.join()
        self.pipe.close()
        return value


def start(call: Callable[..., T], *arguments: Any) -> BackgroundCall[T]:
    """Start a call."""
    return BackgroundCall(*fork(lambda pipe: pipe.send(call(*arguments))))


def fork(work: Callable[[Connection], None]) -> tuple[ForkProcess, Connection]:
    """Fork a process that writes to a pipe; return the process and the end of the pipe to read from.

    The process ignores Ctrl-C, which reaches all processes of a terminal: its parent decides. It ends when its parent
    exits normally.
    """
    reader, writer = _context.Pipe(duplex=False)

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        work(writer)

    process = _context.Process(target=run, daemon=True)
    process.start()
    writer.close()
    return process, reader
