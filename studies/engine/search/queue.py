"""Optuna behind a few verbs: open a study, queue trials, claim one, give one up, count.

Trials are tickets: the driver queues those that are still missing, never more, workers claim them, and a ticket whose
worker died is queued again. So no study overshoots, however many processes work on it. A long study is queued bit by
bit, since a database reads all queued trials again at every look.
"""

import copy
import dataclasses
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.search import journal
from vaebench.studies.engine.search.pruners import pruner
from vaebench.studies.engine.search.samplers import quiet, sampler
from vaebench.studies.engine.study.plan import Plan
from vaebench.vae.errors import InputError

RETRIES = 2
HEARTBEAT_SECONDS = 15
SIGNING_SECONDS = 2.0
QUEUED_AT_LEAST, QUEUED_PER_WORKER = 64, 2
OWNER, RAISED, REASON = "owner", "raised", "reason"
STORAGE_ERRORS = (OSError, optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
KEPT_CONNECTION = {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
IDENTITY, PLAN, PARENT = "identity", "plan", "parent_run"


@dataclass(frozen=True)
class Counts:
    """How many trials are in which state; `raised` ended by an error of their own, `lost` with their worker."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    raised: int = 0
    lost: int = 0

    @property
    def done(self) -> int:
        """Trials that will not be run again."""
        return self.complete + self.pruned + self.raised

    @property
    def begun(self) -> int:
        """Trials that are done, run, or are queued."""
        return self.done + self.running + self.waiting


@dataclass
class Search:
    """An open study."""

    plan: Plan
    storage: BaseStorage
    suspects: dict[int, float] = field(default_factory=dict)

    @property
    def study(self) -> optuna.Study:
        """Return the study as it now is; samplers remember the trials that a `Study` object saw first."""
        return optuna.load_study(study_name=self.plan.name, storage=self.storage, pruner=pruner(self.plan))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return trials in some states, all by default."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def counts(self) -> Counts:
        """Count the trials."""
        trials = self.trials()
        states = Counter(trial.state for trial in trials)
        raised = sum(trial.state == TrialState.FAIL and RAISED in trial.user_attrs for trial in trials)
        return Counts(
            waiting=states[TrialState.WAITING],
            running=states[TrialState.RUNNING],
            complete=states[TrialState.COMPLETE],
            pruned=states[TrialState.PRUNED],
            raised=raised,
            lost=states[TrialState.FAIL] - raised,
        )

    def best(self) -> float | None:
        """Return the best value of the first target so far."""
        values = [trial.values[0] for trial in self.trials(TrialState.COMPLETE)]
        pick = max if self.plan.target.directions[0] == "maximize" else min
        return pick(values, default=None)

    def top_up(self) -> Counts:
        """Queue what the plan still misses, up to twice as many trials as there are workers anywhere, and count."""
        counts = self.counts()
        missing = self.plan.trials - counts.done - counts.running - counts.waiting
        room = max(QUEUED_AT_LEAST, QUEUED_PER_WORKER * max(counts.running, self.plan.workers)) - counts.waiting
        missing = min(missing, room)
        if missing <= 0:
            return counts
        if self.plan.sampler == "grid":
            missing = self._queue_grid(missing)
        else:
            study = self.study
            for _ in range(missing):
                study.enqueue_trial({})
        return dataclasses.replace(counts, waiting=counts.waiting + missing)

    def claim(self, owner: str) -> optuna.Trial | None:
        """Take the next queued trial and sign it, or return None where none is left."""
        study = self.study
        for waiting in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial_id = self._id(waiting.number)
            try:
                if not self.storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                    continue
                self.storage.set_trial_user_attr(trial_id, OWNER, owner)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
            study.sampler = sampler(self.plan, waiting.number)
            return optuna.Trial(study, trial_id)
        return None

    @property
    def listens(self) -> bool:
        """Whether the storage takes heartbeats: a journal has none, since it never leaves the machine."""
        return not isinstance(self.storage, JournalStorage)

    def heartbeat(self, trial: optuna.Trial) -> None:
        """Say that a trial's worker is alive."""
        beating: Any = self.storage
        if self.listens:
            beating.record_heartbeat(self._id(trial.number))

    def lose(self, owner: str, reason: str) -> list[int]:
        """Fail and queue again what a dead worker was doing; return the numbers of its trials."""
        lost = [trial for trial in self.trials(TrialState.RUNNING) if trial.user_attrs.get(OWNER) == owner]
        return [trial.number for trial in lost if self._give_up(trial, reason)]

    def lose_orphans(self) -> list[int]:
        """Fail and queue again the trials of this machine whose worker is gone, and those whose heart stopped.

        A trial that is claimed and not yet signed looks like an orphan for a moment: hence the time of grace.
        """
        orphans = [trial for trial in self.trials(TrialState.RUNNING) if not _is_alive(trial.user_attrs.get(OWNER))]
        now = time.monotonic()
        self.suspects = {trial.number: self.suspects.get(trial.number, now) for trial in orphans}
        gone = [trial for trial in orphans if now - self.suspects[trial.number] >= SIGNING_SECONDS]
        lost = [trial.number for trial in gone if self._give_up(trial, "its worker is gone")]
        if self.listens:
            with quiet():
                optuna.storages.fail_stale_trials(self.study)
        return lost

    def remember(self, name: str, value: Any) -> None:
        """Keep a plain value with the study."""
        self.study.set_user_attr(name, value)

    def recall(self, name: str) -> Any:
        """Return a value kept with the study, or None."""
        return self.study.user_attrs.get(name)

    def _give_up(self, trial: FrozenTrial, reason: str) -> bool:
        """Fail a running trial and queue it again, unless somebody else just did, or it was queued twice before."""
        trial_id = self._id(trial.number)
        try:
            self.storage.set_trial_user_attr(trial_id, REASON, reason)
            if not self.storage.set_trial_state_values(trial_id, state=TrialState.FAIL):
                return False
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        retry_callback()(self.study, copy.deepcopy(trial))
        return True

    def _queue_grid(self, room: int) -> int:
        taken = [
            trial.params or trial.system_attrs.get("fixed_params", {})
            for trial in self.trials()
            if trial.state != TrialState.FAIL or RAISED in trial.user_attrs
        ]
        missing = [point for point in self.plan.space.grid(self.plan.trials) if point not in taken][:room]
        study = self.study
        for point in missing:
            study.enqueue_trial(point)
        return len(missing)

    @cached_property
    def _study_id(self) -> int:
        return self.storage.get_study_id_from_name(self.plan.name)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def connect(plan: Plan, *, forks: bool = True) -> Search:
    """Open the study of a plan in its storage; it must exist. A process that does not fork keeps its connection."""
    return Search(plan, open_storage(plan.storage, forks=forks))


def start(plan: Plan) -> Search:
    """Open the study of a plan, created where it is new; one of another space, setting or code is refused."""
    storage = open_storage(plan.storage)
    if plan.name not in optuna.get_all_study_names(storage):
        optuna.create_study(study_name=plan.name, storage=storage, directions=list(plan.target.directions))
    study = optuna.load_study(study_name=plan.name, storage=storage)
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, plan.identity())
    _require_same(plan, study)
    study.set_user_attr(PLAN, plan.to_json())
    return Search(plan, storage)


def join(plan: Plan) -> Search:
    """Open a study that another process leads, by the same code."""
    opened = connect(plan)
    _require_same(plan, opened.study)
    return opened


def _require_same(plan: Plan, study: optuna.Study) -> None:
    known = study.user_attrs[IDENTITY]
    differs = [part for part, value in plan.identity().items() if known.get(part) != value]
    if differs:
        raise InputError(
            f"study {plan.name} was started with another {' and another '.join(differs)}, and its trials would not "
            "compare; give a new name with --study."
        )


def recall_plan(name: str, storage: str) -> dict[str, Any]:
    """Return what a study remembers of its plan, or say that there is no such study."""
    opened = open_storage(storage)
    try:
        study = optuna.load_study(study_name=name, storage=opened)
        plan: dict[str, Any] = study.user_attrs[PLAN]
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(opened)) or "none"
        raise InputError(f"there is no study {name!r} in {hidden(storage)}; those there: {names}.") from None
    return plan


