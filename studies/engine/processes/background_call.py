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

_fork: ForkContext = multiprocessing.get_context("fork")


@dataclass
class BackgroundCall(Generic[T]):
    """A forked process that runs one call, ignores Ctrl-C, and ends when its parent ends."""

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
    reader, writer = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_run, args=(writer, call, arguments), daemon=True)
    process.start()
    writer.close()
    return BackgroundCall(process, reader)


def _run(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(call(*arguments))
