"""Workers as processes of this machine, forked from the driver."""

import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from vaebench.studies.engine.driver.supervise import DeadWorker
from vaebench.studies.engine.processes.background_call import fork
from vaebench.studies.engine.search.queue import owner_of
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.engine.workers.loop import run_process
from vaebench.vae.errors import InputError


@dataclass
class WorkerHandle:
    """A worker process as its driver sees it."""

    process: ForkProcess
    pipe: Connection
    lock_file: Path
    last: dict[str, Any] = field(default_factory=dict)


@dataclass
class ForkedWorkers:
    """Workers that are forked from the driver, which has imported everything that they need.

    The driver holds no connection and has run no parallel arithmetic, so that forking it is safe.
    """

    job: Job
    handles: dict[int, WorkerHandle] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.handles)

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, up to the number of the plan."""
        free = [place for place in range(self.job.plan.workers) if place not in self.handles]
        for place in free[:queued]:
            lock_file = self.job.plan.folder / "alive" / uuid.uuid4().hex
            process, pipe = fork(partial(run_process, self.job, lock_file, place))
            self.handles[place] = WorkerHandle(process, pipe, lock_file)

    def wait(self, seconds: float) -> list[DeadWorker]:
        """Listen to the workers for a while, or until one is gone; return the dead ones."""
        if not self.handles:
            time.sleep(seconds)
        dead: list[DeadWorker] = []
        count, until = len(self.handles), time.monotonic() + seconds
        while self.handles and len(self.handles) == count and (left := until - time.monotonic()) > 0:
            ready = wait([handle.pipe for handle in self.handles.values()], left)
            for place in [place for place, handle in self.handles.items() if handle.pipe in ready]:
                try:
                    self.handles[place].last = _receive(self.handles[place].pipe)
                except (EOFError, ConnectionResetError):
                    dead += _reap(self.handles.pop(place))
        return dead

    def messages(self) -> list[dict[str, Any]]:
        """Return the last message of each worker."""
        return [handle.last for handle in self.handles.values()]

    def stop(self) -> list[DeadWorker]:
        """Kill all workers, and return them when they are dead."""
        handles, self.handles = list(self.handles.values()), {}
        for handle in handles:
            handle.process.kill()
        return [dead for handle in handles for dead in _reap(handle)]


def _receive(pipe: Connection) -> dict[str, Any]:
    message: dict[str, Any] = pipe.recv()
    if "fatal" in message:
        raise InputError(f"a worker had to stop: {message['fatal']}; the same command goes on.")
    return message


def _reap(handle: WorkerHandle) -> list[DeadWorker]:
    """Wait for the end of a worker, and return it if it did not end by itself."""
    handle.process.join()
    handle.pipe.close()
    owner = owner_of(handle.lock_file)
    handle.lock_file.unlink(missing_ok=True)
    code = handle.process.exitcode
    return [DeadWorker(owner, f"signal {-code}" if code < 0 else f"exit code {code}")] if code else []
