"""The worker loop: claim trials, train them, tell Optuna and the tracker, until no trial is queued.

An engine only starts workers: `launch.local` as processes of this machine, `launch.ray_cluster` as actors of a Ray
cluster. Under any other scheduler each machine runs `sweep.py --join`.
"""

import contextlib
import gc
import math
import os
import threading
import traceback
from collections.abc import Callable
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
from vaebench.studies.engine.workers.job import STATUS, Job
from vaebench.studies.engine.workers.stacked_trials import StackedTrials, stack_size
from vaebench.studies.engine.workers.trial import (
    Log,
    TrainingRequests,
    hash_weights,
    request_trainings,
    save,
    target_values,
)
from vaebench.studies.tracking.record import RunRecord, milliseconds
from vaebench.studies.tracking.recorder import Recorder
from vaebench.vae.errors import sentence
from vaebench.vae.training.epoch import Metrics

FATAL_EXIT = 3

Tell = Callable[[dict[str, Any]], None]
IsWanted = Callable[[], bool]


class Orphaned(BaseException):
    """The driver of this worker is gone."""


def run_process(job: Job, lock_file: Path, device: int, pipe: Connection) -> None:
    """Run one worker in a forked process.

    Args:
        job: the study to work on.
        lock_file: a file that the worker keeps locked while it lives.
        device: index of the GPU, where there are any.
        pipe: takes `{"trial": 3, "epoch": 7, ...}` after each epoch, and `{"fatal": sentence}` before a fatal exit.
    """
    gc.freeze()  # spares every collection 0.4 s for the objects that were imported before the fork
    driver = os.getppid()
    locked = lock.hold(lock_file)
    assert locked is not None, "a lock file has one owner"
    print(os.getpid(), file=locked, flush=True)
    try:
        run_trials(job, queue.owner_of(lock_file), device, pipe.send, lambda: os.getppid() == driver)
    except STORAGE_ERRORS as error:
        pipe.send({"fatal": sentence(error)})
        os._exit(FATAL_EXIT)
    except Orphaned:
        os._exit(FATAL_EXIT)
    finally:
        locked.close()


def run_trials(job: Job, owner: str, device: int, tell: Tell, is_wanted: IsWanted) -> None:
    """Train queued trials until none is queued.

    Args:
        job: the study to work on.
        owner: written on each trial, see `queue.owner_of`.
        device: index of the GPU, where there are any.
        tell: takes a message after each epoch.
        is_wanted: whether the driver still wants this worker; asked between trials and after each epoch.
    """
    torch.set_num_threads(job.threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(device % torch.cuda.device_count())
    search = queue.connect(job.plan, forks=False)
    stacked = StackedTrials(job.raw, stack_size(job.plan, job.raw))
    while True:
        while is_wanted() and _has_room(stacked, search) and (trial := search.claim(owner)) is not None:
            claimed = ClaimedTrial(
                job, trial, lambda message: tell(message | {"together": max(1, len(stacked))}), is_wanted
            )
            stacked.add(_with_heartbeats(search, claimed))
        if not stacked:
            return
        stacked.train_epoch()


def _has_room(stacked: StackedTrials, search: Search) -> bool:
    """Whether a worker takes another trial; a worker that stacks takes at most its share of the trials left."""
    if stacked.size == 1:
        return True
    if len(stacked) >= stacked.size:
        return False
    counts = search.counts()
    return len(stacked) < math.ceil((counts.waiting + counts.running) / search.plan.workers)


def _with_heartbeats(search: Search, claimed: "ClaimedTrial") -> TrainingRequests[None]:
    """Run a trial; meanwhile a thread records heartbeats, where the storage takes them."""
    if not search.takes_heartbeats:
        return (yield from claimed.request_trainings())
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(*STORAGE_ERRORS):  # the next heartbeat may get through
                search.heartbeat(claimed.trial)

    search.heartbeat(claimed.trial)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield from claimed.request_trainings()
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that a worker has claimed."""

    job: Job
    trial: optuna.Trial
    tell: Tell
    is_wanted: IsWanted

    def request_trainings(self) -> TrainingRequests[None]:
        """Ask for the trainings of the trial, and write down its end exactly once.

        The tracker gets everything but the end before the study is told, so that the driver can close the run wherever
        this worker is killed.
        """
        point = self.job.plan.space.suggest(self.trial)
        recorder = Recorder(self.job.begin_record(self.trial.number, point), self.job.tracker, self.job.outbox)
        recorder.begin()

        def log(epoch: int, metrics: Metrics) -> None:
            if not self.is_wanted():
                raise Orphaned
            recorder.log(epoch, metrics)
            self.tell({"trial": self.trial.number, "epoch": epoch, **metrics})

        try:
            state, values = yield from self._train(point, recorder.record, log)
            recorder.conclude(STATUS[state])
            self.trial.study.tell(self.trial, values, state)
        except UpdateFinishedTrialError:
            return  # the driver took this worker for dead and has queued the trial again
        recorder.close()

    def _train(
        self, point: Point, record: RunRecord, log: Log
    ) -> TrainingRequests[tuple[TrialState, list[float] | None]]:
        """Train, add metrics, files and tags to the trial's record, and return how the trial ended."""
        plan, folder = self.job.plan, self.job.trial_folder(self.trial.number)
        try:
            outcome = yield from request_trainings(self.trial, plan, plan.config(point), self.job.raw, log)
            values = target_values(plan, outcome)
        except (*STORAGE_ERRORS, UpdateFinishedTrialError):
            raise
        except Exception as error:  # a setting that cannot be trained is a result too
            self.trial.set_user_attr(RAISED, sentence(error))
            record.tags["error"] = sentence(error)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc())
            record.files = [str(folder / "error.txt")]
            return TrialState.FAIL, None
        record.files = [str(path) for path in save(outcome, self.job.raw, folder)]
        record.tags["weights_sha256"] = hash_weights(outcome.model)
        now, last = milliseconds(), max((step for *_, step in record.metrics), default=0)
        record.metrics += [(name, value, now, last) for name, value in outcome.metrics.items()]
        return (TrialState.PRUNED, None) if outcome.pruned else (TrialState.COMPLETE, values)
