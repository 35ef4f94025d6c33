"""The one worker loop: claim trials, train them, tell Optuna and the tracker, until no trial is queued.

An engine only starts workers: `forked` as processes of this machine, `actors` on a Ray cluster. Under any other
scheduler each machine runs `sweep.py --join`.
"""

import contextlib
import gc
import math
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.queue import HEARTBEAT_SECONDS, RAISED, STORAGE_ERRORS, Search
from vaebench.studies.engine.study.space import Point
from vaebench.studies.engine.workers import stacked_trials
from vaebench.studies.engine.workers import trial as trials
from vaebench.studies.engine.workers.job import STATUS, Job
from vaebench.studies.engine.workers.stacked_trials import Company
from vaebench.studies.tracking.record import Record, milliseconds
from vaebench.studies.tracking.recorder import Recorder
from vaebench.vae.errors import sentence
from vaebench.vae.training.epoch import Metrics

FATAL_EXIT = 3


Tell = Callable[[dict[str, Any]], None]
Led = Callable[[], bool]


class Orphaned(BaseException):
    """The driver of this worker is gone."""


def main(job: Job, badge: Path, device: int, pipe: Connection) -> None:
    """Run one worker in a forked process.

    Args:
        badge: a file that it keeps locked while it lives.
        device: which GPU, where there are any.
        pipe: takes `{"trial": 3, "epoch": 7, ...}` after each epoch, and `{"fatal": sentence}` at the worst.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver decides
    gc.freeze()  # what was imported before the fork stays: to look through it takes 0.4 s each time
    driver = os.getppid()
    locked = lock.hold(badge)
    assert locked is not None, "a badge has one owner"
    print(os.getpid(), file=locked, flush=True)
    try:
        serve(job, queue.sign(badge), device, pipe.send, lambda: os.getppid() == driver)
    except STORAGE_ERRORS as error:
        pipe.send({"fatal": sentence(error)})
        os._exit(FATAL_EXIT)
    except Orphaned:
        os._exit(FATAL_EXIT)
    finally:
        locked.close()


def serve(job: Job, owner: str, device: int, tell: Tell, led: Led) -> None:
    """Work on queued trials until there is none.

    Args:
        owner: what trials are signed with.
        tell: takes what there is to say after each epoch.
        led: whether the driver still wants this worker; asked between trials and after each epoch.
    """
    torch.set_num_threads(job.threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(device % torch.cuda.device_count())
    opened = queue.connect(job.plan, forks=False)
    company = Company(job.raw, stacked_trials.room(job.plan, job.raw))
    while True:
        while led() and _has_room(company, opened) and (trial := opened.claim(owner)) is not None:
            work = Work(job, trial, lambda message: tell(message | {"together": max(1, len(company))}), led)
            company.take(_beating(opened, work))
        if not company:
            return
        company.epoch()


def _has_room(company: Company, opened: Search) -> bool:
    """Whether a worker takes another trial: with room for several, no more than its share of those that are left."""
    if company.room == 1:
        return True
    if len(company) >= company.room:
        return False
    counts = opened.counts()
    return len(company) < math.ceil((counts.waiting + counts.running) / opened.plan.workers)


def _beating(opened: Search, work: "Work") -> trials.Steps[None]:
    """Return the steps of a trial, and say while it lasts that its worker is alive."""
    with _heartbeats(opened, work.trial):
        yield from work.steps()


@dataclass(frozen=True)
class Work:
    """One claimed trial in the hands of a worker."""

    job: Job
    trial: optuna.Trial
    tell: Tell
    led: Led

    def run(self) -> None:
        """Train alone, from beginning to end."""
        trials.alone(self.steps(), self.job.raw)

    def steps(self) -> trials.Steps[None]:
        """Say what is to be trained, and see to it that whatever comes of it is written down once.

        The tracker has all but the end before the study is told: wherever a kill falls, the driver can close the run.
        """
        point = self.job.plan.space.suggest(self.trial)
        recorder = Recorder(self.job.record(self.trial.number, point), self.job.tracker, self.job.outbox)
        recorder.begin()

        def log(epoch: int, metrics: Metrics) -> None:
            if not self.led():
                raise Orphaned
            recorder.log(epoch, metrics)
            self.tell({"trial": self.trial.number, "epoch": epoch, **metrics})

        try:
            state, values = yield from self._train(point, recorder.record, log)
            recorder.conclude(STATUS[state])
            self.trial.study.tell(self.trial, values, state)
        except UpdateFinishedTrialError:
            return  # the driver took it for dead and has queued it again
        recorder.close()

    def _train(
        self, point: Point, found: Record, log: trials.Log
    ) -> trials.Steps[tuple[TrialState, list[float] | None]]:
        """Return how the trial ended, after adding to its record what there is to say about it."""
        plan, folder = self.job.plan, self.job.folder(self.trial.number)
        try:
            outcome = yield from trials.steps(self.trial, plan, plan.config(point), self.job.raw, log)
            values = trials.values(plan, outcome)
        except (*STORAGE_ERRORS, UpdateFinishedTrialError):
            raise
        except Exception as error:  # a setting that cannot be trained is a result too
            self.trial.set_user_attr(RAISED, sentence(error))
            found.tags["error"] = sentence(error)
            found.files = [str(trials.save_error(traceback.format_exc(), folder))]
            return TrialState.FAIL, None
        found.files = [str(path) for path in trials.save(outcome, self.job.raw, folder)]
        found.tags["weights_sha256"] = trials.fingerprint(outcome.model)
        now, last = milliseconds(), max((step for *_, step in found.metrics), default=0)
        found.metrics += [(name, value, now, last) for name, value in outcome.metrics.items()]
        return (TrialState.PRUNED, None) if outcome.pruned else (TrialState.COMPLETE, values)


@contextlib.contextmanager
def _heartbeats(opened: Search, trial: optuna.Trial) -> Iterator[None]:
    """Say from time to time that this worker is alive, where other machines can only know it so."""
    if not opened.listens:
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(*STORAGE_ERRORS):  # the next beat may get through
                opened.heartbeat(trial)

    opened.heartbeat(trial)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
