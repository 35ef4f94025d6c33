"""Workers and drivers that are killed, stopped and joined: nothing finished is lost, and nothing stays open."""

import dataclasses
import os
import re
import signal
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from tests import chaos
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.queue import RETRIES
from vaebench.studies.engine.search.states import INTERRUPTED, RAISED, REPEATS, Counts, state_of
from vaebench.studies.tracking.mlflow_runs import Tracker


def journal(folder, study):
    return str(folder / "runs" / study / "study.journal")


def database(folder):
    return f"sqlite:///{folder}/mlflow.db"


def finished(trials):
    return [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]


def outcome_of(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_chaos_leaves_as_many_finished_trials_as_were_asked_for(tmp_path):
    """The full size, 100 trials, is `python -m tests.chaos`."""
    report = chaos.Ordeal(tmp_path, 14).kill(every=0.25, driver_kills=2)
    assert report.code == 0
    assert report.errors == ""
    assert report.disturbed["driver"] == 2
    assert report.disturbed["worker"] >= 4
    assert len(finished(report.trials)) == 14
    assert Counter(trial.state.name for trial in report.trials)["RUNNING"] == 0
    assert chaos.mismatches(report.trials, report.runs) == []
    retried = Counter(len(trial.system_attrs.get("retry_history", [])) for trial in report.trials)
    assert max(retried) <= RETRIES


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    longer = ("--set", "train.epochs=60", "--pruner", "none")
    arguments = ("--study", "stopped", "--workers", "2", "--trials", "12", *longer)
    sweep = chaos.start(tmp_path, *arguments, new_session=True)
    chaos.wait_until(lambda: len(finished(chaos.trials_of("stopped", journal(tmp_path, "stopped")))) >= 2, sweep)
    os.killpg(sweep.pid, signal.SIGINT)
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 130
    assert "Traceback" not in out + err
    assert re.search(r"Stopped; what was finished is kept\. To go on: python studies/sweep\.py .*--study stopped", err)
    before = chaos.trials_of("stopped", journal(tmp_path, "stopped"))
    assert not [trial for trial in before if trial.state.name == "RUNNING"]
    assert "interrupted" in [state_of(trial) for trial in before]
    runs = Tracker(database(tmp_path), "stopped").runs()
    assert {run.tags["state"] for run in runs if run.status == "KILLED"} == {"interrupted"}
    assert not [run for run in runs if run.status == "RUNNING"]
    fewer = [*arguments[:5], "1", *longer]
    assert fewer[4] == "--trials"
    done = len(finished(before))
    code, out, err = outcome_of(chaos.start(tmp_path, *fewer))
    assert (code, err) == (0, "")
    assert f"study stopped: {done} trials are done, more than the 1 of --trials; none is added" in out
    assert f"{done} finished" in out
    assert "lost" not in out
    assert "failed" not in out
    assert len(finished(chaos.trials_of("stopped", journal(tmp_path, "stopped")))) == done
    code, out, err = outcome_of(chaos.start(tmp_path, *arguments))
    assert (code, err) == (0, "")
    trials, runs = chaos.aftermath("stopped", journal(tmp_path, "stopped"), database(tmp_path))
    assert len(finished(trials)) == 12
    assert chaos.mismatches(trials, runs) == []
    values = {trial.number: trial.values for trial in before if trial.state.name == "COMPLETE"}
    assert {trial.number: trial.values for trial in trials if trial.number in values} == values


@pytest.mark.slow
def test_another_shell_joins_and_the_trials_are_shared(tmp_path):
    longer = ("--set", "train.epochs=60", "--pruner", "none")
    leader = chaos.start(tmp_path, "--study", "shared", "--workers", "1", "--trials", "14", *longer)
    chaos.wait_until(lambda: chaos.trials_of("shared", journal(tmp_path, "shared")), leader)
    helper = chaos.start(tmp_path, "--study", "shared", "--join", "--workers", "1")
    second = chaos.start(tmp_path, "--study", "shared", "--trials", "14", *longer)
    assert second.communicate(timeout=300)[1].startswith("sweep.py: study shared is led by another process; to help it")
    assert second.returncode == 2
    for process in (helper, leader):
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), out
    trials, runs = chaos.aftermath("shared", journal(tmp_path, "shared"), database(tmp_path))
    assert len(finished(trials)) == 14
    assert len({trial.user_attrs["owner"] for trial in trials}) >= 2
    assert chaos.mismatches(trials, runs) == []


