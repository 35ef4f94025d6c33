"""Workers as processes of this machine, forked from the driver."""

import multiprocessing
import time
import uuid
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any

from vaebench.studies.engine.driver.supervise import Death
from vaebench.studies.engine.search.queue import sign
from vaebench.studies.engine.workers import loop
from vaebench.studies.engine.workers.job import Job
from vaebench.vae.errors import InputError

_fork: ForkContext = multiprocessing.get_context("fork")


@dataclass
class Hand:
    """A worker as its driver sees it."""

    process: ForkProcess
    pipe: Connection
    badge: Path
    last: dict[str, Any] = field(default_factory=dict)


@dataclass
class Forked:
    """A crew whose members are forked from a process that has imported everything.

    That process holds no connection and has run no parallel arithmetic.
    """

    job: Job
    hands: dict[int, Hand] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hands)

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, as far as there are free places."""
        free = [place for place in range(self.job.plan.workers) if place not in self.hands]
        for place in free[:queued]:
            self.hands[place] = self._start(place)

    def attend(self, seconds: float) -> list[Death]:
        """Listen to the workers for a while, or until one is gone; return the dead."""
        if not self.hands:
            time.sleep(seconds)
        dead: list[Death] = []
        staff, until = len(self.hands), time.monotonic() + seconds
        while self.hands and len(self.hands) == staff and (left := until - time.monotonic()) > 0:
            ready = wait([hand.pipe for hand in self.hands.values()], left)
            for place in [place for place, hand in self.hands.items() if hand.pipe in ready]:
                try:
                    self._hear(self.hands[place], self.hands[place].pipe.recv())
                except (EOFError, ConnectionResetError):
                    dead += _leave(self.hands.pop(place))
        return dead

    def news(self) -> list[dict[str, Any]]:
        """Return the last that was heard of each worker."""
        return [hand.last for hand in self.hands.values()]

    def dismiss(self) -> list[Death]:
        """Kill all workers, and return when they are dead."""
        hands, self.hands = list(self.hands.values()), {}
        for hand in hands:
            hand.process.kill()
        return [death for hand in hands for death in _leave(hand)]

    def _start(self, place: int) -> Hand:
        listen, speak = _fork.Pipe(duplex=False)
        badge = self.job.plan.folder / "alive" / uuid.uuid4().hex
        process = _fork.Process(target=loop.main, args=(self.job, badge, place, speak), daemon=True)
        process.start()
        speak.close()
        return Hand(process, listen, badge)

    def _hear(self, hand: Hand, message: dict[str, Any]) -> None:
        if "fatal" in message:
            raise InputError(f"a worker had to stop: {message['fatal']}; the same command goes on.")
        hand.last = message


def _leave(hand: Hand) -> list[Death]:
    """See a worker out, and return its death if it did not end by itself."""
    hand.process.join()
    hand.pipe.close()
    owner = sign(hand.badge)
    hand.badge.unlink(missing_ok=True)
    code = hand.process.exitcode
    return [Death(owner, _cause(code))] if code else []


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
