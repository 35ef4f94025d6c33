"""The process that keeps the tracker in step with the study: forked when there is something to write, then gone.

The driver forks workers at any time, so it holds no connection of its own.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna.trial import TrialState

from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.processes.background_call import Errand
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import PARENT_TRIAL, Record, StoreError, milliseconds
from vaebench.vae.errors import InputError

PAUSE_SECONDS = 5.0
KILLED = ("killed", "the process that writes to the tracker was killed")


@dataclass
class Clerk:
    """Starts the process when runs are left open by the dead, or when records wait in the outbox.

    Attributes:
        owes: whether the driver knows of something to write.
        trouble: why the tracker could not be reached the last time, empty if it could.
    """

    job: Job
    owes: bool = False
    trouble: str = ""
    errand: Errand[tuple[str, str]] | None = None
    started: float = field(default=-PAUSE_SECONDS)

    def look(self) -> None:
        """Start the process if there is something to write, or see whether it is done; never wait."""
        if self.errand is not None:
            if not self.errand.is_done:
                return
            self._read(self.errand)
        due = time.monotonic() - self.started > PAUSE_SECONDS
        if self.job.tracker is not None and due and (self.owes or self.job.outbox.waiting):
            self._start()

    def settle(self) -> None:
        """Write all there is to write, and wait for it."""
        if self.job.tracker is None:
            return
        if self.errand is not None:
            self._read(self.errand)
        self._read(self._start())

    def _start(self) -> Errand[tuple[str, str]]:
        self.owes, self.started = False, time.monotonic()
        self.errand = background_call.send(main, self.job)
        return self.errand

    def _read(self, errand: Errand[tuple[str, str]]) -> None:
        """Take the answer of the process, once it has ended."""
        kind, self.trouble = errand.answer() or KILLED
        self.errand = None
        if kind == "input":
            raise InputError(self.trouble)
        self.owes |= kind != "done"


def main(job: Job) -> tuple[str, str]:
    """Create what is missing, replay the outbox, close what is open; return how it went."""
    try:
        return "done", tend(job)
    except StoreError as error:
        return "unreachable", str(error)
    except InputError as error:
        return "input", str(error)


def tend(job: Job) -> str:
    """Bring the tracker up to date and return what is still wrong, empty if nothing."""
    assert job.tracker is not None
    job.tracker.prepare(parent_record(job))
    left = replay(job.tracker, job.outbox)
    ended = queue.connect(job.plan).trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    reconcile(job.tracker, {trial.number: job.ended(trial) for trial in ended})
    return f"{left} runs wait in {job.outbox.path}" if left else ""


def replay(tracker: Tracker, outbox: Outbox) -> int:
    """Write what waits in the outbox and return how much of it is left; nothing is written twice."""
    records = outbox.take()
    left = []
    for i, record in enumerate(records):
        try:
            tracker.upsert(record)
        except StoreError:
            left = records[i:]
            break
    for record in left:
        outbox.put(record)
    if len(left) < len(records):
        tracker.sync()
    outbox.taken()
    return len(left)


def reconcile(tracker: Tracker, ended: Mapping[int, Record]) -> None:
    """Give every trial that ended exactly one run that says how, though its worker was killed before it could."""
    known = {run.trial: run for run in tracker.runs()}
    for trial, record in ended.items():
        if trial not in known:
            tracker.upsert(record)
        elif known[trial].status != record.status:
            tracker.close(known[trial].run, record.status, record.end)


def parent_record(job: Job) -> Record:
    """Return the record of the study itself: what it searches and what it holds constant.

    All of it as tags: a param of the parent alone would be the first axis when all runs of a study are compared.
    """
    varied = {dimension.name for dimension in job.plan.space.dimensions}
    constants = {name: str(value) for name, value in job.plan.base.flat().items() if name not in varied}
    ranges = {f"space.{dimension.name}": str(dimension) for dimension in job.plan.space.dimensions}
    how = {name: str(getattr(job.plan, name)) for name in ("sampler", "pruner", "seeds", "stack")}
    tags = {**job.tags, **constants, **ranges, **how, "target": job.plan.target.name}
    return Record(PARENT_TRIAL, job.plan.name, milliseconds(), tags=tags)