def test_a_lock_lives_exactly_as_long_as_its_process(tmp_path):
    path = tmp_path / "alive" / "lock"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = lock.hold(path)
        os.write(write, b"held" if held else b"fail")
        signal.pause()
    assert os.read(read, 4) == b"held"
    assert lock.is_held(path)
    assert lock.hold(path) is None
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not lock.is_held(path), "a process that was killed and not yet reaped holds nothing"
    os.waitpid(child, 0)
    with lock.hold(path):
        pass
    assert not lock.is_held(tmp_path / "nowhere")


def test_optunas_own_pages_show_the_targets_by_name(plan):
    assert queue.create_study(plan).study.metric_names == ["valid/nll"]


def test_a_lost_trial_is_queued_again_twice_with_its_setting_and_then_replaced(plan):
    search = queue.create_study(plan)
    search.top_up()
    points = []
    for attempt in range(RETRIES + 1):
        owner = f"worker-{attempt}"
        for _ in range(plan.trials):
            trial = search.claim(owner)
            if trial.number == 0 or "failed_trial" in search.trials()[trial.number].system_attrs:
                points.append(plan.space.suggest(trial))
                break
            trial.study.tell(trial, 1.0)
        assert search.requeue(owner, "killed") == [trial.number]
    assert len(points) == 3
    assert points[0] == points[1] == points[2]
    assert search.counts().lost == 3
    assert search.counts().waiting + search.counts().done == plan.trials - 1
    assert search.top_up().waiting + search.counts().done == plan.trials


def test_an_interrupted_trial_is_queued_again_however_often_and_is_no_failure(plan):
    search = queue.create_study(plan)
    search.top_up()
    for _ in range(RETRIES + 2):
        trial = search.claim("me")
        plan.space.suggest(trial)
        assert search.requeue("me", INTERRUPTED) == [trial.number]
    counts = search.counts()
    assert (counts.interrupted, counts.lost, counts.failed, counts.waiting) == (RETRIES + 2, 0, 0, 3)


def test_a_smaller_number_of_trials_holds_queued_ones_back_and_a_larger_one_goes_on(plan):
    search = queue.create_study(plan)
    search.top_up()
    first = search.claim("me")
    first.study.tell(first, 1.0)
    fewer = queue.create_study(dataclasses.replace(plan, trials=2))
    assert fewer.top_up().waiting == 1
    assert fewer.claim("me") is not None
    assert fewer.claim("me") is None, "as many run as were asked for"
    assert queue.create_study(dataclasses.replace(plan, trials=4)).top_up().waiting == 2


def test_states_are_told_from_what_is_known_of_a_trial():
    known = [
        (TrialState.COMPLETE, {}, "finished"),
        (TrialState.COMPLETE, {REPEATS: 0}, "repeated"),
        (TrialState.RUNNING, {REPEATS: 0}, "running"),
        (TrialState.PRUNED, {}, "pruned"),
        (TrialState.FAIL, {RAISED: "it diverged"}, "failed"),
        (TrialState.FAIL, {REPEATS: 0}, "repeated"),
        (TrialState.FAIL, {"reason": INTERRUPTED}, "interrupted"),
        (TrialState.FAIL, {"reason": "its worker is gone"}, "lost"),
        (TrialState.FAIL, {}, "lost"),
        (TrialState.WAITING, {}, "waiting"),
        (TrialState.WAITING, {}, "waiting"),
    ]
    trials = [
        optuna.trial.create_trial(state=state, user_attrs=attributes, value=1.0 if state.name == "COMPLETE" else None)
        for state, attributes, _ in known
    ]
    assert [state_of(trial) for trial in trials] == [word for _, _, word in known]
    counts = Counts.of(trials, asked=5)
    assert (counts.done, counts.running, counts.waiting, counts.begun) == (3, 1, 1, 5)


@pytest.fixture
def plan(tmp_path):
    options = sweep_command.parser().parse_args(
        ["--trials", "3", "--study", "mine", "--storage", str(tmp_path / "journal")]
    )
    return sweep.make_plan(options)


def test_optuna_is_quiet_about_what_is_deprecated(plan):
    search = queue.create_study(plan)
    search.top_up()
    trial = search.claim("me")
    plan.space.suggest(trial)
    trial.report(1.0, 6)
    assert trial.should_prune() is False
    trial.study.tell(trial, 1.0)
    assert search.counts().finished == 1
    assert isinstance(trial.study.pruner, optuna.pruners.NopPruner), "three trials are too few"
