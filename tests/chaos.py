"""Kill workers and drivers of a study while it runs, and look at what is left."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import optuna
from mlflow import MlflowClient
from optuna.trial import TrialState

from tests import ROOT
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.states import state_of
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.vae.errors import InputError

SHORT = [
    *("--set", "train.epochs=6", "--set", "model.hidden=16", "--set", "eval.examples=20"),
    *("--set", "train.device=cpu"),
]


@dataclass(frozen=True)
class Report:
    """What an ordeal left behind: the last driver's exit code, all that was said on stderr, trials, runs."""

    code: int
    errors: str
    kills: Counter
    trials: list
    runs: list


@cache
def empty_database():
    """Return MLflow's database as it is before the first study; to create its schema takes six seconds."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def start(folder, *arguments, new_session=False):
    """Start a sweep of short trials in a folder."""
    if not (folder / "mlflow.db").exists():
        (folder / "mlflow.db").write_bytes(empty_database())
    return subprocess.Popen(
        [sys.executable, str(ROOT / "studies" / "sweep.py"), *(() if "--join" in arguments else SHORT), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def ordeal(folder, *, trials, every, driver_kills, storage=None, tracking=None, timeout=600):
    """Run a study of four workers while one of them dies every few seconds, and its driver now and then.

    However slow the machine is, at least one trial ends between two kills.
    """
    arguments = ["--study", "chaos", "--workers", "4", "--trials", str(trials), "--set", "train.epochs=40"]
    arguments += ["--storage", storage] if storage else []
    arguments += ["--tracking-uri", tracking] if tracking else []
    storage = storage or str(folder / "runs" / "chaos" / "study.journal")
    dice, kills, errors = random.Random(0), Counter(), []
    driver = start(folder, *arguments)
    until, done = time.monotonic() + timeout, 0
    while driver.poll() is None:
        assert time.monotonic() < until, "the study does not come to its end"
        time.sleep(every)
        ended = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials_of("chaos", storage))
        if ended == done:
            continue
        done = ended
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(dice.choice(busy_workers("chaos", storage)), signal.SIGKILL)
            kills["worker"] += 1
        if kills["driver"] < driver_kills and kills["worker"] >= 2 * (kills["driver"] + 1):
            driver.kill()
            errors.append(driver.communicate()[1])
            kills["driver"] += 1
            driver = start(folder, *arguments)
    errors.append(driver.communicate()[1])
    left = aftermath("chaos", storage, tracking or f"sqlite:///{folder}/mlflow.db")
    return Report(driver.returncode, "".join(errors), kills, *left)


def trials_of(study, storage):
    """Return the trials of a study, none where there is no such study yet."""
    try:
        opened = queue.open_storage(storage)
        return optuna.load_study(study_name=study, storage=opened).get_trials(deepcopy=False)
    except (KeyError, InputError):
        return []


def busy_workers(study, storage):
    """Return the process ids of the workers that are inside a trial."""
    owners = [t.user_attrs.get("owner", ":") for t in trials_of(study, storage) if t.state == TrialState.RUNNING]
    lock_files = [Path(owner.partition(":")[2]) for owner in owners]
    return [int(file.read_text()) for file in lock_files if file.is_file() and file.read_text().strip()]


def mismatches(trials, runs):
    """Return the ended trials that do not have exactly one run, of the status that says how they ended."""
    status = {"failed": "FAILED", "lost": "FAILED", "interrupted": "KILLED"}
    found = {
        trial.number: [(run.status, run.tags.get("state")) for run in runs if run.trial == trial.number]
        for trial in trials
    }
    wrong = [
        (t.number, state_of(t), found[t.number])
        for t in trials
        if found[t.number] != [(status.get(state_of(t), "FINISHED"), state_of(t))]
    ]
    return wrong + [("no trial", run.trial) for run in runs if run.trial not in found]


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process, timeout=300):
    """Wait until a server that was started answers."""

    def answers():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True

    wait_until(answers, process, timeout)


def wait_until(happens, process, timeout=300):
    """Wait for something to happen while a process runs."""
    until = time.monotonic() + timeout
    while not happens():
        assert process is None or process.poll() is None, "it ended before its time"
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.1)


def end_group(process):
    """Kill a process that was started in a session of its own, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def aftermath(study, storage, tracking):
    """Return the trials of a study and its child runs."""
    return trials_of(study, storage), Tracker(tracking, study).runs()


def metric_history(tracking, run, metric):
    """Return step and value of a metric of a run."""
    return [(point.step, point.value) for point in MlflowClient(tracking).get_metric_history(run, metric)]


def main():
    """Run the ordeal at its full size and say what it left behind."""
    with tempfile.TemporaryDirectory() as folder:
        report = ordeal(Path(folder), trials=100, every=1.0, driver_kills=2, timeout=600)
    print(f"exit code {report.code}, killed {dict(report.kills)}, on stderr: {report.errors or 'nothing'}")
    print("trials:", dict(Counter(trial.state.name for trial in report.trials)))
    print("runs:  ", dict(Counter(run.status for run in report.runs)))
    print("trials without exactly one run of their state:", mismatches(report.trials, report.runs) or "none")


if __name__ == "__main__":
    main()
