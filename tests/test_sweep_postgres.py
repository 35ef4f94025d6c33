"""The chaos test with both Optuna's storage and MLflow's tracking in PostgreSQL."""

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from studies import sweep
from studies.engine import search
from tests import chaos

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
INSTALL = "PostgreSQL is not installed: apt-get install postgresql"

pytestmark = [
    pytest.mark.skipif(not (BINARIES or shutil.which("initdb")), reason=INSTALL),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # raised by MLflow's own models
]


def tool(name):
    """Return the command of a server binary; PostgreSQL refuses to run as root, so there it runs as its own user."""
    found = shutil.which(name) or str(BINARIES[-1] / name)
    return [
        *(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []),
        found,
    ]


@pytest.fixture(scope="module")
def folder():
    """A folder that PostgreSQL's own user can reach, as pytest's are not."""
    with tempfile.TemporaryDirectory() as made:
        if os.geteuid() == 0:
            shutil.chown(made, "postgres", "postgres")
        yield Path(made)


@pytest.fixture(scope="module")
def server(folder):
    """Start a server on a free port of 127.0.0.1 and return a function that makes a database there."""
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'psycopg[binary]'")
    data, port = folder / "data", chaos.free_port()
    subprocess.run(
        [*tool("initdb"), "-D", data, "-A", "trust", "-U", "vae", "--no-sync"], check=True, capture_output=True
    )
    with (folder / "log").open("w") as log:
        options = ["-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
        process = subprocess.Popen([*tool("postgres"), *options], stdout=log, stderr=log, start_new_session=True)

    def create(database):
        address = ["-h", "127.0.0.1", "-p", str(port), "-U", "vae"]
        subprocess.run([*tool("createdb"), *address, database], check=True, capture_output=True)
        return f"postgresql+psycopg://vae@127.0.0.1:{port}/{database}"

    try:
        chaos.wait_for_port(port, process)
        yield create
    finally:
        chaos.end_group(process)


def test_chaos_on_postgres_leaves_what_was_asked_for(server, tmp_path):
    report = chaos.ordeal(
        tmp_path, trials=12, every=1.5, driver_kills=1, storage=server("optuna"), tracking=server("mlflow")
    )
    assert (report.code, report.errors) == (0, "")
    assert report.kills["driver"] == 1
    assert report.kills["worker"] >= 2
    states = Counter(trial.state.name for trial in report.trials)
    assert states["COMPLETE"] + states["PRUNED"] == 12
    assert states["RUNNING"] == 0
    assert chaos.mismatches(report.trials, report.runs) == []


def test_a_trial_of_another_machine_is_lost_when_its_heart_stops(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "HEARTBEAT_SECONDS", 1)
    plan = sweep.planned(sweep.parser().parse_args(["--study", "far", "--trials", "1", "--storage", server("hearts")]))
    opened = search.start(plan)
    opened.top_up()
    trial = opened.claim("another-machine:/nowhere")
    opened.heartbeat(trial)
    opened.lose_orphans()
    assert opened.counts().running == 1, "its heart was heard a moment ago"
    chaos.wait_until(lambda: opened.lose_orphans() or opened.counts().running == 0, process=None, timeout=20)
    assert opened.counts().lost == 1
    assert opened.counts().waiting == 1
