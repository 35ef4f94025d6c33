"""MLflow behind a few verbs: the only module that imports it.

A study is one experiment: a parent run, and a child for each trial, found again by its tags `study` and `trial`.
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

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks at it when it is imported

import mlflow
import mlflow.pytorch
import sqlalchemy
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image
from sqlalchemy import orm

from vaebench.studies.tracking.record import PARENT_TRIAL, Point, Record, StoreError
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError

STUDY, TRIAL, PARENT, REGISTERED = "study", "trial", "parent", "registered_trial"
METRICS_AT_ONCE, PAIRS_AT_ONCE, RUNS_AT_ONCE = 1000, 100, 250
LONGEST_TAG, LONGEST_DIGEST = 5000, 36
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """A run that the tracker has."""

    trial: int
    run: str
    status: str
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]
    start: int
    end: int


def describe(data: Splits) -> DatasetInput:
    """Return a data set as MLflow shows it beside a run: name, digest, sizes."""
    profile = json.dumps({name: len(getattr(data, name)) for name in ("train", "valid", "test")})
    used = Dataset(data.name, data.digest[:LONGEST_DIGEST], "code", "vaebench.vae.data.load", profile=profile)
    return DatasetInput(used, [InputTag("mlflow.data.context", "training")])


def default_uri(folder: Path) -> str:
    """Return the store that `mlflow ui` opens when it is started in this folder."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


