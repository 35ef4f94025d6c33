"""Read and write runs in MLflow: the only module that imports MLflow.

A study is one experiment: a parent run, and a child run for each trial, found by its tags `study` and `trial`.
"""

import atexit
import contextlib
import gc
import importlib
import io
import itertools
import json
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, TypeVar
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported

import mlflow
import mlflow.pytorch
import sqlalchemy
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image
from sqlalchemy import orm

from vaebench.studies.tracking.record import PARENT_TRIAL, MetricValue, RunRecord, StoreError
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError, sentence

STUDY, TRIAL, PARENT, REGISTERED = "study", "trial", "parent", "registered_trial"
METRICS_AT_ONCE, PAIRS_AT_ONCE, RUNS_AT_ONCE = 1000, 100, 250
LONGEST_TAG, LONGEST_DIGEST = 5000, 36
SCHEMES = ("http", "https", *DATABASE_ENGINES)
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

T = TypeVar("T")


@dataclass(frozen=True)
class TrackedRun:
    """A trial's run, as it is in the tracker."""

    trial: int
    id: str
    status: str
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]
    end: int


def describe(data: Splits) -> DatasetInput:
    """Return name, digest and sizes of a data set, as MLflow shows them beside a run."""
    profile = json.dumps({name: len(getattr(data, name)) for name in ("train", "valid", "test")})
    dataset = Dataset(data.name, data.digest[:LONGEST_DIGEST], "code", "vaebench.vae.data.load", profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def default_uri(folder: Path) -> str:
    """Return the database that `mlflow ui` opens when it is started in this folder."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


@dataclass(frozen=True)
class Tracker:
    """The runs of one study at a tracking URI. Every method raises `StoreError` if the tracker cannot be reached."""

    uri: str
    study: str
    data: DatasetInput | None = None

    def prepare(self, record: RunRecord) -> None:
        """Create the database schema, the experiment and the parent run if they are missing, before workers start."""
        self._open()
        with _store_errors():
            if self._find_parent() is None:
                run = self._create(record, {STUDY: self.study, PARENT: "true"})
                self.extend(run, record.metrics, record.params, {})

    def add(self, record: RunRecord, parent: str | None = None) -> str:
        """Add a run that belongs to no trial, as a child of another run if `parent` is given; return its id.

        The run stays open if the record has no end.
        """
        self._open()
        with _store_errors():
            run = self._create(record, {MLFLOW_PARENT_RUN_ID: parent} if parent else {})
            self._write(run, record)
            return run

    def find(self, tag: str, value: str) -> str | None:
        """Return the id of the oldest run whose tag has this value."""
        self._open()
        with _store_errors():
            return self._find(f"tags.{tag} = '{value}'")

    def begin(self, record: RunRecord) -> str:
        """Create the child run of a trial and return its id."""
        with _store_errors():
            tags = {STUDY: self.study, TRIAL: str(record.trial), MLFLOW_PARENT_RUN_ID: self.parent}
            return self._create(record, tags)

    def extend(self, run: str, metrics: list[MetricValue], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write metrics, params and tags, with one call for up to 1 000 metrics."""
        values = _batches([Metric(*value) for value in metrics], METRICS_AT_ONCE)
        pairs = _batches([Param(*pair) for pair in params.items()], PAIRS_AT_ONCE)
        run_tags = _batches([RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()], PAIRS_AT_ONCE)
        with _store_errors():
            for batch in itertools.zip_longest(values, pairs, run_tags, fillvalue=()):
                self._client.log_batch(run, *batch)

    def attach(self, run: str, files: list[str]) -> None:
        """Copy files to the run's artifacts."""
        with _store_errors():
            for file in files:
                if run in self._artifacts:
                    self._artifacts[run].log_artifact(file)
                else:
                    self._client.log_artifact(run, file)

    def tag_of(self, run: str, name: str) -> str | None:
        """Return the value of a run's tag, or None if the run has no such tag."""
        with _store_errors():
            value: str | None = self._client.get_run(run).data.tags.get(name)
            return value

    def fetch(self, trial: int, file: str, folder: Path) -> bool:
        """Copy a file of a trial's run into a folder; return whether there was one."""
        with _store_errors():
            for run in self.runs(trial):
                if any(artifact.path == file for artifact in self._client.list_artifacts(run.id)):
                    folder.mkdir(parents=True, exist_ok=True)
                    self._client.download_artifacts(run.id, file, str(folder))
                    return True
        return False

    def close(self, run: str, status: str, end: int) -> None:
        """End the run."""
        with _store_errors():
            self._client.set_terminated(run, status, end)

    def sync(self) -> None:
        """Wait until everything is on the disk, if the tracker is a file of this machine."""
        with _store_errors():
            self._pragma("wal_checkpoint(FULL)")

    def upsert(self, record: RunRecord) -> None:
        """Write a whole record, also if the tracker has all or some of it already."""
        with _store_errors():
            if record.trial == PARENT_TRIAL:
                run = self.parent
            else:
                run = next((run.id for run in self.runs(record.trial)), None) or self.begin(record)
            self._write(run, record)

    def runs(self, trial: int | None = None) -> list[TrackedRun]:
        """Return the child runs of all trials or of one, by trial, then oldest first; none if there is no study yet."""
        condition = f"tags.{STUDY} = '{self.study}'"
        if trial is not None:
            condition += f" AND tags.{TRIAL} = '{trial}'"
        with _store_errors():
            if self._client.get_experiment_by_name(self.study) is None:
                return []
            found = [_tracked_run(run) for run in self._search(condition) if TRIAL in run.data.tags]
        return sorted(found, key=lambda run: run.trial)

    @cached_property
    def experiment(self) -> str:
        """Return the id of the experiment."""
        found = self._client.get_experiment_by_name(self.study)
        if found is None:
            raise StoreError(f"the tracker has no experiment {self.study} yet")
        return found.experiment_id

    @cached_property
    def parent(self) -> str:
        """Return the id of the parent run."""
        with _store_errors():
            found = self._find_parent()
        if found is None:
            raise StoreError(f"the tracker has no parent run for {self.study} yet")
        return found

    def register(self, model: torch.nn.Module, example: torch.Tensor, trial: int) -> None:
        """Register a model under the study's name, exported as a graph (pt2), which loads without pickle."""
        with _store_errors(), torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # deprecations inside MLflow and SQLAlchemy
            mlflow.set_tracking_uri(self.uri)
            signature = infer_signature(example.numpy(), model(example).numpy())
            with mlflow.start_run(run_id=self.parent):
                mlflow.pytorch.log_model(
                    model,
                    name="model",
                    signature=signature,
                    input_example=example.numpy(),
                    registered_model_name=self.study,
                    pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
                )
            self._client.set_tag(self.parent, REGISTERED, str(trial))

    def _open(self) -> None:
        """Create the database schema and the experiment if they are missing."""
        with _store_errors():
            experiment = self._client.get_experiment_by_name(self.study)
            if experiment is None:
                tags = {STUDY: self.study, "mlflow.experimentKind": "custom_model_development"}
                path = _sqlite_path(self.uri)  # artifacts lie beside the database; a server has a place of its own
                artifacts = None if path is None else (path.parent / "mlruns" / self.study).as_uri()
                self._client.create_experiment(self.study, artifact_location=artifacts, tags=tags)
                self._pragma("journal_mode=WAL")  # allows readers beside a writer; the file keeps this mode
            elif experiment.lifecycle_stage == "deleted":
                raise InputError(
                    f"MLflow's experiment {self.study} is in its trash; give another name with --study, or type "
                    f"mlflow experiments restore -x {experiment.experiment_id}."
                )

    def _write(self, run: str, record: RunRecord) -> None:
        self.extend(run, record.metrics, record.params, record.tags)
        self.attach(run, [file for file in record.files if Path(file).exists()])
        for key, file, step in record.slides:
            self._client.log_image(run, Image.open(file), key=key, step=step)
        if record.end:
            self.close(run, record.status, record.end)

    @cached_property
    def _artifacts(self) -> dict[str, Any]:
        """The artifact repository of the run created last; MLflow's client would read the run from the database."""
        return {}

    @cached_property
    def _client(self) -> MlflowClient:
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        for chatty in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # failures are raised, and records go to the outbox
        atexit.register(self._empty_log)
        return MlflowClient(self.uri)

    def _empty_log(self) -> None:
        """Move SQLite's write-ahead log into the database file, so that a copy of this file alone is complete."""
        with contextlib.suppress(StoreError), _store_errors():
            self._pragma("wal_checkpoint(TRUNCATE)")

    def _find_parent(self) -> str | None:
        return self._find(f"tags.{STUDY} = '{self.study}' AND tags.{PARENT} = 'true'")

    def _find(self, condition: str) -> str | None:
        return next((run.info.run_id for run in self._search(condition)), None)

    def _search(self, condition: str) -> Iterator[Any]:
        """Yield the runs of the experiment that meet a condition, the oldest first."""
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment],
                condition,
                max_results=RUNS_AT_ONCE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, record: RunRecord, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(
            self.experiment, start_time=record.start, tags={**record.tags, **tags}, run_name=record.name
        )
        created: str = run.info.run_id
        self._artifacts.clear()
        self._artifacts[created] = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)
        if self.data is not None:
            self._client.log_inputs(created, [self.data])
        return created

    def _pragma(self, command: str) -> None:
        """Run a PRAGMA command of SQLite, if the tracker is a file of this machine."""
        path = _sqlite_path(self.uri)
        if path is not None and path.exists():
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute(f"PRAGMA {command}")


