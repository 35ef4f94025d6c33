"""`python studies/sweep.py` as a user meets it: a study with its runs and report, continued, joined to no other."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = [
    *("--set", "train.epochs=4", "--set", "model.hidden=16", "--set", "eval.samples=10", "--set", "eval.examples=20"),
    *("--set", "train.device=cpu", "--workers", "2", "--study", "small"),
]


def sweep(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "studies" / "sweep.py"), *SHORT, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        timeout=300,
    )


def runs_of(folder):
    """Return `{run: (status, names of its params and metrics)}` of all trials, read from the database itself."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        children = "select run_uuid from tags where key = 'mlflow.parentRunId'"
        status = dict(database.execute(f"select run_uuid, status from runs where run_uuid in ({children})").fetchall())
        named = database.execute(
            "select run_uuid, key from params union select run_uuid, key from latest_metrics"
        ).fetchall()
    return {run: (state, {key for owner, key in named if owner == run}) for run, state in status.items()}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, sweep(folder, "--trials", "6")


def test_a_study_ends_with_as_many_runs_as_trials(study):
    folder, done = study
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    runs = runs_of(folder)
    assert len(runs) == 6
    for status, names in runs.values():
        assert status in ("FINISHED", "KILLED")
        assert {"objective.beta", "objective.alpha", "objective.lambda", "model.latent", "w_kl", "w_d"} <= names
    assert list((folder / "runs" / "small").glob("*.html"))


def test_the_same_command_has_nothing_left_to_do_and_more_trials_add_to_it(study):
    folder, _ = study
    again = sweep(folder, "--trials", "6")
    assert again.returncode == 0, again.stderr
    assert len(runs_of(folder)) == 6
    more = sweep(folder, "--trials", "8")
    assert more.returncode == 0, more.stderr
    assert len(runs_of(folder)) == 8


def test_another_space_under_the_same_name_is_refused(study):
    folder, _ = study
    other = sweep(folder, "--trials", "9", "--space", "beta")
    assert other.returncode == 2
    assert other.stderr.startswith("sweep.py: ")
    assert other.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trials", "0"],
        ["--space", "betas"],
        ["--set", "train.epocs=3"],
        ["--storage", "nowhere://x"],
        ["--workers", "0"],
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, arguments):
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("sweep.py: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_dry_run_shows_the_space_and_starts_nothing(tmp_path):
    done = sweep(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "objective.beta" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
