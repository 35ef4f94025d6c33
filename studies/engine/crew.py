"""The driver of a study: forks workers, buries the dead, queues what is missing, until the study is done."""

import multiprocessing
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any

from studies.engine import workers
from studies.engine.clerk import Clerk
from studies.engine.jobs import Job
from studies.engine.progress import Screen
from studies.engine.search import SIGNING_SECONDS, Counts, Search, sign
from vae.errors import InputError

TICK_SECONDS = 0.5
ORPHAN_SECONDS = 5.0
DEATHS_IN_A_ROW = 12

_fork: ForkContext = multiprocessing.get_context("fork")


@dataclass
class Hand:
    """A worker as its driver sees it."""

    process: ForkProcess
    pipe: Connection
    badge: Path
    last: dict[str, Any] = field(default_factory=dict)


@dataclass
class Crew:
    """The workers of one driver.

    Forked from a process that has imported everything, holds no connection and has run no parallel arithmetic.
    """

    job: Job
    search: Search
    hands: dict[int, Hand] = field(default_factory=dict)
    deaths: int = 0
    done_at_last_death: int = -1
    last_death: str = ""

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, as far as there are free places."""
        free = [place for place in range(self.job.plan.workers) if place not in self.hands]
        for place in free[:queued]:
            self.hands[place] = self._start(place)

    def attend(self, seconds: float) -> list[int]:
        """Listen to the workers for a while, or until one is gone; return the numbers of the trials of the dead."""
        if not self.hands:
            time.sleep(seconds)
        lost: list[int] = []
        staff, until = len(self.hands), time.monotonic() + seconds
        while self.hands and len(self.hands) == staff and (left := until - time.monotonic()) > 0:
            ready = wait([hand.pipe for hand in self.hands.values()], left)
            for place in [place for place, hand in self.hands.items() if hand.pipe in ready]:
                try:
                    self._hear(self.hands[place], self.hands[place].pipe.recv())
                except (EOFError, ConnectionResetError):
                    lost += self._bury(self.hands.pop(place))
        return lost

    def dismiss(self) -> list[int]:
        """Kill all workers and give up what they were at; return the numbers of their trials."""
        hands, self.hands = list(self.hands.values()), {}
        for hand in hands:
            hand.process.kill()
        lost = [number for hand in hands for number in self._bury(hand)] + self.search.lose_orphans()
        if self.search.suspects:  # whoever claimed them died before signing, or is about to sign
            time.sleep(SIGNING_SECONDS)
            lost += self.search.lose_orphans()
        return lost

    def require_progress(self, counts: Counts) -> None:
        """Stop where workers die again and again and none finishes a trial."""
        if counts.done > self.done_at_last_death:
            self.done_at_last_death, self.deaths = counts.done, 0
        if self.deaths >= DEATHS_IN_A_ROW:
            raise InputError(
                f"{self.deaths} workers died one after the other before any finished a trial, the last with "
                f"{self.last_death}; a smaller batch or fewer --workers may need less memory."
            )

    def _start(self, place: int) -> Hand:
        listen, speak = _fork.Pipe(duplex=False)
        badge = self.job.plan.folder / "alive" / uuid.uuid4().hex
        process = _fork.Process(target=workers.main, args=(self.job, badge, place, speak), daemon=True)
        process.start()
        speak.close()
        return Hand(process, listen, badge)

    def _hear(self, hand: Hand, message: dict[str, Any]) -> None:
        if "fatal" in message:
            raise InputError(f"a worker had to stop: {message['fatal']}; the same command goes on.")
        hand.last = message

    def _bury(self, hand: Hand) -> list[int]:
        hand.process.join()
        hand.pipe.close()
        lost: list[int] = []
        if hand.process.exitcode != 0:
            self.last_death = _cause(hand.process.exitcode)
            lost = self.search.lose(sign(hand.badge), f"its worker died with {self.last_death}")
            self.deaths += 1
        hand.badge.unlink(missing_ok=True)
        return lost


def drive(job: Job, search: Search, keeper: Clerk, screen: Screen, *, leads: bool) -> None:
    """See the study to its end; one who joins starts workers, and leaves the rest to the one who leads."""
    crew = Crew(job, search)
    looked = 0.0
    interrupted, before = _note_interrupts()
    try:
        while True:
            if interrupted():
                raise KeyboardInterrupt
            if leads and time.monotonic() - looked > ORPHAN_SECONDS:
                keeper.owes |= bool(search.lose_orphans())
                looked = time.monotonic()
            counts = search.top_up() if leads else search.counts()
            crew.require_progress(counts)
            screen.show(counts, [hand.last for hand in crew.hands.values()])
            if not counts.waiting and not (counts.running if leads else crew.hands):
                break
            crew.fill(counts.waiting)
            keeper.owes |= bool(crew.attend(TICK_SECONDS))
            keeper.look()
    finally:
        crew.dismiss()
        screen.clear()
        signal.signal(signal.SIGINT, before)
    if interrupted():
        raise KeyboardInterrupt


def _note_interrupts() -> tuple[Callable[[], bool], Any]:
    """Note the first Ctrl-C from now on, and return what tells whether it came, and the handler there was before.

    Raised in the midst of a destructor or a callback it would be lost. The second one is raised wherever it falls.
    """
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt

    return lambda: bool(noted), signal.signal(signal.SIGINT, note)


def _cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