def preload_store(uri: str) -> None:
    """Import the modules that open a database once before the fork; it would take each forked process half a second."""
    if not uri.startswith("http"):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        orm.configure_mappers()


def sync_at_checkpoints_only() -> None:
    """Do not wait for the disk after each commit to SQLite, which saves eight waits a trial.

    The write-ahead log survives the end of any process. After a power failure the curves of the last trials may be
    missing. Optuna's journal still has their results, and a record is deleted from the outbox only after a `sync`.
    """
    if not sqlalchemy.event.contains(sqlalchemy.Engine, "connect", _set_synchronous_normal):
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _set_synchronous_normal)


def require_writable(uri: str) -> None:
    """Refuse a tracking URI that can never work; a server that does not answer may still come back."""
    path = _sqlite_path(uri)
    if path is not None and not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent}, where MLflow's database would be; give --tracking-uri.")
    scheme, _, place = uri.partition("://")
    if scheme.partition("+")[0] not in SCHEMES or not place:
        raise InputError(
            f"--tracking-uri takes http://HOST:PORT or the URL of a database ({', '.join(DATABASE_ENGINES)}), "
            f"got {uri!r}."
        )
    if scheme.startswith("http"):
        try:
            host, _ = urlsplit(uri).hostname, urlsplit(uri).port
        except ValueError:
            host = None
        if not host:
            raise InputError(f"--tracking-uri takes http://HOST:PORT, with a port below 65536; got {uri!r}.")


