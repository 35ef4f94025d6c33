"""Read and write runs in MLflow.

A study is one experiment: a parent run, and a child run for each trial, found by its tags `study` and `trial`. Only the
files of this folder whose name begins with mlflow_ import MLflow.
"""

import atexit
import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from vaebench.studies.tracking import figures
from vaebench.studies.tracking.mlflow_store import run_pragma, sqlite_path, store_errors
from vaebench.studies.tracking.record import PARENT_TRIAL, MetricValue, RunRecord, StoreError
from vaebench.studies.tracking.views import VIEW_TAG, encode_view
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError

STUDY, TRIAL, PARENT = "study", "trial", "parent"
METRICS_AT_ONCE, PAIRS_AT_ONCE, RUNS_AT_ONCE = 1000, 100, 250
LONGEST_TAG, LONGEST_DIGEST = 8000, 36
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

T = TypeVar("T")


@dataclass(frozen=True)
class TrackedRun:
    """A trial's run, as it is in the tracker.

    metrics: the last value of each metric, and the figures that are kept in tags.
    """

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


@dataclass(frozen=True)
class Tracker:
    """The runs of one study at a tracking URI. Every method raises `StoreError` if the tracker cannot be reached."""

    uri: str
    study: str
    data: DatasetInput | None = None

    def prepare(self, record: RunRecord) -> None:
        """Create the database schema, the experiment and the parent run if they are missing, before workers start."""
        self._open()
        with store_errors():
            if self._find_parent() is None:
                run = self._create(record, {STUDY: self.study, PARENT: "true"})
                self.extend(run, record.metrics, record.params, {})

    def add(self, record: RunRecord, parent: str | None = None) -> str:
        """Add a run that belongs to no trial, as a child of another run if `parent` is given; return its id.

        The run stays open if the record has no end.
        """
        self._open()
        with store_errors():
            run = self._create(record, {MLFLOW_PARENT_RUN_ID: parent} if parent else {})
            self._write(run, record)
            return run

    def find(self, tag: str, value: str) -> str | None:
        """Return the id of the oldest run whose tag has this value."""
        self._open()
        with store_errors():
            return self._find(f"tags.{tag} = '{value}'")

    def begin(self, record: RunRecord) -> str:
        """Create the child run of a trial and return its id; a run without a trial that exists is opened again."""
        with store_errors():
            if record.trial is not None:
                tags = {STUDY: self.study, TRIAL: str(record.trial), MLFLOW_PARENT_RUN_ID: self.parent}
                return self._create(record, tags)
            found = self.find(record.key, record.tags[record.key])
            if found is None:
                return self._create(record, {})
            self._client.update_run(found, status="RUNNING")
        self.extend(found, [], {}, record.tags)
        return found

    def extend(self, run: str, metrics: list[MetricValue], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write metrics, params and tags, with one call for up to 1 000 metrics."""
        values = _batches([Metric(*value) for value in metrics], METRICS_AT_ONCE)
        pairs = _batches([Param(*pair) for pair in params.items()], PAIRS_AT_ONCE)
        run_tags = _batches([RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()], PAIRS_AT_ONCE)
        with store_errors():
            for batch in itertools.zip_longest(values, pairs, run_tags, fillvalue=()):
                self._client.log_batch(run, *batch)

    def attach(self, run: str, files: list[str]) -> None:
        """Copy files to the run's artifacts."""
        with store_errors():
            for file in files:
                if run in self._artifacts:
                    self._artifacts[run].log_artifact(file)
                else:
                    self._client.log_artifact(run, file)

    def tag_of(self, run: str, name: str) -> str | None:
        """Return the value of a run's tag, or None if the run has no such tag."""
        with store_errors():
            value: str | None = self._client.get_run(run).data.tags.get(name)
            return value

    def curve(self, run: str, metric: str) -> dict[int, float]:
        """Return the values of a run's metric by step, the latest of each."""
        with store_errors():
            points = sorted(self._client.get_metric_history(run, metric), key=lambda point: point.timestamp)
        return {point.step: point.value for point in points}

    def fetch(self, trial: int, file: str, folder: Path) -> bool:
        """Copy a file of a trial's run into a folder; return whether there was one."""
        with store_errors():
            for run in self.runs(trial):
                if any(artifact.path == file for artifact in self._client.list_artifacts(run.id)):
                    folder.mkdir(parents=True, exist_ok=True)
                    self._client.download_artifacts(run.id, file, str(folder))
                    return True
        return False

    def close(self, run: str, status: str, end: int) -> None:
        """End the run."""
        with store_errors():
            self._client.set_terminated(run, status, end)

    def sync(self) -> None:
        """Wait until everything is on the disk, if the tracker is a file of this machine."""
        with store_errors():
            run_pragma(self.uri, "wal_checkpoint(FULL)")

    def upsert(self, record: RunRecord) -> None:
        """Write a whole record, also if the tracker has all or some of it already."""
        with store_errors():
            if record.trial == PARENT_TRIAL:
                run = self.parent
            elif record.trial is None:
                run = self.begin(record)
            else:
                run = next((run.id for run in self.runs(record.trial)), None) or self.begin(record)
            self._write(run, record)

    def runs(self, trial: int | None = None) -> list[TrackedRun]:
        """Return the child runs of all trials or of one, by trial, then oldest first; none if there is no study yet."""
        condition = f"tags.{STUDY} = '{self.study}'"
        if trial is not None:
            condition += f" AND tags.{TRIAL} = '{trial}'"
        with store_errors():
            if self._client.get_experiment_by_name(self.study) is None:
                return []
            found = [_tracked_run(run) for run in self._search(condition) if TRIAL in run.data.tags]
        return sorted(found, key=lambda run: run.trial)

    @cached_property
    def experiment(self) -> str:
        """Return the id of the experiment."""
        with store_errors():
            found = self._client.get_experiment_by_name(self.study)
        if found is None:
            raise StoreError(f"the tracker has no experiment {self.study} yet")
        return found.experiment_id

    @cached_property
    def parent(self) -> str:
        """Return the id of the parent run."""
        with store_errors():
            found = self._find_parent()
        if found is None:
            raise StoreError(f"the tracker has no parent run for {self.study} yet")
        return found

    def publish_view(self, name: str, state: Mapping[str, Any]) -> None:
        """Store columns, order and charts of the table of runs, which an address of `views` then opens."""
        with store_errors():
            self._client.set_experiment_tag(self.experiment, f"{VIEW_TAG}{name}", encode_view(state))

    def _open(self) -> None:
        """Create the database schema and the experiment if they are missing."""
        with store_errors():
            experiment = self._client.get_experiment_by_name(self.study)
            if experiment is None:
                tags = {STUDY: self.study, "mlflow.experimentKind": "custom_model_development"}
                path = sqlite_path(self.uri)  # artifacts lie beside the database; a server has a place of its own
                artifacts = None if path is None else (path.parent / "mlruns" / self.study).as_uri()
                self._client.create_experiment(self.study, artifact_location=artifacts, tags=tags)
                run_pragma(self.uri, "journal_mode=WAL")  # allows readers beside a writer; the file keeps this mode
            elif experiment.lifecycle_stage == "deleted":
                raise InputError(
                    f"MLflow's experiment {self.study} is in its trash; to bring it back, type mlflow experiments "
                    f"restore -x {experiment.experiment_id}; a study may have another name by --study."
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
        for chatty in ("mlflow", "alembic", "urllib3", "psycopg"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # failures are raised, and records go to the outbox
        atexit.register(self._empty_log)
        return MlflowClient(self.uri)

    def _empty_log(self) -> None:
        """Move SQLite's write-ahead log into the database file, so that a copy of this file alone is complete."""
        with contextlib.suppress(StoreError), store_errors():
            run_pragma(self.uri, "wal_checkpoint(TRUNCATE)")

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


def _tracked_run(run: Any) -> TrackedRun:
    data, info = run.data, run.info
    rest, tags = figures.from_tags(data.tags)
    return TrackedRun(
        trial=int(data.tags[TRIAL]),
        id=info.run_id,
        status=info.status,
        metrics={intern(name): value for name, value in (data.metrics | rest).items()},
        params={intern(name): value for name, value in data.params.items()},
        tags={intern(name): intern(value) for name, value in tags.items()},
        end=info.end_time or 0,
    )


def _batches(items: list[T], size: int) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
