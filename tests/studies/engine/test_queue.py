"""What a study tells of its trials while it runs, held to Optuna's own best trial, and the journal that it reads."""

import dataclasses

import optuna
import pytest
from optuna.trial import TrialState

from tests.elsewhere import elsewhere as elsewhere
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.search import journal, queue, states
from vaebench.studies.engine.study.target import TARGETS
from vaebench.vae.errors import InputError


def create_study(target):
    plan = sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine", "--tracking-uri", "none"]))
    return queue.create_study(dataclasses.replace(plan, target=TARGETS[target]))


@pytest.mark.parametrize(("target", "expected"), [("nll", -7.0), ("mig", 9.0)])
def test_the_best_value_so_far_is_optunas(target, expected):
    search = create_study(target)
    assert search.best_value() is None
    for value in (3.0, -7.0, 9.0, 5.0):
        search.study.tell(search.study.ask(), value)
    assert search.best_value() == search.study.best_value == expected


def test_of_two_targets_the_best_value_is_that_of_the_first():
    search = create_study("rate-distortion")
    for values in ((3.0, 1.0), (2.0, 8.0)):
        search.study.tell(search.study.ask(), values)
    assert search.best_value() == 2


@pytest.mark.parametrize("last", [1, None])
def test_every_complete_line_of_a_journal_is_a_record_and_an_unfinished_one_may_become_one(tmp_path, last):
    path = tmp_path / "journal"
    path.write_text('{"op_code": 1}\n{"op_code": 2}\n{"op_co')
    journal._require_records(path, last=last)
    for damaged in ("[1]", "#!?"):
        path.write_text('{"op_code": 1}\n' + damaged + '\n{"op_co')
        with pytest.raises(InputError, match=r"line 2 of the journal .* is damaged"):
            journal._require_records(path, last=last)


def test_a_torn_line_is_cut_off_before_the_next_record(tmp_path):
    path = tmp_path / "journal"
    backend = journal.JournalBackend(path)
    backend.append_logs([{"op_code": 1}])
    with path.open("a") as file:
        file.write('{"op_code": 2, "torn": "' + "x" * 500)
    backend.append_logs([{"op_code": 3}])
    assert path.read_text() == '{"op_code":1}\n{"op_code":3}\n'


def test_trials_are_counted_by_what_became_of_them():
    """Of ten that were asked for six are done and two run, so that two of those that wait are still taken."""
    ends = {
        "finished": (3, TrialState.COMPLETE, {}),
        "pruned": (2, TrialState.PRUNED, {}),
        "failed": (1, TrialState.FAIL, {states.RAISED: "diverged"}),
        "lost": (4, TrialState.FAIL, {states.REASON: "its worker died"}),
        "interrupted": (5, TrialState.FAIL, {states.REASON: states.INTERRUPTED}),
        "repeated": (6, TrialState.FAIL, {states.REPEATS: 0}),
        "running": (2, TrialState.RUNNING, {}),
        "waiting": (9, TrialState.WAITING, {}),
    }
    trials = [
        optuna.create_trial(state=state, user_attrs=known, value=1.0 if state == TrialState.COMPLETE else None)
        for count, state, known in ends.values()
        for _ in range(count)
    ]
    counts = states.Counts.of(trials, asked=10)
    assert dataclasses.asdict(counts) == {word: count for word, (count, *_) in ends.items()} | {"waiting": 2}
    assert (counts.done, counts.begun) == (6, 10)
    assert states.Counts.of(trials, asked=5).waiting == 0
