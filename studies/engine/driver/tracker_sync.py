"""Keep the tracker in step with the study: a process is forked when there is something to write, and then ends.

The driver forks workers at any time, so it holds no connection of its own.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.trial import TrialState

from vaebench.studies.engine.processes import background_call, lock
from vaebench.studies.engine.processes.background_call import BackgroundCall
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.job import ERROR, STATE, Job
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import PARENT_TRIAL, RunRecord, StoreError, milliseconds
from vaebench.studies.tracking.views import LEADERBOARD, Leaderboard
from vaebench.vae.errors import InputError

PAUSE_SECONDS, WAIT_SECONDS = 5.0, 60.0
LOCK = "tracker.lock"
KILLED = "the process that writes to the tracker was killed"

Answer = str | StoreError | InputError


@dataclass
class TrackerSync:
    """Starts the process when dead workers left runs open, or when records wait in the outbox.

    Attributes:
        pending: whether the driver knows of something to write.
        error: why the tracker could not be reached the last time, empty if it could.
    """

    job: Job
    pending: bool = False
    error: str = ""
    call: BackgroundCall[Answer] | None = None
    started: float = -PAUSE_SECONDS

    @property
    def is_behind(self) -> bool:
        """Whether there is something to write, or the process is writing."""
        return self.call is not None or self.pending or self.job.outbox.waiting

    def poll(self) -> None:
        """Start the process if there is something to write, or see whether it has ended; never wait."""
        if self.call is not None:
            if not self.call.is_done:
                return
            self._read(self.call)
        due = time.monotonic() - self.started > PAUSE_SECONDS
        if self.job.tracker is not None and due and self.is_behind:
            self._start()

    def flush(self) -> None:
        """Write everything that there is to write, and wait for it."""
        if self.job.tracker is None:
            return
        if self.call is not None:
            self._read(self.call)
        self._read(self._start())

    def _start(self) -> BackgroundCall[Answer]:
        self.pending, self.started = False, time.monotonic()
        self.call = background_call.start(try_to_synchronise, self.job)
        return self.call

    def _read(self, call: BackgroundCall[Answer]) -> None:
        """Wait for the answer of the process."""
        answer, self.call = call.result(), None
        if isinstance(answer, InputError):
            raise answer
        self.error = KILLED if answer is None else str(answer)
        self.pending |= not isinstance(answer, str)


def try_to_synchronise(job: Job) -> Answer:
    """Call `synchronise`, and return its error: it has to reach the driver's process."""
    try:
        return synchronise(job)
    except (StoreError, InputError) as error:
        return error


def synchronise(job: Job) -> str:
    """Bring the tracker up to date and return what is still wrong, empty if nothing.

    Of the processes that do so from one folder, one works at a time: two would create a missing run twice.
    """
    assert job.tracker is not None
    held = lock.wait(job.plan.folder / LOCK, WAIT_SECONDS)
    if held is None:
        raise StoreError("another process is writing to the tracker")
    with held:
        job.tracker.prepare(parent_record(job))
        job.tracker.publish_view(LEADERBOARD, leaderboard(job.plan).state())
        left = replay(job.tracker, job.outbox)
        ended = queue.connect(job.plan).trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        reconcile(job.tracker, {trial.number: job.end_record(trial) for trial in ended})
    return f"{left} runs wait in {job.outbox.path}" if left else ""


def replay(tracker: Tracker, outbox: Outbox) -> int:
    """Write the records of the outbox and return how many are left; nothing is written twice."""
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
    outbox.confirm()
    return len(left)


def leaderboard(plan: Plan) -> Leaderboard:
    """Return the view of a study's trials in MLflow."""
    dimensions = plan.space.dimensions
    return Leaderboard(
        targets=plan.target.metrics,
        ascending=plan.target.directions[0] == "minimize",
        searched=[dimension.name for dimension in dimensions],
        axes=[f"log10_{one.name}" if one.positive else one.name for one in dimensions],
    )


def reconcile(tracker: Tracker, ended: Mapping[int, RunRecord]) -> None:
    """Give every ended trial exactly one run that says what became of it.

    A worker may have been killed before it could, or before the study was told what its run says already.
    """
    known = {run.trial: run for run in tracker.runs()}
    for trial, record in ended.items():
        if trial not in known:
            tracker.upsert(record)
        elif (known[trial].status, known[trial].tags.get(STATE)) != (record.status, record.tags.get(STATE)):
            changed = {name: record.tags[name] for name in (STATE, ERROR) if name in record.tags}
            tracker.extend(known[trial].id, [], {}, changed)
            tracker.close(known[trial].id, record.status, record.end)


def parent_record(job: Job) -> RunRecord:
    """Return the record of the study itself: the ranges that it searches, and its constants.

    They are tags: a param that only the parent has would be the first axis when all runs of a study are compared.
    """
    varied = {dimension.name for dimension in job.plan.space.dimensions}
    constants = {name: str(value) for name, value in job.plan.base.flat().items() if name not in varied}
    ranges = {f"space.{dimension.name}": str(dimension) for dimension in job.plan.space.dimensions}
    how = {name: str(getattr(job.plan, name)) for name in ("sampler", "pruner", "seeds")}
    tags = {**job.tags, **constants, **ranges, **how, "target": job.plan.target.name}
    return RunRecord(PARENT_TRIAL, job.plan.name, milliseconds(), tags=tags)
