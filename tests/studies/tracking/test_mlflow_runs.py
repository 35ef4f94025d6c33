"""Runs in MLflow: written in few calls, late if need be, and never twice."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from tests import chaos
from vaebench.studies.engine.driver.tracker_sync import reconcile, replay
from vaebench.studies.tracking import mlflow_store
from vaebench.studies.tracking.figures import to_tags
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.mlflow_store import default_uri, sync_at_checkpoints_only
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import RunRecord, StoreError, milliseconds
from vaebench.studies.tracking.recorder import Recorder
from vaebench.vae.errors import InputError


class FakeStore:
    """Keeps what it is told, and fails at some calls."""

    def __init__(self, fails=()):
        self.fails, self.calls, self.runs = set(fails), 0, {}

    def _call(self):
        self.calls += 1
        if self.calls in self.fails:
            raise StoreError("down")

    def begin(self, record):
        self._call()
        self.runs["a"] = {"metrics": [], "params": {}, "tags": dict(record.tags), "files": [], "status": "RUNNING"}
        return "a"

    def extend(self, run, metrics, params, tags):
        self._call()
        self.runs[run]["metrics"] += metrics
        self.runs[run]["params"] |= params
        self.runs[run]["tags"] |= tags

    def attach(self, run, files):
        self._call()
        self.runs[run]["files"] += files

    def close(self, run, status, end):
        self._call()
        self.runs[run]["status"] = status


def record(trial=3):
    return RunRecord(trial, f"mine {trial}", milliseconds(), params={"p": "1"}, tags={"t": "x"})


def write(recorder, epochs=4):
    recorder.begin()
    for epoch in range(1, epochs + 1):
        recorder.log(epoch, {"valid/elbo": -float(epoch), "valid/rate": 2.0})
    recorder.record.tags["late"] = "y"
    recorder.record.files = ["weights"]
    recorder.conclude("FINISHED")
    recorder.close()


def test_a_trial_costs_one_call_for_all_its_metrics(tmp_path):
    store = FakeStore()
    write(Recorder(record(), store, Outbox(tmp_path / "outbox.jsonl")))
    run = store.runs["a"]
    assert store.calls == len(["begin", "extend", "attach", "close"])
    assert [(name, value, step) for name, value, _, step in run["metrics"]][:3] == [
        ("valid/elbo", -1.0, 1),
        ("valid/rate", 2.0, 1),
        ("valid/elbo", -2.0, 2),
    ]
    assert (len(run["metrics"]), run["params"], run["files"], run["status"]) == (8, {"p": "1"}, ["weights"], "FINISHED")
    assert run["tags"] == {"t": "x", "late": "y"}
    assert len(Outbox(tmp_path / "outbox.jsonl")) == 0


def test_a_long_trial_is_written_every_ten_seconds_and_nothing_twice(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    store = FakeStore()
    write(Recorder(record(), store, Outbox(tmp_path / "outbox.jsonl"), flushed=0.0), epochs=12)
    steps = [step for name, _, _, step in store.runs["a"]["metrics"] if name == "valid/rate"]
    assert steps == list(range(1, 13))
    assert store.calls == len(["begin", "at 12 s", "at 28 s", "at 44 s", "the rest", "attach", "close"])
    assert store.runs["a"]["tags"] == {"t": "x", "late": "y"}


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_whichever_call_fails_the_whole_record_waits_in_the_outbox_once(tmp_path, call):
    outbox = Outbox(tmp_path / "outbox.jsonl")
    write(Recorder(record(), FakeStore({call}), outbox))
    (waiting,) = outbox.take()
    assert (waiting.trial, waiting.status, waiting.params, waiting.files) == (3, "FINISHED", {"p": "1"}, ["weights"])
    assert waiting.tags == {"t": "x", "late": "y"}
    assert len(waiting.metrics) == 8


def test_the_outbox_gives_back_what_it_took_until_told_that_it_was_sent(tmp_path):
    outbox = Outbox(tmp_path / "deep" / "outbox.jsonl")
    outbox.put(record(1))
    assert [found.trial for found in outbox.take()] == [1]
    outbox.put(record(2))
    assert len(outbox) == 2
    assert [found.trial for found in outbox.take()] == [1, 2], "a replay that died has sent nothing for certain"
    outbox.confirm()
    assert (len(outbox), outbox.take()) == (0, [])


def test_a_line_that_was_torn_does_not_hide_the_others(tmp_path):
    outbox = Outbox(tmp_path / "outbox.jsonl")
    outbox.put(record(1))
    outbox.path.write_text(outbox.path.read_text() + '{"trial": 2, "na')
    outbox.put(record(3))
    assert [found.trial for found in outbox.take()] == [1, 3]
    sending = outbox.path.with_suffix(".sending")
    sending.write_text(sending.read_text() + '{"trial": 4, "na')
    outbox.put(record(5))
    assert [found.trial for found in outbox.take()] == [1, 3, 5]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    found = Tracker(f"sqlite:///{folder}/mlflow.db", "mine")
    found.prepare(RunRecord(-1, "mine", milliseconds(), params={"constant": "1"}))
    return found


def finished(trial, count=3):
    now = milliseconds()
    points = [("valid/elbo", -float(step), now + step, step) for step in range(count)]
    return RunRecord(trial, f"mine {trial}", now, "FINISHED", now + 5, {"p": "0.5"}, {"t": "x"}, points)


def test_the_database_takes_readers_beside_a_writer_and_keeps_artifacts_beside_it(tracker):
    path = tracker.uri.removeprefix("sqlite:///")
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        (location,) = database.execute("SELECT artifact_location FROM experiments WHERE name = 'mine'").fetchone()
    assert location == f"file://{os.path.dirname(path)}/mlruns/mine"


def test_a_database_with_a_log_waits_for_the_disk_at_checkpoints_alone(tmp_path):
    sync_at_checkpoints_only()
    try:
        for mode, expected in (("wal", 1), ("delete", 2)):
            path = tmp_path / f"{mode}.db"
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute(f"PRAGMA journal_mode={mode}")
            engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool)
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == expected
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", mlflow_store._set_synchronous_normal)


def test_what_is_synced_is_in_the_database_and_not_in_its_log_alone(tracker, tmp_path):
    tracker.upsert(finished(77))
    tracker.sync()
    alone = tmp_path / "alone.db"
    alone.write_bytes(Path(tracker.uri.removeprefix("sqlite:///")).read_bytes())
    with contextlib.closing(sqlite3.connect(alone)) as database:
        assert database.execute("SELECT status FROM runs WHERE name = 'mine 77'").fetchall() == [("FINISHED",)]


def test_writing_a_record_again_changes_nothing(tracker):
    for _ in range(2):
        tracker.upsert(finished(1, count=2500))
    tracker.prepare(RunRecord(-1, "mine", milliseconds()))
    late = finished(1, count=2500)
    tracker.upsert(late)
    tracker.upsert(late)
    (run,) = tracker.runs(1)
    assert (run.status, run.params, run.end - late.end) == ("FINISHED", {"p": "0.5"}, 0)
    assert run.metrics == {"valid/elbo": -2499.0}
    history = chaos.metric_history(tracker.uri, run.id, "valid/elbo")
    assert sorted({step for step, _ in history}) == list(range(2500))
    assert len(history) == 3 * 2500, "three records of different times, none of their points doubled"


def test_reconciling_gives_every_ended_trial_one_run_that_says_how_it_ended(tracker):
    open_run = tracker.begin(record(10))
    tracker.upsert(finished(11))
    ended = {number: finished(number) for number in (10, 11, 12)}
    ended[10].status = "FAILED"
    ended[11].tags |= {"state": "pruned"}  # both states are finished runs in MLflow
    for _ in range(2):
        reconcile(tracker, ended)
    known = {run.trial: run for run in tracker.runs()}
    assert (known[10].id, known[10].status) == (open_run, "FAILED")
    assert {known[11].status, known[12].status} == {"FINISHED"}
    assert known[11].tags["state"] == "pruned"
    assert len([run for run in tracker.runs() if run.trial in ended]) == 3


def test_a_replay_writes_what_it_can_and_keeps_the_rest(tracker, tmp_path):
    outbox = Outbox(tmp_path / "outbox.jsonl")
    for trial in (20, 21):
        outbox.put(finished(trial))
    gone = Tracker("sqlite:////proc/nowhere/mlflow.db", "mine")
    assert replay(gone, outbox) == 2
    assert len(outbox) == 2
    assert replay(tracker, outbox) == 0
    assert len(outbox) == 0
    assert [run.trial for run in tracker.runs() if run.trial in (20, 21)] == [20, 21]


def test_more_runs_than_a_page_are_all_found(tracker, monkeypatch):
    monkeypatch.setattr("vaebench.studies.tracking.mlflow_runs.RUNS_AT_ONCE", 2)
    for trial in (30, 31, 32):
        tracker.upsert(finished(trial))
    assert {30, 31, 32} <= {run.trial for run in tracker.runs()}


def test_runs_come_by_trial_however_they_were_started(tracker):
    first, second = (tracker.begin(record(trial)) for trial in (51, 50))
    known = [run for run in tracker.runs() if run.trial in (50, 51)]
    assert [run.id for run in known] == [second, first]


def test_a_run_without_a_trial_is_found_again_by_its_key(tracker):
    for status, value in (("FAILED", 1.0), ("FINISHED", 2.0)):
        alone = RunRecord(None, "alone", milliseconds(), tags={"folder": "here"}, key="folder")
        alone.metrics, alone.status, alone.end = [("valid/nll", value, milliseconds(), 0)], status, milliseconds()
        tracker.upsert(alone)
    (run,) = tracker._search("tags.folder = 'here'")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"valid/nll": 2.0})


def test_figures_in_tags_are_read_as_metrics_and_win_over_a_curve_of_their_name(tracker):
    kept = finished(60)
    kept.tags |= to_tags({"valid/elbo": -7.0, "latent/tc": 0.5})
    tracker.upsert(kept)
    (run,) = tracker.runs(60)
    assert run.metrics == {"valid/elbo": -7.0, "latent/tc": 0.5}
    assert run.tags["t"] == "x"


def test_a_folder_that_no_url_can_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no URL can name the database .*what\?/mlflow.db"):
        default_uri(tmp_path / "what?")


def test_an_experiment_in_the_trash_is_named(tmp_path):
    found = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "mine")
    found.prepare(RunRecord(-1, "mine", milliseconds()))
    client = found._client
    client.delete_experiment(client.get_experiment_by_name("mine").experiment_id)
    with pytest.raises(InputError, match="is in its trash; to bring it back, type mlflow experiments restore -x 1"):
        Tracker(found.uri, "mine").prepare(RunRecord(-1, "mine", milliseconds()))


@pytest.fixture
def server(tmp_path):
    """Return a function that starts `mlflow server` on a port of its own; what it started is ended by its id."""
    started, port = [], chaos.free_port()

    def start():
        with (tmp_path / "server.log").open("a") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                    *("--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"),
                    *("--artifacts-destination", str(tmp_path / "artifacts")),
                ],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        chaos.wait_for_port(port, process)
        return process, f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        chaos.end_group(process)


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_gets_every_run_once(server, tmp_path):
    """Whether the study outlasts the server's return depends on the machine: either end is right, and says so."""
    process, uri = server()
    study, trials = "interrupted", 12
    longer = ("--set", "train.epochs=40", "--pruner", "none")
    asked = ("--study", study, "--trials", str(trials), "--workers", "2", "--tracking-uri", uri, *longer)
    sweep = chaos.start(tmp_path, *asked)
    outbox = Outbox(tmp_path / "runs" / study / "outbox.jsonl")
    chaos.wait_until(lambda: len(Tracker(uri, study).runs()) >= 3, sweep)
    chaos.end_group(process)
    chaos.wait_until(lambda: len(outbox) >= 2, sweep)
    server()
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert "Traceback" not in out + err
    assert err == "" or "python studies/sweep.py --replay" in out
    replayed = chaos.start(tmp_path, "--replay")
    assert replayed.communicate(timeout=300)[1] == ""
    ended, runs = chaos.aftermath(study, str(tmp_path / "runs" / study / "study.journal"), uri)
    assert len(outbox) == 0
    assert chaos.mismatches(ended, runs) == []
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in ended) == trials
    parent = MlflowClient(uri).get_run(Tracker(uri, study).parent)
    assert (parent.info.status, parent.data.metrics["study/finished"]) == ("FINISHED", trials)
    curves = [chaos.metric_history(uri, run.id, "valid/elbo") for run in runs]
    for curve in curves:
        assert len(curve) == len({step for step, _ in curve}) + 1, "an epoch each, and the final figure"


def test_the_database_is_whole_without_its_log(tmp_path):
    program = f"""
from pathlib import Path
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.mlflow_store import default_uri
from vaebench.studies.tracking.record import RunRecord
tracker = Tracker(default_uri(Path({str(tmp_path)!r})), "kept")
tracker.add(RunRecord(0, "one", 1, status="FINISHED", end=2))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    log = tmp_path / "mlflow.db-wal"
    assert not log.exists() or not log.stat().st_size, "it would be played over a copy that is put back"
    alone = shutil.copy(tmp_path / "mlflow.db", tmp_path / "copied.db")
    with contextlib.closing(sqlite3.connect(alone)) as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("one", "FINISHED")]
