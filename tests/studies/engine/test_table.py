"""The table of a study: differences and ties, bounds, and settings that were not applied."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch

from tests.studies.engine.made_studies import make_rows
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import report, sweep
from vaebench.studies.engine.report import comparison, finish, page, page_data, table
from vaebench.studies.engine.report.chart_data import ChartData
from vaebench.studies.engine.study.paired import FILE, ExampleLikelihoods
from vaebench.studies.engine.study.space import load_space
from vaebench.studies.engine.study.target import TARGETS
from vaebench.vae.config.run import Run

NLL = [1.0, 1.06, 2.0, 1.5, np.nan]
UNRESOLVED = [0, 0, 2, 0, 0]


def study_with_examples(plan, unresolved):
    """Return a study of four finished trials, of which the second ties with the first, and one that is pruned.

    Four examples are estimated in each, the first so many of which are unresolved. The files of trial 3 are elsewhere.
    """
    noise = torch.tensor([0.1, -0.1, 0.2, -0.2])
    for number in (0, 1, 2, 4):
        kept = plan.folder / "trials" / str(number)
        kept.mkdir(parents=True)
        value = torch.arange(4) - 1.5 - np.nan_to_num(NLL[number]) + number * noise
        ExampleLikelihoods(value, noise.abs(), torch.arange(4) >= unresolved[number], "digits").save(kept)
    states = [*["finished"] * 4, "pruned"]
    rows = make_rows(plan, 5).assign(state=states, command="train", seconds=1.0, error=None, **{"valid/nll": NLL})
    return page.Study(plan, comparison.add_differences(rows, plan))


def test_the_table_has_differences_with_errors_and_ties(plan):
    study = study_with_examples(plan, [0] * 5)
    stderr = np.std([0.1, -0.1, 0.2, -0.2], ddof=1) / 2
    shown = study.frame[["difference to best", "difference_stderr"]].to_numpy().tolist()
    assert shown[:3] == [[0, 0], pytest.approx([0.06, stderr], abs=1e-5), pytest.approx([1, 2 * stderr], abs=1e-5)]
    assert np.isnan(shown[3:]).all()
    assert study.frame["tied"].tolist() == [pd.NA, True, False, pd.NA, pd.NA]
    lines = page.render_markdown(study).splitlines()
    assert "| 0 | 1 | 0 |  |" in lines[6]
    assert "| 1 | 1.06 | 0.060 ± 0.091 | yes |" in lines[7]
    assert "| 3 | 1.5 |  |  |" in lines[8]
    assert "| 2 | 2 | 1.000 ± 0.183 | no |" in lines[9]
    assert re.search(r"^ *1 +1\.06 +0\.060 ± 0\.091 +yes", finish.summarise(study, "", []), re.MULTILINE)
    held = page_data.build_table([study], ChartData.read([study]).trials)["texts"]
    assert (held["difference to best"][1], held["tied"][1]) == ("0.060 ± 0.091", "yes")
    assert page_data.describe_best(study)["tied"] == [1]


def test_figures_whose_examples_did_not_all_pass_are_printed_as_bounds_and_stay_numbers(plan):
    study = study_with_examples(plan, UNRESOLVED)
    assert study.frame["valid/nll_unresolved"].tolist()[:3] == UNRESOLVED[:3]
    lines = page.render_markdown(study).splitlines()
    assert "| 0 | 1 | 0 |  |" in lines[6]
    assert "| 2 | <= 2 | <= 1.000 ± 0.183 |  |" in lines[9]
    assert "Best valid/nll: 1.000 (trial 0)." in page.summarise(study)
    for path in table.save(study.frame, plan.folder):
        kept = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        assert kept["difference to best"].iloc[2] == pytest.approx(1, abs=1e-5)
        assert kept["valid/nll"].dtype == kept["difference_stderr"].dtype == float
        assert list(kept) == list(study.frame)


def test_a_best_trial_that_is_a_bound_makes_bounds_of_all_differences(plan):
    study = study_with_examples(plan, [1, 0, 1, 0, 0])
    assert "Best valid/nll: <= 1.000 (1 of 4 examples unresolved) (trial 0)." in page.summarise(study)
    shown = comparison.format_columns(study.best, page.list_columns(study))
    assert shown["difference to best"].tolist() == ["0", ">= 0.060 ± 0.091", "", "~ 1.000 ± 0.183"]
    assert "tied" not in shown, "it is open for all of them"
    assert shown["valid/nll"].tolist() == ["<= 1", "1.06", "1.5", "<= 2"]


def test_the_counts_that_a_trial_logged_come_before_those_of_its_file(plan):
    study = study_with_examples(plan, UNRESOLVED)
    logged = study.frame[["trial", "state", "valid/nll"]].assign(**{"valid/nll_unresolved": [np.nan, 3, np.nan, 1, 2]})
    found = comparison.add_differences(logged, plan)
    assert found["valid/nll_unresolved"].tolist() == [0, 3, 2, 1, 2]
    assert found["valid/nll_examples"].tolist()[:3] == [4, 4, 4]


def test_of_two_targets_the_front_comes_first_then_the_others_by_the_first_target(plan):
    two = dataclasses.replace(plan, target=TARGETS["rate-distortion"])
    rows = make_rows(plan, 5).assign(
        **{"valid/distortion": [5.0, 1.0, 2.0, 3.0, 0.0], "valid/rate": [1.0, 3.0, 9, 9, 0]}
    )
    rows.loc[4, "state"] = "pruned"
    assert table.rank(rows, two)["trial"].tolist() == [1, 0, 2, 3]


def test_bits_are_bounds_where_the_nll_of_their_split_is_one():
    frame = pd.DataFrame({"test/bits_per_dim": [1.0, 2.0, 3.0], "test/nll_unresolved": [0, 4, np.nan]})
    assert comparison.is_bound(frame, "test/bits_per_dim").tolist() == [False, True, False]
    assert not comparison.is_bound(frame.assign(**{"valid/nll": 1.0}), "valid/nll").any()


def test_trials_are_not_compared_where_the_examples_of_the_best_are_elsewhere(plan):
    study = study_with_examples(plan, UNRESOLVED)
    (plan.folder / "trials/0" / FILE).unlink()
    alone = comparison.add_differences(study.frame[["trial", "state", "valid/nll"]], plan)
    assert list(alone) == ["trial", "state", "valid/nll"]


def test_trials_are_not_compared_by_log_px_where_the_target_is_another(plan):
    rows = study_with_examples(plan, UNRESOLVED).frame[["trial", "state"]].assign(**{"latent/mig": 0.5})
    found = comparison.add_differences(rows, dataclasses.replace(plan, target=TARGETS["mig"]))
    assert list(found) == ["trial", "state", "latent/mig"]


def test_a_study_whose_trials_all_lack_w_kl_has_faults_too(plan):
    others = make_rows(plan).drop(columns=["w_kl", "w_d"])
    assert table.find_faults(others, plan) == []
    others.loc[7, "weights_sha256"] = others.loc[3, "weights_sha256"]
    assert "trials 3, 7" in table.find_faults(others, plan)[0]


def test_different_settings_with_identical_weights_are_a_fault(plan):
    clean = make_rows(plan)
    assert table.find_faults(clean, plan) == []
    planted = clean.copy()
    planted.loc[7, "weights_sha256"] = planted.loc[3, "weights_sha256"]
    (fault,) = table.find_faults(planted, plan)
    assert fault.startswith("trials 3, 7 differ in their settings, yet have the same weights_sha256")
    planted = clean.copy()
    planted.loc[7, "valid/nll"] = planted.loc[3, "valid/nll"]
    assert "trials 3, 7" in table.find_faults(planted, plan)[0]


def test_weights_that_only_look_different_are_none(plan):
    """beta, alpha and lambda have two degrees of freedom: these two rows are one and the same objective."""
    rows = make_rows(plan, 2)
    names = ["objective.beta", "objective.alpha", "objective.lambda"]
    rows.loc[0, names], rows.loc[1, names] = [1.0, 0.5, 2.0], [2.0, 0.75, 1.0]
    rows["w_kl"], rows["w_d"], rows["model.latent"], rows["train.learning_rate"] = 0.5, 1.5, 4, 1e-3
    objectives = [Run().replace(dict(zip(names, row, strict=True))).objective for row in rows[names].to_numpy()]
    assert [(o.w_kl, o.w_d) for o in objectives] == [(0.5, 1.5)] * 2
    rows["weights_sha256"], rows["valid/nll"] = "same", 1.0
    assert table.find_faults(rows, plan) == []


def test_trials_that_differ_in_what_their_runs_do_not_depend_on_are_none(plan, tmp_path):
    (tmp_path / "families.toml").write_text(
        '[objective]\nname = { choices = ["infovae", "tc_vae"] }\nw_tc = { low = 1, high = 9 }\n'
        "beta = { low = 1, high = 9 }\nlambda = { low = 1, high = 9 }\n"
    )
    plan = sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine", "--space", "families.toml"]))
    rows = pd.DataFrame({"trial": [0, 1], "state": "finished", "valid/nll": [1.0, 2.0], "weights_sha256": "same"})
    rows["objective.name"] = "tc_vae"
    rows["objective.w_tc"] = 2.0
    rows["objective.beta"], rows["objective.lambda"] = [1.0, 3.0], [2.0, 4.0]
    rows["w_kl"], rows["w_d"] = rows["objective.beta"], rows["objective.beta"] * rows["objective.lambda"]
    assert table.find_faults(rows, plan) == []
    assert len(table.find_faults(rows.assign(**{"objective.w_tc": [2.0, 3.0]}), plan)) == 1
    assert len(table.find_faults(rows.assign(**{"objective.name": "infovae"}), plan)) == 1


def test_settings_that_studies_hold_at_different_values_are_told(plan):
    shorter = dataclasses.replace(plan, base=plan.base.replace({"train.epochs": 7}))
    narrow = dataclasses.replace(shorter, space=plan.space.drop(["objective.beta"]))
    studies = [page.Study(one, make_rows(plan)) for one in (plan, shorter, narrow)]
    epochs, beta = str(plan.base.train.epochs), str(plan.base.objective.beta)
    assert report.compare_held(studies) == [
        {"objective.beta": "searched", "train.epochs": epochs},
        {"objective.beta": "searched", "train.epochs": "7"},
        {"objective.beta": beta, "train.epochs": "7"},
    ]
    assert report.compare_held(studies[:1] * 2) == [{}, {}]


def test_one_weight_alone_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine", "--space", "beta"]))
    assert table.coordinates(plan) == ["model.latent", "objective.beta"]
    two = dataclasses.replace(plan, space=load_space("infovae"))
    assert table.coordinates(two) == ["model.latent", "train.learning_rate", "w_kl", "w_d"]
    assert load_space("infovae").dimensions[1].name == "objective.alpha"
