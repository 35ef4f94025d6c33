"""The chaos test with both Optuna's storage and MLflow's tracking in PostgreSQL."""

from collections import Counter

import pytest

from studies import sweep
from studies.engine import search
from tests import chaos, postgres

pytestmark = [
    postgres.needed,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # raised by MLflow's own models
]


@pytest.fixture(scope="module")
def server():
    with postgres.serve() as running:
        yield running


def test_chaos_on_postgres_leaves_what_was_asked_for(server, tmp_path):
    report = chaos.ordeal(
        tmp_path,
        trials=12,
        every=1.5,
        driver_kills=1,
        storage=server.create("optuna"),
        tracking=server.create("mlflow"),
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
    plan = sweep.planned(
        sweep.parser().parse_args(["--study", "far", "--trials", "1", "--storage", server.create("hearts")])
    )
    opened = search.start(plan)
    opened.top_up()
    trial = opened.claim("another-machine:/nowhere")
    opened.heartbeat(trial)
    opened.lose_orphans()
    assert opened.counts().running == 1, "its heart was heard a moment ago"
    chaos.wait_until(lambda: opened.lose_orphans() or opened.counts().running == 0, process=None, timeout=20)
    assert opened.counts().lost == 1
    assert opened.counts().waiting == 1
