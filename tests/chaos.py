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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
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
    """What an ordeal left behind.

    Attributes:
        code: the last driver's exit code.
        output, errors: all that was said on stdout and stderr.
        disturbed: how often workers and drivers were killed or stopped.
        parent: the study's own run, as MLflow's client returns it.
    """

    code: int
    output: str
    errors: str
    disturbed: Counter
    trials: list
    runs: list
    parent: Run


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


@dataclass
class Ordeal:
    """A study of four workers that is disturbed while it runs.

    Attributes:
        said: stdout and stderr of the drivers that have ended.
    """

    folder: Path
    trials: int
    storage: str | None = None
    tracking: str | None = None
    timeout: float = 600
    said: list = field(default_factory=list)
    disturbed: Counter = field(default_factory=Counter)

    def __post_init__(self):
        arguments = ["--study", "chaos", "--workers", "4", "--trials", str(self.trials), "--set", "train.epochs=40"]
        arguments += ["--storage", self.storage] if self.storage else []
        self.arguments = arguments + (["--tracking-uri", self.tracking] if self.tracking else [])
        self.storage = self.storage or str(self.folder / "runs" / "chaos" / "study.journal")
        self.tracking = self.tracking or f"sqlite:///{self.folder}/mlflow.db"
        self.until = time.monotonic() + self.timeout

    def start(self):
        """Start the driver, or another one that goes on."""
        self.driver = start(self.folder, *self.arguments)

    def count_ended(self):
        """Return how many trials have ended, and check that there is time left."""
        assert time.monotonic() < self.until, "the study does not come to its end"
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return sum(trial.state in ended for trial in trials_of("chaos", self.storage))

    def kill(self, *, every, driver_kills):
        """Kill a worker every few seconds, and the driver now and then.

        However slow the machine is, at least one trial ends between two kills.
        """
        dice, done = random.Random(0), 0
        self.start()
        while self.driver.poll() is None:
            time.sleep(every)
            ended = self.count_ended()
            if ended == done:
                continue
            done = ended
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(dice.choice(busy_workers("chaos", self.storage)), signal.SIGKILL)
                self.disturbed["worker"] += 1
            if self.disturbed["driver"] < driver_kills and self.disturbed["worker"] >= 2 * (
                self.disturbed["driver"] + 1
            ):
                self.driver.kill()
                self.said.append(self.driver.communicate())
                self.disturbed["driver"] += 1
                self.start()
        return self.conclude()

    def stop(self, *, seconds, after=2):
        """Stop a worker in the middle of a trial for some time, once some trials have ended."""
        self.start()
        worker, *_ = wait_until(
            lambda: self.count_ended() >= after and busy_workers("chaos", self.storage), self.driver
        )
        with contextlib.suppress(ProcessLookupError):  # its trial may have been queued again, and the study have ended
            os.kill(worker, signal.SIGSTOP)
            self.disturbed["worker"] += 1
            time.sleep(seconds)
            os.kill(worker, signal.SIGCONT)
        return self.conclude()

    def conclude(self):
        """Wait for the end of the study, and report."""
        self.said.append(self.driver.communicate(timeout=self.timeout))
        output, errors = map("".join, zip(*self.said, strict=True))
        left, parent = aftermath("chaos", self.storage, self.tracking), Tracker(self.tracking, "chaos").parent
        whole = MlflowClient(self.tracking).get_run(parent)
        return Report(self.driver.returncode, output, errors, self.disturbed, *left, whole)


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
    """Wait for something to happen while a process runs; return what it gives."""
    until = time.monotonic() + timeout
    while not (found := happens()):
        assert process is None or process.poll() is None, "it ended before its time"
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.1)
    return found


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


def describe(name, report):
    """Print what an ordeal left behind."""
    print(
        f"{name}: exit code {report.code}, disturbed {dict(report.disturbed)}, on stderr: {report.errors or 'nothing'}"
    )
    print("  trials:", dict(Counter(trial.state.name for trial in report.trials)))
    print(
        "  runs:  ", dict(Counter(run.status for run in report.runs)), "and the study's own", report.parent.info.status
    )
    print("  trials without exactly one run of their state:", mismatches(report.trials, report.runs) or "none")


def main():
    """Run the ordeals at their full size and say what they left behind."""
    with tempfile.TemporaryDirectory() as folder:
        describe("killed", Ordeal(Path(folder), 100).kill(every=1.0, driver_kills=2))
    with tempfile.TemporaryDirectory() as folder:
        describe("a worker stopped for 90 s", Ordeal(Path(folder), 20).stop(seconds=90))


if __name__ == "__main__":
    main()
