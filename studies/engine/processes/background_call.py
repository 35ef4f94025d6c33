"""One call in a process of its own, for what must not hold a connection here, or takes as long as something else."""

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
class Errand(Generic[T]):
    """A forked process that makes one call, leaves Ctrl-C to its parent, and ends where that ends."""

    process: ForkProcess
    pipe: Connection

    @property
    def is_done(self) -> bool:
        """Whether the process has ended."""
        return not self.process.is_alive()

    def answer(self) -> T | None:
        """Wait for what the call returned; None where it raised or its process was killed."""
        try:
            answer: T | None = self.pipe.recv()
        except EOFError:
            answer = None
        self.process.join()
        self.pipe.close()
        return answer


def send(call: Callable[..., T], *arguments: Any) -> Errand[T]:
    """Start a call."""
    listen, speak = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_run, args=(speak, call, arguments), daemon=True)
    process.start()
    speak.close()
    return Errand(process, listen)


def _run(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(call(*arguments))