def open_storage(url: str, *, forks: bool = True) -> BaseStorage:
    """Open a journal file, or a database with heartbeats; a connection must not be shared with a forked process."""
    if "://" not in url:
        return journal.open_journal(Path(url))
    if url.startswith("sqlite"):
        raise InputError(
            "--storage sqlite runs queued trials twice when several workers ask at once; leave --storage out for a "
            "journal file, or give postgresql+psycopg://USER@HOST/DATABASE."
        )
    try:
        with quiet():
            database = RDBStorage(
                url,
                engine_kwargs={"poolclass": sqlalchemy.pool.NullPool} if forks else KEPT_CONNECTION,
                heartbeat_interval=HEARTBEAT_SECONDS,
                heartbeat_stale_trial_callback=retry_callback(),
            )
            return optuna.storages.get_storage(database)  # which reads a finished trial once
    except ImportError as error:
        raise InputError(f"storage {hidden(url)} needs a driver ({error}); pip install 'psycopg[binary]'.") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"cannot reach the storage {hidden(url)} ({cause}).") from error


def hidden(url: str) -> str:
    """Return a URL without its password."""
    return sqlalchemy.make_url(url).render_as_string(hide_password=True) if "://" in url else url


def retry_callback() -> RetryHeartbeatStaleTrialCallback:
    """Return what queues a lost trial again, at most twice."""
    with quiet():
        return RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


def sign(folder: Path) -> str:
    """Return the signature of a worker whose lock file is `folder`: where it runs, and what proves that it does."""
    return f"{socket.gethostname()}:{folder.resolve()}"


def elapsed(trial: FrozenTrial) -> timedelta:
    """Return how long a finished trial took."""
    return trial.duration or timedelta()


def _is_alive(owner: str | None) -> bool:
    """Whether a signature's worker lives; one of another machine is left to its heartbeat."""
    host, _, path = (owner or "").partition(":")
    return owner is not None and (host != socket.gethostname() or lock.is_held(Path(path)))
