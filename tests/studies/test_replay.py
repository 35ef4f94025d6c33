"""What waits for the tracker is written by `sweep.py --replay` and by every process of a study, once."""

from pathlib import Path

from tests import chaos
from tests.elsewhere import elsewhere as elsewhere
from tests.studies.test_sweep import plan_of, refused
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.driver import tracker_sync
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, try_to_synchronise
from vaebench.studies.engine.processes import background_call, lock
from vaebench.studies.engine.search import queue
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.record import RunRecord


def test_runs_that_cannot_be_replayed_are_a_failure(capsys):
    """No server listens on port 1: the sentence names the study and the cause, and the records still wait."""
    plan = plan_of("--study", "mine", "--tracking-uri", "http://127.0.0.1:1")
    queue.create_study(plan)
    plan.save()
    outbox = Outbox(plan.folder / "outbox.jsonl")
    outbox.put(RunRecord(0, "mine 0", 1))
    said = refused(capsys, "--replay")
    assert said.startswith("sweep.py: mine: the tracker cannot be reached (")
    assert "Connection refused" in said
    assert len(said) < 120
    assert len(outbox) == 1


def wait_for_the_tracker(name, *arguments):
    """Make a study with a record that waits for the tracker; return its plan."""
    plan = plan_of("--study", name, *arguments)
    queue.create_study(plan)
    plan.save()
    Outbox(plan.folder / "outbox.jsonl").put(RunRecord(0, "0", 1, status="FINISHED", end=2))
    return plan


def test_a_replay_goes_past_studies_that_cannot_be_opened(tmp_path, capsys):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    plans = {name: wait_for_the_tracker(name) for name in ("damaged", "lost", "sound", "torn")}
    untracked = wait_for_the_tracker("untracked", "--tracking-uri", "none")
    wait_for_the_tracker("empty")
    Path("runs/empty/outbox.jsonl").unlink()
    for name in ("damaged", "empty"):
        Path(f"runs/{name}/plan.json").write_text("{")
    Path(plans["lost"].storage).unlink()
    Path(plans["torn"].storage).write_text("#!?\n")
    assert sweep_command.main(["--replay"]) == 2
    said = capsys.readouterr()
    for sentence in (
        "damaged: runs/damaged/plan.json is damaged",
        "lost: the journal runs/lost/study.journal of study lost is missing",
        "torn: line 1 of the journal runs/torn/study.journal is damaged",
        "untracked: 1 runs wait, and the study has no tracker; give --tracking-uri",
    ):
        assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "empty: 0 runs written\nsound: 1 runs written" in said.out
    for plan in (*plans.values(), untracked):
        assert len(Outbox(plan.folder / "outbox.jsonl")) == (plan.name != "sound")
    assert not Path(plans["lost"].storage).exists()
    assert sweep_command.main(["--replay", "--study", "sound"]) == 0


def test_a_process_that_was_stopped_while_it_wrote_holds_up_no_other_for_ever(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    plan = wait_for_the_tracker("mine")
    monkeypatch.setattr(tracker_sync, "WAIT_SECONDS", 0.2)
    job = sweep.open_job(plan, "python studies/sweep.py")
    with lock.hold(plan.folder / tracker_sync.LOCK):
        sync = TrackerSync(job)
        sync.flush()
        assert (sync.error, sync.pending) == ("another process is writing to the tracker", True)
    sync.flush()
    assert (sync.error, sync.pending, job.outbox.waiting) == ("", False, False)


def test_a_replay_takes_the_address_that_the_tracker_has_now(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    wait_for_the_tracker("mine", "--tracking-uri", "http://127.0.0.1:1")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert sweep_command.main(["--replay", "--tracking-uri", uri]) == 0
    assert [run.trial for run in Tracker(uri, "mine").runs()] == [0]


def test_processes_that_write_to_the_tracker_at_once_create_no_run_twice(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    plan = plan_of("--study", "mine")
    queue.create_study(plan)
    job = sweep.open_job(plan, "python studies/sweep.py")
    for trial in range(12):
        job.outbox.put(RunRecord(trial, str(trial), 1, status="FINISHED", end=2))
    calls = [background_call.start(try_to_synchronise, job) for _ in range(3)]
    assert [call.result() for call in calls] == [""] * 3
    assert [run.trial for run in job.tracker.runs()] == list(range(12))
    assert not job.outbox.waiting
