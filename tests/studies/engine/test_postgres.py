"""The chaos test with both Optuna's storage and MLflow's tracking in PostgreSQL."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests import chaos, postgres
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.search import queue

pytestmark = [
    postgres.needed,
]


PASSWORD = "sesame-0461"  # the server asks for none, and ignores it


@pytest.fixture(scope="module")
def server():
    with postgres.serve() as running:
        yield running


@pytest.mark.slow
def test_chaos_on_postgres_leaves_what_was_asked_for(server, tmp_path):
    storage, tracking = (server.create(name).replace("vae@", f"vae:{PASSWORD}@") for name in ("optuna", "mlflow"))
    report = chaos.Ordeal(tmp_path, 12, storage, tracking).kill(every=0.5, driver_kills=1)
    assert (report.code, report.errors) == (0, "")
    assert report.disturbed["driver"] == 1
    assert report.disturbed["worker"] >= 2
    states = Counter(trial.state.name for trial in report.trials)
    assert states["COMPLETE"] + states["PRUNED"] == 12
    assert states["RUNNING"] == 0
    assert chaos.mismatches(report.trials, report.runs) == []
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for written in (*files, *map(server.dump, ("optuna", "mlflow")), report.output.encode()):
        assert PASSWORD.encode() not in written
    assert f"vae@127.0.0.1:{server.port}/optuna" in report.output, (
        "the command to help with stays, but for the password"
    )


def test_a_trial_of_another_machine_is_lost_when_its_heart_stops(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queue, "HEARTBEAT_SECONDS", 1)
    plan = sweep.make_plan(
        sweep_command.parser().parse_args(["--study", "far", "--trials", "1", "--storage", server.create("hearts")])
    )
    search = queue.create_study(plan)
    search.top_up()
    trial = search.claim("another-machine:/nowhere")
    search.heartbeat(trial)
    search.requeue_orphans()
    assert search.counts().running == 1, "its heart was heard a moment ago"
    chaos.wait_until(lambda: search.requeue_orphans() or search.counts().running == 0, process=None, timeout=20)
    assert search.counts().lost == 1
    assert search.counts().waiting == 1


@pytest.mark.slow
def test_the_tasks_of_a_slurm_array_share_a_study(server, tmp_path):
    """The script of docs/scale.md, run as SLURM would, by a `srun` that runs its command here."""
    (script,) = re.findall(r"^```bash\n(.*?)^```", (chaos.ROOT / "docs" / "scale.md").read_text(), re.M | re.S)
    tools = {"srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"', "python": f'exec {sys.executable} "$@"'}
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sweep.sbatch").write_text(script)
    storage, tracking = server.create("slurm"), server.create("slurm_runs")
    given = {"STUDY": "array", "STORAGE": storage, "TRACKING": tracking, "RETRY_SECONDS": "1"}
    given |= {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "VAEBENCH": str(chaos.ROOT),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    asked = ["--trials", "10", "--pruner", "none", *chaos.SHORT, "--set", "train.epochs=40"]
    tasks = [
        subprocess.Popen(
            ["bash", str(tmp_path / "sweep.sbatch"), *asked],
            env=os.environ | given | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MIN": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in (4, 3)
    ]
    said = [task.communicate(timeout=600) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "there is no study" in said[0][1] or not said[0][1], "who comes first waits for the one who leads"
    trials, runs = chaos.aftermath("array", storage, tracking)
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 10
    assert chaos.mismatches(trials, runs) == []
    assert len({trial.user_attrs["owner"] for trial in trials}) >= 2, "both tasks worked"
