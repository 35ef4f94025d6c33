"""The queue of trials in Optuna's storage: open a study, queue trials, claim one, requeue lost ones, count.

The driver queues the trials that are still missing and never more, workers claim them, and a trial whose worker died is
queued again. So no study runs too many trials, however many processes work on it. A long study is queued in portions,
since a database reads all queued trials again at every look.
"""

import copy
import dataclasses
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.search.journal import open_journal
from vaebench.studies.engine.search.pruners import make_pruner
from vaebench.studies.engine.search.repeats import REPLACES, SETTING, different_settings, untried
from vaebench.studies.engine.search.samplers import ignore_experimental, make_sampler
from vaebench.studies.engine.search.states import INTERRUPTED, OF_THE_END, OWNER, REASON, Counts, state_of
from vaebench.studies.engine.study.plan import JOURNAL, Plan
from vaebench.studies.engine.study.space import Point
from vaebench.vae.errors import InputError

RETRIES = 2
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 2.0
QUEUED_AT_LEAST, QUEUED_PER_WORKER = 64, 2
STORAGE_ERRORS = (OSError, optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
KEPT_CONNECTION = {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
IDENTITY, PLAN = "identity", "plan"


@dataclass
class Search:
    """An open study.

    Attributes:
        suspects: since when each running trial has been without a living worker.
    """

    plan: Plan
    storage: BaseStorage
    suspects: dict[int, float] = field(default_factory=dict)

    @property
    def study(self) -> optuna.Study:
        """Return the study as it is now; a `Study` object caches the trials that it read first."""
        return optuna.load_study(study_name=self.plan.name, storage=self.storage, pruner=make_pruner(self.plan))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return trials in some states, all by default."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def counts(self) -> Counts:
        """Count the trials."""
        return Counts.of(self.trials(), self.plan.trials)

    def best_value(self) -> float | None:
        """Return the best value of the first target so far."""
        values = [trial.values[0] for trial in self.trials(TrialState.COMPLETE)]
        pick = max if self.plan.target.directions[0] == "maximize" else min
        return pick(values, default=None)

    def top_up(self) -> Counts:
        """Queue the trials that the plan still needs, up to twice the number of workers anywhere, and count."""
        counts = self.counts()
        room = max(QUEUED_AT_LEAST, QUEUED_PER_WORKER * max(counts.running, self.plan.workers)) - counts.waiting
        missing = min(self.plan.trials - counts.begun, room)
        if missing <= 0:
            return counts
        if self.plan.sampler == "grid":
            added = self._queue_grid(missing)
        elif counts.repeated and self.settings is not None:
            added = self._queue_untried(missing, self.settings, counts.repeated)
        else:
            added = self._queue([{}] * missing)
        return dataclasses.replace(counts, waiting=counts.waiting + added)

    @cached_property
    def settings(self) -> dict[str, Point] | None:
        """Return the different settings of a finite space; None where the space is not, or is very large."""
        return different_settings(self.plan)

    def explain_shortfall(self) -> str:
        """Return why a study that has ended has fewer trials than were asked for; empty where it has not."""
        done = self.counts().done
        if done >= self.plan.trials:
            return ""
        kind = "the grid" if self.plan.sampler == "grid" else f"space {self.plan.space.name}"
        return f"{kind} has {done} different settings, and all were tried; --trials asked for {self.plan.trials}"

    def claim(self, owner: str) -> optuna.Trial | None:
        """Take the next queued trial and note its owner, or return None where none is queued."""
        study = self.study
        trials = study.get_trials(deepcopy=False)
        queued = [trial for trial in trials if trial.state == TrialState.WAITING]
        for waiting in queued[: Counts.of(trials, self.plan.trials).waiting]:
            trial_id = self._id(waiting.number)
            try:
                if not self.storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                    continue
                self.storage.set_trial_user_attr(trial_id, OWNER, owner)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
            study.sampler = make_sampler(self.plan, waiting.number)
            return optuna.Trial(study, trial_id)
        return None

    @property
    def takes_heartbeats(self) -> bool:
        """Whether the storage takes heartbeats: a journal, which never leaves the machine, needs none."""
        return not isinstance(self.storage, JournalStorage)

    def heartbeat(self, trial: optuna.Trial) -> None:
        """Record that a trial's worker is alive, in a storage that takes heartbeats."""
        database: Any = self.storage
        database.record_heartbeat(self._id(trial.number))

    def requeue(self, owner: str, reason: str) -> list[int]:
        """Fail and queue again the trials of a dead worker; return their numbers."""
        lost = [trial for trial in self.trials(TrialState.RUNNING) if trial.user_attrs.get(OWNER) == owner]
        return [trial.number for trial in lost if self._requeue(trial, reason)]

    def requeue_orphans(self, reason: str = "its worker is gone") -> list[int]:
        """Fail and queue again the trials of this machine whose worker is gone, and those whose heartbeat stopped.

        A trial that is claimed and has no owner yet looks like an orphan for a moment: hence the time of grace.
        """
        orphans = [trial for trial in self.trials(TrialState.RUNNING) if not _is_alive(trial.user_attrs.get(OWNER))]
        now = time.monotonic()
        self.suspects = {trial.number: self.suspects.get(trial.number, now) for trial in orphans}
        gone = [trial for trial in orphans if now - self.suspects[trial.number] >= GRACE_SECONDS]
        lost = [trial.number for trial in gone if self._requeue(trial, reason)]
        if self.takes_heartbeats:
            with ignore_experimental():
                optuna.storages.fail_stale_trials(self.study)
        return lost

    def _requeue(self, trial: FrozenTrial, reason: str) -> bool:
        """Fail a running trial and queue it again, unless another process just did.

        A trial that lost its worker is queued again only while it was lost and interrupted twice at most, all told; an
        interrupted one always is.
        """
        trial_id = self._id(trial.number)
        try:
            self.storage.set_trial_user_attr(trial_id, REASON, reason)
            if not self.storage.set_trial_state_values(trial_id, state=TrialState.FAIL):
                return False
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        retry_callback(None if reason == INTERRUPTED else RETRIES)(self.study, trial)
        return True

    def _queue(self, points: Sequence[Point], settings: Sequence[str] = ()) -> int:
        """Queue a trial for each point, {} where the sampler is to choose; return their number."""
        study = self.study
        for point, setting in zip(points, settings or [""] * len(points), strict=True):
            study.enqueue_trial(point, {SETTING: setting, REPLACES: True} if setting else None)
        return len(points)

    def _queue_grid(self, room: int) -> int:
        kept = _leave_out_lost(self.trials())
        taken = [trial.system_attrs.get("fixed_params") or trial.params for trial in kept]  # params: drawn so far
        return self._queue([point for point in self.plan.space.grid(self.plan.trials) if point not in taken][:room])

    def _queue_untried(self, missing: int, settings: dict[str, Point], repeated: int) -> int:
        """Queue an untried setting for each trial that repeated another; the sampler chooses the rest."""
        trials = self.trials()
        left = untried(settings, trials)
        owed = repeated - sum(REPLACES in trial.user_attrs for trial in _leave_out_lost(trials))
        replacements = left[: max(0, min(missing, owed))]
        rest = max(0, min(missing, len(left)) - len(replacements))
        names, points = [name for name, _ in replacements], [point for _, point in replacements]
        return self._queue(points, names) + self._queue([{}] * rest)

    @cached_property
    def _study_id(self) -> int:
        return self.storage.get_study_id_from_name(self.plan.name)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def connect(plan: Plan, *, forks: bool = True) -> Search:
    """Open the study of a plan, which must exist; only a process that does not fork keeps its connection."""
    return Search(plan, open_storage(plan.storage, forks=forks))


def reopen(plan: Plan) -> Search:
    """Open the study of a plan that was read from its file; since then its journal may have been lost or damaged."""
    journal = Path(plan.storage)
    if "://" not in plan.storage and not journal.exists():
        expected = plan.folder / JOURNAL if journal.name == JOURNAL else journal
        raise InputError(f"the journal {expected} of study {plan.folder.name} is missing; put back a copy of it.")
    search = connect(plan)
    try:
        search.trials()
    except KeyError as error:
        raise InputError(f"{plan.storage} has no study {plan.name!r}, or is damaged.") from error
    return search


def create_study(plan: Plan) -> Search:
    """Open the study of a plan, or create it; a study of another space, setting or code is refused."""
    storage = open_storage(plan.storage)
    if plan.name not in optuna.get_all_study_names(storage):
        created = optuna.create_study(study_name=plan.name, storage=storage, directions=list(plan.target.directions))
        with ignore_experimental():
            created.set_metric_names(list(plan.target.metrics))  # for optuna-dashboard
    study = optuna.load_study(study_name=plan.name, storage=storage)
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, plan.identity())
    _require_same(plan, study)
    study.set_user_attr(PLAN, plan.to_json())
    return Search(plan, storage)


def join_study(plan: Plan) -> Search:
    """Open a study that another process leads; it must run the same code."""
    search = connect(plan)
    _require_same(plan, search.study)
    return search


def _require_same(plan: Plan, study: optuna.Study) -> None:
    known = study.user_attrs[IDENTITY]
    differs = [part for part, value in plan.identity().items() if known.get(part) != value]
    if differs:
        changes = plan.list_changes(study.user_attrs[PLAN]) if PLAN in study.user_attrs else []
        which = f" ({'; '.join(changes)})" if changes else ""
        others = [f"{'another' if part in ('space', 'model') else 'other'} {part}" for part in differs]
        raise InputError(
            f"study {plan.name} was started with {' and '.join(others)}{which}, and its trials would not compare; "
            "give a new name with --study."
        )


def read_plan(name: str, storage_url: str) -> dict[str, Any]:
    """Return what a study stores of its plan; an error names the studies that there are."""
    storage = open_storage(storage_url)
    try:
        plan: dict[str, Any] = optuna.load_study(study_name=name, storage=storage).user_attrs[PLAN]
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(storage)) or "none"
        raise InputError(f"there is no study {name!r} in {storage_url}; those there: {names}.") from None
    return plan


