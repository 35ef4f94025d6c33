"""What settings do to results, held to Optuna's own front, NumPy's medians, and studies whose answer is known."""

import dataclasses

import numpy as np
import optuna
import pandas as pd
import pytest

from tests.studies.engine.made_studies import make_rows
from vaebench.studies.engine.report import effects, table
from vaebench.studies.engine.study.target import TARGETS


def test_the_front_is_optunas(monkeypatch):
    draw = np.random.default_rng(1)
    values = draw.integers(0, 12, (60, 2)).astype(float)  # many ties and doubles
    study = optuna.create_study(directions=["minimize"] * 2)
    study.add_trials([optuna.create_trial(values=row.tolist()) for row in values])
    rows = pd.DataFrame(values, columns=["a", "b"])
    front = table.pareto_front(rows, ["a", "b"])
    assert set(rows.index[front]) == {trial.number for trial in study.best_trials}
    assert 1 < front.sum() < 30
    missing = pd.concat([rows, pd.DataFrame({"a": [-1.0], "b": [np.nan]})], ignore_index=True)
    assert table.pareto_front(missing, ["a", "b"]).tolist() == [*front, False]


def test_a_trend_is_the_median_of_neighbours():
    draw = np.random.default_rng(2)
    x, y = draw.permutation(32).astype(float), draw.normal(size=32)
    found = effects.trend(pd.Series(x), pd.Series(y))
    order = np.argsort(x)
    assert found["x"].tolist() == np.median(x[order].reshape(8, 4), axis=1).tolist()
    assert found["y"].tolist() == np.median(y[order].reshape(8, 4), axis=1).tolist()
    assert effects.trend(pd.Series(x[:7]), pd.Series(y[:7])).empty, "one group is no trend"


def test_the_trend_of_choices_is_the_median_of_each():
    found = effects.trend(pd.Series(["b", "a", "b", "a", "b"]), pd.Series([1.0, 5.0, 2.0, 7.0, np.nan]))
    assert found.to_numpy().tolist() == [["a", 6.0], ["b", 1.5]]
    assert effects.trend(pd.Series(["a", "a"]), pd.Series([1.0, 2.0])).empty


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([*range(101)], (-5, 105)),
        ([*range(101), 1e6, np.inf, np.nan], (-5, 105)),
        ([2.0, 2.0], (1.9, 2.1)),
        ([0.0], (-1, 1)),
        ([np.nan], None),
    ],
)
def test_outliers_stretch_no_axis(values, ends):
    found = effects.robust_range(pd.Series(values, dtype=float))
    assert found == (ends if ends is None else pytest.approx(ends))


def test_a_marked_value_stretches_an_axis_though_it_is_far_from_the_others():
    values, marked = pd.Series([*range(101), 500.0, 1e6]), pd.Series([False] * 101 + [True, False])
    assert effects.robust_range(values, marked) == pytest.approx((-25, 525))


def test_the_spread_of_an_importance_holds_it_and_falls_with_more_trials(plan):
    widths = []
    for count in (15, 300):
        rows = make_rows(plan, count)
        ranges = effects.importance_ranges(rows, plan)
        shares = {name: share for name, (_, share, _) in ranges.items()}
        assert sum(shares.values()) == pytest.approx(1)
        assert all(0 <= low <= share <= high <= 1 for low, share, high in ranges.values())
        assert ranges == effects.importance_ranges(rows, plan), "the same every time"
        widths.append(ranges["w_kl"][2] - ranges["w_kl"][0])
    assert max(shares, key=shares.get) == "w_kl"
    assert ranges["w_kl"][0] > max(high for name, (_, _, high) in ranges.items() if name != "w_kl")
    assert widths[1] < widths[0] / 2
    assert effects.importance_ranges(make_rows(plan, 5), plan) == {}


@pytest.mark.parametrize(("target", "expected"), [("nll", "w_d"), ("mig", "w_kl")])
def test_importances_are_of_what_makes_trials_the_best_in_the_direction_of_the_target(plan, target, expected):
    """Large values come from a large w_kl alone, and small ones from a large w_d alone."""
    rows, draw = make_rows(plan, 300), np.random.default_rng(3)
    rows["w_kl"], rows["w_d"] = draw.uniform(0.1, 10, (2, 300))
    noise = draw.normal(size=300)
    rows[TARGETS[target].metrics[0]] = noise + 100.0 * (rows["w_kl"] > 9) - 100.0 * (rows["w_d"] > 9)
    ranges = effects.importance_ranges(rows, dataclasses.replace(plan, target=TARGETS[target]))
    assert max(ranges, key=lambda name: ranges[name][1]) == expected


def test_of_two_targets_the_importances_are_of_the_first(plan):
    rows, draw = make_rows(plan, 300), np.random.default_rng(3)
    rows["w_kl"], rows["w_d"] = draw.uniform(0.1, 10, (2, 300))
    rows["valid/distortion"], rows["valid/rate"] = rows["w_d"], rows["w_kl"]
    ranges = effects.importance_ranges(rows, dataclasses.replace(plan, target=TARGETS["rate-distortion"]))
    assert max(ranges, key=lambda name: ranges[name][1]) == "w_d"


@pytest.mark.parametrize(
    ("values", "wide"), [([1.0, 31.0], True), ([1.0, 29.0], False), ([-1.0, 40.0], False), ([0.0, 40.0], False)]
)
def test_an_axis_of_positive_values_that_span_much_is_logarithmic(values, wide):
    assert effects.is_wide(pd.Series(values)) is wide


def test_a_setting_that_did_not_vary_has_no_importance(plan):
    rows = make_rows(plan, 40).assign(**{"train.learning_rate": 0.01})
    found = effects.importance_ranges(rows, plan)
    assert "train.learning_rate" not in found
    assert {"w_kl", "model.latent"} <= set(found)


def test_three_trials_show_no_trend():
    assert effects.trend(pd.Series([1.0, 2.0, 3.0]), pd.Series([1.0, 2.0, 3.0])).empty


def shares_of(frame, plan):
    return {name: share for name, (_, share, _) in effects.importance_ranges(frame, plan).items()}


def test_the_importance_falls_to_the_degree_of_freedom_that_matters(plan):
    shares = shares_of(make_rows(plan, 200), plan)
    assert set(shares) == {"model.latent", "train.learning_rate", "w_kl", "w_d"}
    assert shares["w_kl"] > 0.6


def test_choices_of_several_types_have_an_importance(plan):
    mixed = make_rows(plan).assign(**{"model.latent": ["auto", 4.0] * 20})
    assert "model.latent" in shares_of(mixed, plan)


def test_trials_of_families_without_w_kl_count_for_the_importances_of_what_all_have(plan):
    mixed = make_rows(plan)
    mixed.loc[:29, ["w_kl", "w_d"]] = np.nan
    mixed["valid/nll"] = np.log(mixed["train.learning_rate"]) ** 2
    shares, searched = shares_of(mixed, plan), {dimension.name for dimension in plan.space.dimensions}
    assert set(shares) == set(shares_of(mixed.drop(columns=["w_kl", "w_d"]), plan)) == searched
    assert max(shares, key=shares.get) == "train.learning_rate"