@dataclass(frozen=True)
class Tracker:
    """The runs of one study at a tracking URI. Every method raises `StoreError` where the tracker cannot be reached."""

    uri: str
    study: str
    data: DatasetInput | None = None

    def prepare(self, record: Record) -> None:
        """Create schema, experiment and parent run, as far as they are missing: before any worker starts."""
        self._open()
        with _guarded():
            if self._find_parent() is None:
                run = self._create(record, {STUDY: self.study, PARENT: "true"})
                self.extend(run, record.metrics, record.params, {})

    def add(self, record: Record, parent: str | None = None) -> str:
        """Write the run of a study that has no trials, under another run if told so; each call adds one.

        A record without an end is that of a run which goes on.
        """
        self._open()
        with _guarded():
            run = self._create(record, {MLFLOW_PARENT_RUN_ID: parent} if parent else {})
            self._write(run, record)
            return run

    def find(self, tag: str, value: str) -> str | None:
        """Return the oldest run that carries a tag with this value."""
        self._open()
        with _guarded():
            return next((run.info.run_id for run in self._search(f"tags.{tag} = '{value}'")), None)

    def begin(self, record: Record) -> str:
        """Create the child run of a trial and return its id."""
        with _guarded():
            tags = {STUDY: self.study, TRIAL: str(record.trial), MLFLOW_PARENT_RUN_ID: self.parent}
            return self._create(record, tags)

    def extend(self, run: str, metrics: list[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write metrics, params and tags: one call for up to 1 000 metrics."""
        points = _batches([Metric(*point) for point in metrics], METRICS_AT_ONCE)
        pairs = _batches([Param(*pair) for pair in params.items()], PAIRS_AT_ONCE)
        marks = _batches([RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()], PAIRS_AT_ONCE)
        with _guarded():
            for batch in itertools.zip_longest(points, pairs, marks, fillvalue=()):
                self._client.log_batch(run, *batch)

    def attach(self, run: str, files: list[str]) -> None:
        """Copy files to the run's artifacts."""
        with _guarded():
            for file in files:
                if run in self._places:
                    self._places[run].log_artifact(file)
                else:
                    self._client.log_artifact(run, file)

    def tag_of(self, run: str, name: str) -> str | None:
        """Return the value of a run's tag, None where it has none of that name."""
        with _guarded():
            value: str | None = self._client.get_run(run).data.tags.get(name)
            return value

    def fetch(self, trial: int, file: str, folder: Path) -> bool:
        """Copy a file of a trial's run into a folder; whether there was one."""
        with _guarded():
            for known in self.runs(trial):
                if any(found.path == file for found in self._client.list_artifacts(known.run)):
                    folder.mkdir(parents=True, exist_ok=True)
                    self._client.download_artifacts(known.run, file, str(folder))
                    return True
        return False

    def close(self, run: str, status: str, end: int) -> None:
        """End the run."""
        with _guarded():
            self._client.set_terminated(run, status, end)

    def sync(self) -> None:
        """Wait until all that was written is on the disk, where the tracker is a file of this machine."""
        with _guarded():
            self._pragma("wal_checkpoint(FULL)")

    def upsert(self, record: Record) -> None:
        """Write all of a record, whatever part of it is there already."""
        with _guarded():
            self._write(self.parent if record.trial == PARENT_TRIAL else self._run_of(record), record)

    def runs(self, trial: int | None = None) -> list[Known]:
        """Return the child runs, of one trial or of all, by trial, then oldest first; none of a study not known yet."""
        wanted = f"tags.{STUDY} = '{self.study}'"
        if trial is not None:
            wanted += f" AND tags.{TRIAL} = '{trial}'"
        with _guarded():
            if self._client.get_experiment_by_name(self.study) is None:
                return []
            found = [_known(run) for run in self._search(wanted) if TRIAL in run.data.tags]
        return sorted(found, key=lambda known: known.trial)

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Return the curve of a metric: step and value."""
        with _guarded():
            return [(point.step, point.value) for point in self._client.get_metric_history(run, metric)]

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
        with _guarded():
            found = self._find_parent()
        if found is None:
            raise StoreError(f"the tracker has no parent run for {self.study} yet")
        return found

    def tag(self, name: str) -> str | None:
        """Return a tag of the parent run."""
        with _guarded():
            return self.tag_of(self.parent, name)

    def register(self, model: torch.nn.Module, example: torch.Tensor, trial: int) -> None:
        """Register a model under the study's name, exported as a graph (pt2): nothing in it needs pickle."""
        with _guarded(), torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # MLflow's and SQLAlchemy's own deprecations
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
        """Create schema and experiment, as far as they are missing."""
        with _guarded():
            experiment = self._client.get_experiment_by_name(self.study)
            if experiment is None:
                tags = {STUDY: self.study, "mlflow.experimentKind": "custom_model_development"}
                self._client.create_experiment(self.study, artifact_location=self._artifacts(), tags=tags)
                self._pragma("journal_mode=WAL")  # readers and a writer work at once; it stays with the file
            elif experiment.lifecycle_stage == "deleted":
                raise InputError(
                    f"MLflow's experiment {self.study} is in its trash; give another name with --study, or type "
                    f"mlflow experiments restore -x {experiment.experiment_id}."
                )

    def _write(self, run: str, record: Record) -> None:
        self.extend(run, record.metrics, record.params, record.tags)
        self.attach(run, [file for file in record.files if Path(file).exists()])
        for key, file, step in record.slides:
            self._client.log_image(run, Image.open(file), key=key, step=step)
        if record.end:
            self.close(run, record.status, record.end)

    @cached_property
    def _places(self) -> dict[str, Any]:
        """Return where the files of the run that was created last go: MLflow's client would read the run to know."""
        return {}

    @cached_property
    def _client(self) -> MlflowClient:
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        for chatty in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # what fails is raised, and goes to the outbox
        atexit.register(self._rest)
        return MlflowClient(self.uri)

    def _rest(self) -> None:
        """Leave all in the database file and nothing in its log, which would be played over a copy that is put back."""
        with contextlib.suppress(StoreError), _guarded():
            self._pragma("wal_checkpoint(TRUNCATE)")

    def _run_of(self, record: Record) -> str:
        known = self.runs(record.trial)
        return known[0].run if known else self.begin(record)

    def _find_parent(self) -> str | None:
        found = list(self._search(f"tags.{STUDY} = '{self.study}' AND tags.{PARENT} = 'true'"))
        return found[0].info.run_id if found else None

    def _search(self, wanted: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment],
                wanted,
                max_results=RUNS_AT_ONCE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, record: Record, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(
            self.experiment, start_time=record.start, tags={**record.tags, **tags}, run_name=record.name
        )
        created: str = run.info.run_id
        self._places.clear()
        self._places[created] = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)
        if self.data is not None:
            self._client.log_inputs(created, [self.data])
        return created

    def _artifacts(self) -> str | None:
        """Return where artifacts go: beside the database, or wherever a server puts them."""
        path = _sqlite_path(self.uri)
        return None if path is None else (path.parent / "mlruns" / self.study).as_uri()

    def _pragma(self, command: str) -> None:
        """Give the database a command of SQLite, where it is a file of this machine."""
        path = _sqlite_path(self.uri)
        if path is not None and path.exists():
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute(f"PRAGMA {command}")


def load_store(uri: str) -> None:
    """Import what opens a database, so that processes forked later need not each do so: half a second."""
    if not uri.startswith("http"):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        orm.configure_mappers()


def trust_the_log() -> None:
    """Let what is committed to SQLite reach the disk when the system writes it: eight waits less a trial.

    A write-ahead log outlives any process. Where the power fails, the curves of the last trials may be missing; how
    they ended is in Optuna's journal, and what was in the outbox is on the disk before it leaves that.
    """
    if not sqlalchemy.event.contains(sqlalchemy.Engine, "connect", _wait_for_checkpoints_alone):
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _wait_for_checkpoints_alone)


def require_writable(uri: str) -> None:
    """Refuse a tracking URI that can never work; a server that does not answer may still come back."""
    path = _sqlite_path(uri)
    if path is not None and not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent}, where MLflow's database would be; give --tracking-uri.")
    if "://" not in uri:
        raise InputError(f"--tracking-uri takes http://HOST:PORT, a database URL, or none; got {uri!r}.")


def _wait_for_checkpoints_alone(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        ((mode,),) = connection.execute("PRAGMA journal_mode")
        if mode == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Turn whatever a tracker that cannot be reached raises into `StoreError`.

    MLflow makes an object of each row, and the garbage collector would look through all of them, and all of torch and
    MLflow, again and again: two thirds of the time of reading 5 000 runs.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError, sqlite3.Error) as error:
        raise StoreError(f"the tracker cannot be reached ({str(error).splitlines()[0]})") from error
    finally:
        if collects:
            gc.enable()


def _known(run: Any) -> Known:
    data, info = run.data, run.info
    return Known(
        trial=int(data.tags[TRIAL]),
        run=info.run_id,
        status=info.status,
        metrics={intern(name): value for name, value in data.metrics.items()},
        params={intern(name): value for name, value in data.params.items()},
        tags={intern(name): intern(value) for name, value in data.tags.items()},
        start=info.start_time,
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