def open_storage(url: str, *, forks: bool = True) -> BaseStorage:
    """Open a journal file, or a database with heartbeats; a connection must not be shared with a forked process."""
    if "://" not in url:
        return open_journal(Path(url))
    if url.startswith("sqlite"):
        raise InputError(
            "--storage sqlite runs queued trials twice when several workers ask at once; leave --storage out for a "
            "journal file, or give postgresql+psycopg://USER@HOST/DATABASE."
        )
    try:
        with ignore_experimental():
            database = RDBStorage(
                url,
                engine_kwargs={"poolclass": sqlalchemy.pool.NullPool} if forks else KEPT_CONNECTION,
                heartbeat_interval=HEARTBEAT_SECONDS,
                heartbeat_stale_trial_callback=retry_callback(),
            )
            return optuna.storages.get_storage(database)  # adds a cache: a finished trial is read once
    except ImportError as error:
        raise InputError(f"storage {url} needs a driver ({error}); pip install 'psycopg[binary]'.") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"cannot reach the storage {url} ({cause}).") from error


def retry_callback(most: int | None = RETRIES) -> Callable[[optuna.Study, FrozenTrial], None]:
    """Return a callback that queues a lost trial again, at most so many times, without what was noted of its end."""
    with ignore_experimental():
        queue_again = RetryHeartbeatStaleTrialCallback(max_retry=most)

    def retry(study: optuna.Study, trial: FrozenTrial) -> None:
        lost = copy.deepcopy(trial)
        lost.user_attrs = {name: value for name, value in trial.user_attrs.items() if name not in OF_THE_END}
        queue_again(study, lost)

    return retry


def owner_of(lock_file: Path) -> str:
    """Return the owner that a worker writes on its trials: its host, and the file that it locks while it lives."""
    return f"{socket.gethostname()}:{lock_file.resolve()}"


def _leave_out_lost(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials without those that lost their worker or were interrupted: others were queued in their place."""
    return [trial for trial in trials if state_of(trial) not in ("lost", "interrupted")]


def _is_alive(owner: str | None) -> bool:
    """Whether an owner lives; the heartbeats of another machine's workers are checked elsewhere."""
    host, _, path = (owner or "").partition(":")
    return owner is not None and (host != socket.gethostname() or lock.is_held(Path(path)))