def _set_synchronous_normal(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        ((mode,),) = connection.execute("PRAGMA journal_mode")
        if mode == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Turn the errors of a tracker that cannot be reached into `StoreError`, with the garbage collector off.

    MLflow creates an object for each row, and repeated collections over all objects of torch and MLflow would take two
    thirds of the time in which 5 000 runs are read.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError, sqlite3.Error) as error:
        raise StoreError(f"the tracker cannot be reached ({_find_cause(error)})") from error
    finally:
        if was_enabled:
            gc.enable()


def _find_cause(error: BaseException) -> str:
    """Return the sentence of the error that a chain began with; clients wrap `Connection refused` in 400 characters."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return sentence(error)[:200]


def _tracked_run(run: Any) -> TrackedRun:
    data, info = run.data, run.info
    return TrackedRun(
        trial=int(data.tags[TRIAL]),
        id=info.run_id,
        status=info.status,
        metrics={intern(name): value for name, value in data.metrics.items()},
        params={intern(name): value for name, value in data.params.items()},
        tags={intern(name): intern(value) for name, value in data.tags.items()},
        end=info.end_time or 0,
    )


def _batches(items: list[T], size: int) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _sqlite_path(uri: str) -> Path | None:
    try:
        url = sqlalchemy.make_url(uri) if uri.startswith("sqlite") else None
    except sqlalchemy.exc.ArgumentError as error:
        raise InputError(f"--tracking-uri takes sqlite:///FILE for a file, got {uri!r}.") from error
    return Path(url.database).resolve() if url is not None and url.database else None
