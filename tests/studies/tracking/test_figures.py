"""Final figures: what runs are sorted by is a metric, all the rest comes back from tags, and the note shows both."""

import json
import math
import time

from vaebench.studies.tracking import figures
from vaebench.studies.tracking.mlflow_runs import LONGEST_TAG
from vaebench.studies.tracking.record import NOTE, PARENT_TRIAL, RunRecord, milliseconds

FIGURES = {"valid/nll": 84.5, "valid/rate": 23.0, "latent/tc": 0.25, "latent/tc_stderr": 0.01, "zeta/score": 7.0}


def record():
    return RunRecord(3, "3", 1, metrics=[("valid/rate", 20.0, 1, 1), ("valid/rate", 22.0, 2, 5)])


def test_metrics_are_what_runs_are_sorted_by_and_the_target_comes_first():
    found = record()
    figures.add_figures(found, FIGURES, ["zeta/score"])
    assert [(name, value, step) for name, value, _, step in found.metrics] == [
        ("zeta/score", 7.0, 0),
        ("valid/nll", 84.5, 0),
        ("valid/rate", 23.0, 5),  # the last point of its curve
        ("valid/rate", 20.0, 1),
        ("valid/rate", 22.0, 5),
    ]
    assert figures.from_tags(found.tags) == ({"latent/tc": 0.25, "latent/tc_stderr": 0.01}, {})


def test_a_figure_whose_course_has_one_point_has_the_step_of_this_point():
    found = RunRecord(3, "3", 1, metrics=[("valid/rate", 20.0, 1, 0)])
    figures.add_figures(found, {"valid/rate": 23.0, "valid/nll": 1.0})
    assert [(name, step) for name, _, _, step in found.metrics[:2]] == [("valid/rate", 0), ("valid/nll", 0)]


def test_a_curve_of_which_the_record_has_no_point_may_be_told():
    found = record()
    figures.add_figures(found, {"valid/rate": 23.0, "valid/nll": 1.0}, steps={"valid/rate": 3, "valid/nll": 4})
    assert [(name, step) for name, _, _, step in found.metrics[:2]] == [("valid/rate", 5), ("valid/nll", 4)]


def test_there_is_a_tag_for_each_prefix():
    tags = figures.to_tags({"latent/tc": 0.5, "latent/log_n": 7.0, "ais/gap": -0.25})
    assert {name: json.loads(text) for name, text in tags.items()} == {
        "figures.ais": {"ais/gap": -0.25},
        "figures.latent": {"latent/log_n": 7.0, "latent/tc": 0.5},
    }


def test_what_was_written_already_stays_in_front():
    found = record()
    figures.add_figures(found, {"valid/nll": 1.0}, before=2)
    assert [name for name, *_ in found.metrics] == ["valid/rate", "valid/rate", "valid/nll"]


def test_any_number_of_figures_comes_back_exactly_from_tags_that_mlflow_takes():
    many = {f"latent/a_figure_with_a_long_name_{i}_seed_sd": math.exp(-i) / 3 for i in range(500)} | {
        "ais/gap": math.inf
    }
    tags = figures.to_tags(many)
    assert max(map(len, tags.values())) < LONGEST_TAG
    assert figures.from_tags(tags | {"trial": "3"}) == (many, {"trial": "3"})


def test_the_note_lists_every_figure_once_and_breaks_the_command():
    found = record()
    figures.add_note(found, FIGURES, "Trial 3", "python studies/train.py --set a=1 --set b=2")
    lines = found.tags[NOTE].splitlines()
    assert lines[:6] == ["Trial 3", "", "```", "python studies/train.py \\", "  --set a=1 \\", "  --set b=2"]
    assert {"| latent/tc | 0.25 ± 0.01 |", "| valid/nll | 84.500 |", "| valid/rate | 23 |"} <= set(lines)
    assert sum(line.startswith("| ") for line in lines) == 2 + len(FIGURES) - 1, (
        "a standard error has no row of its own"
    )


def test_times_are_whole_milliseconds_and_no_trial_has_the_number_of_the_parent(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_999_999)
    assert repr(milliseconds()) == "1700000000123"
    assert PARENT_TRIAL < 0
