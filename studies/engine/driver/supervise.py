"""The driver of a study: hires workers, buries the dead, queues what is missing, until the study is done.

Where workers run is no business of its own: an engine starts them, listens to them and ends them, as a `Crew`.
"""

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.tracker_sync import Clerk
from vaebench.studies.engine.search.queue import SIGNING_SECONDS, Counts, Search
from vaebench.vae.errors import InputError

TICK_SECONDS = 0.5
ORPHAN_SECONDS = 5.0
DEATHS_IN_A_ROW = 12
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Death:
    """A worker that did not end by itself: the signature on its trial, and what is known of the cause."""

    owner: str
    cause: str


class Crew(Protocol):
    """The workers of one driver, each in the loop of `workers.serve`."""

    def __len__(self) -> int:
        """Return how many workers there are, those that are only being started included."""

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, as far as there are free places."""

    def attend(self, seconds: float) -> list[Death]:
        """Listen to the workers for a while, or until one is gone; return the dead."""

    def news(self) -> list[dict[str, Any]]:
        """Return the last that was heard of each worker: `{"trial": 3, "epoch": 7, ...}`."""

    def dismiss(self) -> list[Death]:
        """Kill all workers, and return when they are dead."""


@dataclass
class Deaths:
    """Gives up what dead workers were at, and stops where one dies after the other and none finishes a trial."""

    search: Search
    in_a_row: int = 0
    done_at_last: int = -1
    last: str = ""

    def bury(self, dead: Iterable[Death]) -> list[int]:
        """Fail and queue again the trials of the dead; return their numbers."""
        lost: list[int] = []
        for death in dead:
            lost += self.search.lose(death.owner, f"its worker died with {death.cause}")
            self.in_a_row, self.last = self.in_a_row + 1, death.cause
        return lost

    def require_progress(self, counts: Counts) -> None:
        """Raise where a dozen died since a trial was last finished."""
        if counts.done > self.done_at_last:
            self.done_at_last, self.in_a_row = counts.done, 0
        if self.in_a_row >= DEATHS_IN_A_ROW:
            raise InputError(
                f"{self.in_a_row} workers died one after the other before any finished a trial, the last with "
                f"{self.last}; a smaller batch or fewer --workers may need less memory."
            )

    def close(self, dead: Iterable[Death]) -> None:
        """Bury those who were killed at the end, and whoever of them died between claiming a trial and signing it."""
        self.bury(dead)
        self.search.lose_orphans()
        if self.search.suspects:
            time.sleep(SIGNING_SECONDS)
            self.search.lose_orphans()


def drive(crew: Crew, search: Search, keeper: Clerk, screen: Screen, *, leads: bool) -> None:
    """See the study to its end; one who joins starts workers, and leaves the rest to the one who leads.

    Where the one who leads is gone, whoever joined waits a minute for trials to be queued, and leaves.
    """
    deaths, looked, fed = Deaths(search), 0.0, time.monotonic()
    interrupted, before = _note_interrupts()
    try:
        while True:
            if interrupted():
                raise KeyboardInterrupt
            if leads and time.monotonic() - looked > ORPHAN_SECONDS:
                keeper.owes |= bool(search.lose_orphans())
                looked = time.monotonic()
            counts = search.top_up() if leads else search.counts()
            deaths.require_progress(counts)
            screen.show(counts, crew.news())
            fed = time.monotonic() if counts.waiting or len(crew) else fed
            done = not (counts.waiting or counts.running if leads else counts.waiting or len(crew))
            if done and (leads or counts.begun >= search.plan.trials or time.monotonic() - fed > PATIENCE_SECONDS):
                break
            crew.fill(counts.waiting)
            keeper.owes |= bool(deaths.bury(crew.attend(TICK_SECONDS)))
            keeper.look()
    finally:
        deaths.close(crew.dismiss())
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
