"""The worker loop: claim trials, train them, tell Optuna and the tracker, until no trial is queued.

An engine only starts workers: `launch.local` as processes of this machine, `launch.ray_cluster` as actors of a Ray
cluster. Under any other scheduler each machine runs `sweep.py --join`.
"""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError

from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.queue import HEARTBEAT_SECONDS, STORAGE_ERRORS, Search
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.engine.workers.trial import finish_trial
from vaebench.studies.engine.workers.trial_log import IsWanted, Orphaned, Tell, TrialLog
from vaebench.vae.errors import sentence

FATAL_EXIT = 3


def run_process(job: Job, lock_file: Path, device: int, pipe: Connection) -> None:
    """Run one worker in a forked process.

    Args:
        job: the study to work on.
        lock_file: a file that the worker keeps locked while it lives.
        device: index of the GPU, where there are any.
        pipe: takes `{"trial": 3, "epoch": 7, "epochs": 50, ...}` after each epoch, and `{"fatal": sentence}` before a
            fatal exit.
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

    A trial that the driver took for dead has been queued again, and whatever this worker finds for it is dropped.

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
    while is_wanted() and (trial := search.claim(owner)) is not None:
        with record_heartbeats(search, trial), contextlib.suppress(UpdateFinishedTrialError):
            finish_trial(trial, TrialLog(job, trial, tell, is_wanted))


@contextlib.contextmanager
def record_heartbeats(search: Search, trial: optuna.Trial) -> Iterator[None]:
    """Let a thread record heartbeats inside the block, where the storage takes them."""
    if not search.takes_heartbeats:
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(*STORAGE_ERRORS):  # the next heartbeat may get through
                search.heartbeat(trial)

    search.heartbeat(trial)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
