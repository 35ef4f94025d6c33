"""The driver of a study: start workers, requeue the trials of dead workers, queue missing trials, until it is done.

The driver does not know where workers run: an engine starts them, listens to them and kills them, as `Workers`.
"""

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.tracker_sync import TrackerSync
from vaebench.studies.engine.search.queue import GRACE_SECONDS, Search
from vaebench.studies.engine.search.states import INTERRUPTED, Counts
from vaebench.vae.errors import InputError

TICK_SECONDS = 0.5
ORPHAN_SECONDS = 5.0
DEATHS_IN_A_ROW = 12
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class DeadWorker:
    """A worker that did not end by itself: the owner of its trials, and the cause as far as it is known."""

    owner: str
    cause: str


class Workers(Protocol):
    """The workers of one driver, each of which runs `workers.loop.run_trials`."""

    def __len__(self) -> int:
        """Return how many workers there are, including those that are still starting."""

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, up to the number of the plan."""

    def wait(self, seconds: float) -> list[DeadWorker]:
        """Listen to the workers for a while, or until one is gone; return the dead ones."""

    def messages(self) -> list[dict[str, Any]]:
        """Return the last message of each worker: `{"trial": 3, "epoch": 7, ...}`."""

    def stop(self) -> list[DeadWorker]:
        """Kill all workers, and return them when they are dead."""


@dataclass
class LostTrials:
    """Requeues the trials of dead workers, and ends the study where workers only die and none finishes a trial."""

    search: Search
    deaths_in_a_row: int = 0
    done_before: int = -1
    last_cause: str = ""

    def requeue_lost(self, dead: Iterable[DeadWorker]) -> list[int]:
        """Fail and queue again the trials of dead workers; return their numbers."""
        lost: list[int] = []
        for worker in dead:
            lost += self.search.requeue(worker.owner, f"its worker died: {worker.cause}")
            self.deaths_in_a_row, self.last_cause = self.deaths_in_a_row + 1, worker.cause
        return lost

    def require_progress(self, counts: Counts) -> None:
        """Raise where a dozen workers died since a trial was last finished."""
        if counts.done > self.done_before:
            self.done_before, self.deaths_in_a_row = counts.done, 0
        if self.deaths_in_a_row >= DEATHS_IN_A_ROW:
            raise InputError(
                f"{self.deaths_in_a_row} workers died one after the other before any finished a trial, the last with "
                f"{self.last_cause}; a smaller batch or fewer --workers may need less memory."
            )

    def close(self, dead: Iterable[DeadWorker]) -> None:
        """Requeue the trials of workers that the driver killed, also where a worker was not yet noted as the owner."""
        for worker in dead:
            self.search.requeue(worker.owner, INTERRUPTED)
        self.search.requeue_orphans(INTERRUPTED)
        if self.search.suspects:
            time.sleep(GRACE_SECONDS)
            self.search.requeue_orphans(INTERRUPTED)


def drive(workers: Workers, search: Search, sync: TrackerSync, screen: Screen, *, leads: bool) -> None:
    """Run workers until the study is done.

    The process that leads also queues trials and looks for orphans. A process that joins only runs workers: it leaves
    when all trials are begun, or when nothing has been queued for a minute, since the leading process may be gone.
    """
    lost, checked, busy = LostTrials(search), 0.0, time.monotonic()
    interrupted, before = _note_interrupts()
    try:
        while True:
            if interrupted():
                raise KeyboardInterrupt
            if leads and time.monotonic() - checked > ORPHAN_SECONDS:
                sync.pending |= bool(search.requeue_orphans())
                checked = time.monotonic()
            counts = search.top_up() if leads else search.counts()
            lost.require_progress(counts)
            screen.show(counts, workers.messages())
            busy = time.monotonic() if counts.waiting or len(workers) else busy
            done = not (counts.waiting or counts.running if leads else counts.waiting or len(workers))
            if done and (leads or counts.begun >= search.plan.trials or time.monotonic() - busy > PATIENCE_SECONDS):
                break
            workers.fill(counts.waiting)
            sync.pending |= bool(lost.requeue_lost(workers.wait(TICK_SECONDS)))
            sync.poll()
    finally:
        dead = workers.stop()
        lost.close(dead)
        sync.pending |= bool(dead)
        screen.close()
        signal.signal(signal.SIGINT, before)
    if interrupted():
        raise KeyboardInterrupt


def _note_interrupts() -> tuple[Callable[[], bool], Any]:
    """Note the first Ctrl-C instead of raising; return a function that tells whether it came, and the old handler.

    An exception raised in the middle of a destructor or a callback would be lost. The second Ctrl-C raises at once.
    """
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt

    return lambda: bool(noted), signal.signal(signal.SIGINT, note)
