"""Who is stopped when: rungs, brackets, and the best third of those that came to a rung."""

import math
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from vaebench.studies.engine.search.pruners import AsynchronousHyperband, LeavingAThird, rungs


def study_of(curves, direction="minimize"):
    """Return a study whose trials reported these values, step by step."""
    study = optuna.create_study(direction=direction)
    for curve in curves:
        study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=curve))
    return study


def asked(study, pruner, step, value):
    """Return whether the next trial is stopped after reporting a value."""
    trial = study.ask()
    trial.report(value, step)
    return pruner.prune(study, study.get_trials()[trial.number])


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(60, 6, [6, 18]), (50, 5, [5, 15]), (9, 1, [1, 3]), (100, 10, [10, 30]), (2, 1, [])],
)
def test_rungs_are_a_third_and_a_ninth_of_all_epochs(epochs, every, expected):
    assert rungs(epochs, every, trials=40) == expected


@pytest.mark.parametrize(
    ("trials", "expected"), [(1, []), (8, []), (9, [15]), (26, [15]), (27, [5, 15]), (1000, [5, 15])]
)
def test_a_study_of_few_trials_has_late_rungs_or_none(trials, expected):
    """Three trials are left after a third has gone on at each rung."""
    assert rungs(50, 5, trials) == expected
    assert not expected or trials / 3 ** len(expected) >= 3


@pytest.mark.parametrize("trials", [9, 12, 20, 41])
def test_a_third_of_the_trials_finishes_however_poor_the_later_ones_are(trials):
    """Each trial is worse than all before it; four of them run at the same time."""
    pruner = LeavingAThird(AsynchronousHyperband([1, 3]), trials, [1, 3])
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    running = {}
    for number in range(trials):
        running[number] = study.ask()
        if len(running) == 4 or number == trials - 1:
            for step in range(1, 10):
                for other, trial in list(running.items()):
                    trial.report(float(other), step)
                stopped = [other for other, trial in running.items() if step < 9 and trial.should_prune()]
                for other in stopped:
                    study.tell(running.pop(other), state=TrialState.PRUNED)
            for other, trial in running.items():
                study.tell(trial, float(other))
            running = {}
    counts = Counter(trial.state for trial in study.trials)
    assert counts[TrialState.COMPLETE] >= math.ceil(trials / 3)
    assert counts[TrialState.PRUNED] >= trials // 3, "the pruner still prunes"


def test_two_workers_do_not_both_stop_the_last_trial_that_may_be_stopped():
    """Of three trials two may be stopped; one is, and two have just reported where the pruner decides."""
    pruner = LeavingAThird(AsynchronousHyperband([1]), 3, [1])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    first, second, third = (study.ask() for _ in range(3))
    first.report(1.0, 1)
    study.tell(first, state=TrialState.PRUNED)
    second.report(2.0, 1)
    assert pruner.prune(study, study.get_trials()[1])
    third.report(3.0, 1)
    assert not pruner.prune(study, study.get_trials()[2]), "the second may be stopped at this moment"
    second.report(2.0, 2)
    assert pruner.prune(study, study.get_trials()[2]), "it goes on"


def test_brackets_cost_about_the_same_and_any_few_trials_are_spread_over_them():
    pruner = AsynchronousHyperband([5, 15])
    assert pruner.shares == pytest.approx([2 / 3, 1 / 3])
    passed = {0: 5 + 10 / 3 + 35 / 9, 1: 15 + 35 / 3}
    costs = [share * passed[bracket] for bracket, share in enumerate(pruner.shares)]
    assert max(costs) / min(costs) < 1.4
    for first in range(0, 300, 7):
        counts = Counter(pruner.bracket(number) for number in range(first, first + 22))
        for bracket, share in enumerate(pruner.shares):
            assert abs(counts[bracket] - 22 * share) < 2, (first, counts)


@pytest.mark.parametrize("steps", [[], [5]])
def test_where_there_is_one_rung_or_none_there_is_one_bracket(steps):
    assert {AsynchronousHyperband(steps).bracket(number) for number in range(50)} == {0}
    study = study_of([{5: 1.0}] * 6)
    assert asked(study, AsynchronousHyperband(steps), 5, 2.0) == bool(steps)


def test_the_best_third_goes_on_whichever_way_is_better():
    pruner = AsynchronousHyperband([5, 15])
    pruner.bracket = lambda number: 0
    values = [float(value) for value in range(1, 9)]
    for direction, sign in (("minimize", 1), ("maximize", -1)):
        study = study_of([{5: sign * value} for value in values], direction)
        assert not asked(study, pruner, 5, sign * 2.5), "third of nine"
        assert asked(study, pruner, 5, sign * 4.5)
        assert not asked(study, pruner, 10, sign * 100), "no rung"


def test_a_bracket_passes_over_its_first_rungs():
    study = study_of([{5: 1.0, 15: 1.0}] * 6)
    for bracket, stopped in ((0, [True, True]), (1, [False, True])):
        pruner = AsynchronousHyperband([5, 15])
        pruner.bracket = lambda number, bracket=bracket: bracket
        assert [asked(study, pruner, step, 2.0) for step in (5, 15)] == stopped


def test_what_is_not_a_number_is_stopped_and_counts_for_nothing():
    pruner = AsynchronousHyperband([5])
    pruner.bracket = lambda number: 0
    study = study_of([{5: math.nan}] * 9)
    assert asked(study, pruner, 5, math.nan)
    assert not asked(study, pruner, 5, 3.0), "the first that came"


def test_a_trial_that_was_lost_with_its_worker_does_not_count_twice():
    pruner = AsynchronousHyperband([5])
    pruner.bracket = lambda number: 0
    study = study_of([{5: 1.0}] * 2)
    for _ in range(9):
        study.add_trial(create_trial(state=TrialState.FAIL, intermediate_values={5: 9.0}))
    assert asked(study, pruner, 5, 2.0), "third of three, not of twelve"


def test_the_name_of_a_study_decides_nothing():
    decided = []
    for name in ("a", "b", "c"):
        study = optuna.create_study(
            study_name=name, pruner=AsynchronousHyperband([1, 3]), sampler=optuna.samplers.RandomSampler(seed=0)
        )

        def objective(trial):
            for step in range(1, 10):
                trial.report(trial.suggest_float("x", 0, 1), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return trial.params["x"]

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study.optimize(objective, 40)
        decided.append([(trial.state, trial.last_step) for trial in study.trials])
    assert decided[0] == decided[1] == decided[2]
    assert {step for _, step in decided[0]} == {1, 3, 9}
