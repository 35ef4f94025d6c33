"""What a study tells of its trials while it runs, held to Optuna's own best trial, and the journal that it reads."""

import dataclasses

import pytest

from tests.elsewhere import elsewhere as elsewhere
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.search import journal, queue
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
