"""The report of a study: what it says is in the runs, what it embeds is in the page, what it finds wrong is wrong."""

import html
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests import chaos
from vaebench.studies import report as report_command
from vaebench.studies import sweep as sweep_command
from vaebench.studies import train as train_command
from vaebench.studies.commands import report, sweep
from vaebench.studies.commands import train as train_work
from vaebench.studies.engine.report import comparison, effects, files, finish, page, page_data, table
from vaebench.studies.engine.report.chart_data import ChartData
from vaebench.studies.engine.study.paired import FILE, ExampleLikelihoods, nll_difference
from vaebench.studies.engine.study.space import load_space
from vaebench.vae.config.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # raised by MLflow's own models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small studies of one target."""
    folder = tmp_path_factory.mktemp("studies")
    for name, sampler in (("first", "tpe"), ("second", "random")):
        process = chaos.start(folder, "--study", name, "--trials", "12", "--sampler", sampler)
        assert process.communicate(timeout=200)[1] == ""
    return folder


@pytest.fixture
def study(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return report.read("first")


class Outside(HTMLParser):
    """Collects what a page loads or leads to, and the data that it holds."""

    def __init__(self):
        super().__init__()
        self.found, self.tags, self.data, self.in_data = [], [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.in_data = tag == "script" and ("id", "data") in attrs

    def handle_data(self, data):
        self.data += data if self.in_data else ""


def test_the_page_is_complete_in_itself(folder, study):
    parser = Outside()
    parser.feed((folder / "runs/first/report.html").read_text())
    assert set(parser.found) == {"#effects", *study.addresses.values()}
    assert "leaderboard" in study.addresses
    assert not {"link", "iframe", "object", "embed"} & set(parser.tags)
    assert "@import" not in (text := files.TEMPLATE.joinpath("page.css").read_text())
    assert "url(" not in text
    pictures = json.loads(parser.data)["pictures"]
    embedded = [source for entry in pictures.values() for source in entry["embedded"].values()]
    assert len(embedded) == 2 * len(study.best)
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in embedded)
    linked = [address for entry in pictures.values() for address in entry["links"].values()]
    assert linked
    assert all((folder / "runs/first" / address).exists() for address in linked)
    drawn = {path.stem for path in (folder / "runs/first/figures").glob("*.png")}
    assert drawn >= {"history", "rate_distortion", "parallel", "effects", "best_samples", "best_reconstructions"}


def test_the_head_of_the_page_tells_what_was_run_where(folder, study):
    facts = dict(page_data.list_facts(study))
    assert set(facts) >= {"Searched", "Trials", "Data", "When", "Machine", "Versions", "Command"}
    assert f"torch {torch.__version__.partition('+')[0]}" in facts["Versions"]
    assert facts["Command"].startswith("python studies/sweep.py --set train.epochs=6")
    assert facts["Data"] == f"digits {study.plan.data[:8]}"
    text = html.unescape((folder / "runs/first/report.html").read_text())
    assert all(fact in text for fact in facts.values())


def test_the_best_of_the_table_is_the_best_that_optuna_knows(folder, study):
    trials = chaos.trials_of("first", str(folder / "runs/first/study.journal"))
    best = min((trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda trial: trial.value)
    row = re.search(r"^\| (\d+) \| ([\d.]+) ", (folder / "runs/first/report.md").read_text(), re.MULTILINE)
    assert int(row[1]) == best.number
    assert float(row[2]) == pytest.approx(best.value, rel=1e-3)
    assert len(study.frame) == len(trials)


def test_every_command_leads_back_to_the_run_that_it_stands_for(study):
    for _, row in study.frame.iterrows():
        words = shlex.split(row["command"])
        config = train_work.read_config(train_command.parser().parse_args(words[2:]))
        point = {dimension.name: row[dimension.name] for dimension in study.plan.space.dimensions}
        flat = config.flat()
        for name, value in point.items():
            assert flat[name] == value
        assert flat["train.epochs"] == 6


def test_the_table_is_kept_as_csv_and_parquet(folder, study):
    for kept in (pd.read_csv(folder / "runs/first/trials.csv"), pd.read_parquet(folder / "runs/first/trials.parquet")):
        assert kept["trial"].tolist() == study.frame["trial"].tolist()
        assert kept["w_kl"].to_numpy() == pytest.approx(study.frame["w_kl"].to_numpy())


def test_trials_are_compared_over_the_examples_that_rank_them(folder, study):
    """The mean of the examples is the target, so that the differences are those of the table's first column."""
    ranked = table.rank(study.frame, study.plan)
    best = ExampleLikelihoods.read(folder / f"runs/first/trials/{ranked['trial'].iloc[0]}")
    for _, row in ranked.iterrows():
        found = ExampleLikelihoods.read(folder / f"runs/first/trials/{row['trial']}")
        assert -found.value.mean().item() == pytest.approx(row["valid/nll"], rel=1e-5)
        assert found.unresolved == row["valid/nll_unresolved"]
        assert row["difference to best"] == pytest.approx(row["valid/nll"] - ranked["valid/nll"].iloc[0], abs=1e-3)
        assert row["difference_stderr"] == pytest.approx(nll_difference(found, best).stderr)
    assert pd.isna(ranked["tied"].iloc[0])
    errors = ranked["difference to best"].iloc[1:] / ranked["difference_stderr"].iloc[1:]
    assert ((errors.abs() < 2) == ranked["tied"].iloc[1:]).all()
    others = study.frame.drop(ranked.index)
    assert others["difference to best"].isna().all()
    kept = pd.read_csv(folder / "runs/first/trials.csv")
    assert kept["difference to best"].to_numpy() == pytest.approx(study.frame["difference to best"], nan_ok=True)


def test_two_studies_side_by_side(folder, study, capsys):
    assert report_command.main(["first", "second"]) == 0
    said = capsys.readouterr().out
    assert "# first and second" in said
    assert re.search(r"\| sampler \| tpe \| random \|", said)
    best = {name: report.read(name).best.iloc[0] for name in ("first", "second")}
    better, worse = sorted(best, key=lambda name: best[name]["valid/nll"])
    found = {name: ExampleLikelihoods.read(folder / f"runs/{name}/trials/{best[name]['trial']}") for name in best}
    shown = {better: "0", worse: str(nll_difference(found[worse], found[better]))}
    assert f"| difference to best | {shown['first']} | {shown['second']} |" in said
    parser = Outside()
    parser.feed((folder / "runs/compare-first-second.html").read_text())
    held = json.loads(parser.data)
    assert set(held["trials"]["study"]) == {"first", "second"}
    linked = [address for entry in held["pictures"].values() for address in entry["links"].values()]
    assert all((folder / "runs" / address).exists() for address in linked)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a study is needed; those in runs: first, second."),
        (["third"], "there is no study 'third' in runs; those there: first, second."),
        (["first", "third"], "there is no study 'third'"),
    ],
)
def test_bad_input_is_one_sentence(study, capsys, arguments, message):
    assert report_command.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_study_whose_folder_was_renamed_is_reported_where_it_is(folder, study, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder / "runs/first", tmp_path / "runs/renamed")
    shutil.copy(folder / "mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert report_command.main(["renamed"]) == 0
    assert "runs/renamed/report.html" in capsys.readouterr().out
    assert report.read("renamed").frame.equals(study.frame)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["renamed"]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("study.journal", lambda text: "", "runs/mine/study.journal has no study 'first', or is damaged."),
        ("study.journal", lambda text: text[text.index("\n") + 1 :], "study.journal"),
        ("study.journal", lambda text: "#!?\n" + text, "line 1 of the journal runs/mine/study.journal is damaged"),
        ("study.journal", None, "the journal runs/mine/study.journal of study mine is missing; put back a copy of it."),
        ("plan.json", lambda text: text[:100], "runs/mine/plan.json is damaged ("),
        ("plan.json", lambda text: text.replace('"space"', '"spaces"'), "runs/mine/plan.json is damaged ("),
        (
            "plan.json",
            lambda text: text.replace('"target": "nll"', '"target": "x"'),
            "runs/mine/plan.json is damaged (",
        ),
    ],
)
def test_a_damaged_study_is_one_sentence(folder, tmp_path, monkeypatch, capsys, file, damage, message):
    shutil.copytree(folder / "runs/first", tmp_path / "runs/mine")
    monkeypatch.chdir(tmp_path)
    path = Path("runs/mine") / file
    path.unlink() if damage is None else path.write_text(damage(path.read_text()))
    assert report_command.main(["mine"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine"]))


def frame(plan, count=40, seed=0):
    """Return a table of random settings whose target depends on w_kl alone."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"trial": range(count), "state": "finished"})
    for dimension in plan.space.dimensions:
        frame[dimension.name] = random.uniform(dimension.low, dimension.high, count)
    frame["w_kl"] = frame["objective.beta"] * (1 - frame["objective.alpha"])
    frame["w_d"] = frame["objective.beta"] * (frame["objective.alpha"] + frame["objective.lambda"] - 1)
    frame["valid/nll"] = np.log(frame["w_kl"]) ** 2
    frame["weights_sha256"] = [f"{i:08x}" for i in range(count)]
    return frame


NLL = [1.0, 1.06, 2.0, 2.5, np.nan]
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
    rows = frame(plan, 5).assign(state=states, command="train", seconds=1.0, error=None, **{"valid/nll": NLL})
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
    assert "| 2 | 2 | 1.000 ± 0.183 | no |" in lines[8]
    assert "| 3 | 2.5 |  |  |" in lines[9]
    assert re.search(r"^ *1 +1\.06 +0\.060 ± 0\.091 +yes", finish.summarise(study, "", []), re.MULTILINE)
    held = page_data.build_table([study], ChartData.read([study]).trials)["texts"]
    assert (held["difference to best"][1], held["tied"][1]) == ("0.060 ± 0.091", "yes")
    assert page_data.describe_best(study)["tied"] == [1]


def test_figures_whose_examples_did_not_all_pass_are_printed_as_bounds_and_stay_numbers(plan):
    study = study_with_examples(plan, UNRESOLVED)
    assert study.frame["valid/nll_unresolved"].tolist()[:3] == UNRESOLVED[:3]
    lines = page.render_markdown(study).splitlines()
    assert "| 0 | 1 | 0 |  |" in lines[6]
    assert "| 2 | <= 2 | <= 1.000 ± 0.183 |  |" in lines[8]
    assert "Best valid/nll: 1.000 (trial 0)." in page.summarise(study)
    for path in table.save(study.frame, plan.folder):
        kept = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        assert kept["difference to best"].iloc[2] == pytest.approx(1, abs=1e-5)
        assert kept["valid/nll"].dtype == kept["difference_stderr"].dtype == float


def test_a_best_trial_that_is_a_bound_makes_bounds_of_all_differences(plan):
    study = study_with_examples(plan, [1, 0, 1, 0, 0])
    assert "Best valid/nll: <= 1.000 (1 of 4 examples unresolved) (trial 0)." in page.summarise(study)
    shown = comparison.format_columns(study.best, page.list_columns(study))
    assert shown["difference to best"].tolist() == ["0", ">= 0.060 ± 0.091", "~ 1.000 ± 0.183", ""]
    assert "tied" not in shown, "it is open for all of them"
    assert shown["valid/nll"].tolist() == ["<= 1", "1.06", "<= 2", "2.5"]


def test_bits_are_bounds_where_the_nll_of_their_split_is_one():
    frame = pd.DataFrame({"test/bits_per_dim": [1.0, 2.0, 3.0], "test/nll_unresolved": [0, 4, np.nan]})
    assert comparison.is_bound(frame, "test/bits_per_dim").tolist() == [False, True, False]
    assert not comparison.is_bound(frame.assign(**{"valid/nll": 1.0}), "valid/nll").any()


def test_trials_are_not_compared_where_the_examples_of_the_best_are_elsewhere(plan):
    study = study_with_examples(plan, UNRESOLVED)
    (plan.folder / "trials/0" / FILE).unlink()
    alone = comparison.add_differences(study.frame[["trial", "state", "valid/nll"]], plan)
    assert list(alone) == ["trial", "state", "valid/nll"]


def shares_of(frame, plan):
    return {name: share for name, (_, share, _) in effects.importance_ranges(frame, plan).items()}


def test_the_importance_falls_to_the_degree_of_freedom_that_matters(plan):
    shares = shares_of(frame(plan, 200), plan)
    assert set(shares) == {"model.latent", "train.learning_rate", "w_kl", "w_d"}
    assert max(shares, key=shares.get) == "w_kl"
    assert shares["w_kl"] > 0.6
    assert shares_of(frame(plan, 5), plan) == {}


def test_choices_of_several_types_have_an_importance(plan):
    mixed = frame(plan).assign(**{"model.latent": ["auto", 4.0] * 20})
    assert "model.latent" in shares_of(mixed, plan)


def test_trials_of_families_without_w_kl_count_for_the_importances_of_what_all_have(plan):
    mixed = frame(plan)
    mixed.loc[:29, ["w_kl", "w_d"]] = np.nan
    mixed["valid/nll"] = np.log(mixed["train.learning_rate"]) ** 2
    shares = shares_of(mixed, plan)
    assert set(shares) == {dimension.name for dimension in plan.space.dimensions}
    assert max(shares, key=shares.get) == "train.learning_rate"


def test_a_study_whose_trials_all_lack_w_kl_has_faults_too(plan):
    others = frame(plan).drop(columns=["w_kl", "w_d"])
    assert table.find_faults(others, plan) == []
    others.loc[7, "weights_sha256"] = others.loc[3, "weights_sha256"]
    assert "trials 3, 7" in table.find_faults(others, plan)[0]
    assert set(shares_of(others, plan)) == {dimension.name for dimension in plan.space.dimensions}


def test_different_settings_with_identical_weights_are_a_fault(plan):
    clean = frame(plan)
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
    rows = frame(plan, 2)
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


def about(kind, study):
    """Return the warnings of a study of one kind."""
    return [line for line in study.warnings.lines if line.startswith(kind)]


def sound_study(plan, count=12):
    """Return the rows of a study without anything to warn of: the best trial lies in the middle of the space."""
    rows = frame(plan, count).assign(error=None, command="train", seconds=1.0, **{"latent/active_units": 3.0})
    for dimension in plan.space.dimensions:
        rows.loc[0, dimension.name] = dimension.grid(5)[2]
    rows.loc[0, "valid/nll"] = -1.0
    return rows


def test_a_sound_study_has_no_warning(plan):
    assert page.Study(plan, sound_study(plan)).warnings.lines == []


def test_every_kind_of_warning_has_one_line_the_gravest_first(plan):
    rows = sound_study(plan, 16)
    rows.loc[[0, 3], "latent/active_units"] = 0.0
    rows.loc[[4, 5, 6], "state"] = "failed"
    rows.loc[[4, 5], "error"] = ["training diverged in epoch 2 at step 7: ...", "the target is not finite: nan"]
    rows.loc[6, "error"] = "CUDA error"
    rows.loc[7, "state"] = "lost"
    rows.loc[[8, 9], "weights_sha256"] = "same"
    rows.loc[[10, 11, 12, 13, 14, 15], "state"] = "pruned"
    rows.loc[[8, 9], "state"] = "pruned"
    rows.loc[0, ["model.latent", "objective.lambda"]] = [32, 1.0]
    rows["ais/gap"], rows["ais/gap_stderr"] = [0.5, 0.6, *[0.0] * 14], 0.1
    rows["latent/mi"], rows["latent/log_n"] = 7.2, 7.27
    study = page.Study(plan, rows)
    assert study.warnings.lines == [
        "posterior collapse: trials 0, 3 ended without an active unit, the best one among them, so that codes say "
        "nothing about x; lower objective.beta, or warm up with train.warmup_epochs",
        "divergence: trials 4, 5 did not train; lower train.learning_rate",
        "failure: trial 6 failed, the first by: CUDA error",
        "settings not applied: trials 8, 9 differ in their settings, yet have the same weights_sha256 (same)",
        "few trials: 4 finished and 8 were pruned, too few to rank settings by; --pruner none, or more --trials",
        "edge of the space: the best trial has model.latent = 32 of 2 to 32, integers, log; objective.lambda = 1 of 1 "
        "to 1000, numbers, log; a wider range may hold a better one",
        "estimator of log p(x): under trials 0, 1 annealed importance sampling finds it 0.50 ± 0.10, 0.60 ± 0.10 nats "
        "higher, so that nll is too high",
    ]
    assert study.warnings.footnotes == ["latent/mi is within 1 nat of log N, its ceiling, in all trials shown"]
    whole = files.render(ChartData.read([study]), "mine", plan.folder)
    for text in (finish.summarise(study, "", []), page.render_markdown(study), whole):
        places = [html.unescape(text).index(line) for line in (*study.warnings.lines, *study.warnings.footnotes)]
        assert places == sorted(places)


def test_a_collapsed_trial_that_is_not_the_best_is_named_without_it(plan):
    rows = sound_study(plan)
    rows.loc[3, "latent/active_units"] = 0.0
    (line,) = page.Study(plan, rows).warnings.lines
    assert line.startswith("posterior collapse: trial 3 ended without an active unit, so that codes say nothing")
    rows.loc[3, "state"] = "pruned"
    assert page.Study(plan, rows).warnings.lines == []


@pytest.mark.parametrize(("alpha", "warns"), [(0.0, True), (0.019, True), (0.021, False), (1.0, False)])
def test_a_bound_of_the_setting_itself_is_no_edge(plan, alpha, warns):
    """alpha is at most 1 by its definition, so that no space reaches further; below 0 one could."""
    rows = sound_study(plan)
    rows.loc[0, "objective.alpha"] = alpha
    assert len(about("edge", page.Study(plan, rows))) == warns


def test_estimates_not_to_be_trusted_are_named(plan):
    """Annealing tells against the estimator where it finds more than three errors more; less tells nothing."""
    rows = frame(plan, 3)
    rows["valid/nll"] = [1.0, 2.0, 3.0]
    rows["ais/gap"], rows["ais/gap_stderr"] = [0.31, 0.29, -0.9], 0.1
    rows["latent/mi"], rows["latent/log_n"] = [7.0, 3.0, 6.5], 7.27
    study = page.Study(plan, rows)
    (doubt,) = about("estimator", study)
    assert doubt == (
        "estimator of log p(x): under trial 0 annealed importance sampling finds it 0.31 ± 0.10 nats higher, so that "
        "nll is too high"
    )
    assert study.warnings.footnotes == ["latent/mi is within 1 nat of log N, its ceiling, in trials 0, 2"]
    assert (
        "On trials 0, 1, 2 its log p(x) minus the estimate is 0.31 ± 0.10, 0.29 ± 0.10, -0.90 ± 0.10 nats"
        in page.describe_estimates(study)[0]
    )


def test_gaps_of_an_older_study_have_no_error(plan):
    rows = frame(plan, 3).assign(**{"valid/nll": [1.0, 2.0, 3.0], "ais/gap": [0.31, 0.29, None]})
    study = page.Study(plan, rows)
    assert about("estimator", study) == []
    (said,) = page.describe_estimates(study)
    assert "On trials 0, 1 its log p(x) minus the estimate is 0.31, 0.29 nats" in said


def test_a_checked_trial_without_a_resolved_example_is_named(plan):
    rows = frame(plan, 3).assign(**{"valid/nll": [1.0, 2.0, 3.0], "ais/nll": [90.0, 91.0, None]})
    expected = "On trials 0, 1 annealing has no estimate to compare with: all examples are unresolved."
    assert page.describe_estimates(page.Study(plan, rows)) == [expected]
    gaps = rows.assign(**{"ais/gap": [0.1, None, None], "ais/gap_stderr": [0.2, None, None]})
    said = page.describe_estimates(page.Study(plan, gaps))
    assert "On trials 0 its log p(x) minus the estimate is 0.10 ± 0.20 nats" in said[0]
    assert said[1:] == [expected.replace("0, 1", "1")]


def test_the_enclosure_of_the_best_trial_is_told_with_its_errors(plan):
    rows = frame(plan, 3)
    rows["valid/nll"] = [1.0, 2.0, 3.0]
    figures = {
        "lower": -80.0,
        "upper": -79.5,
        "width_stderr": 0.1,
        "log_px": -79.75,
        "shortfall": 0.25,
        "shortfall_stderr": 0.05,
        "unresolved": 0.0,
        "examples": 16.0,
    }
    for name, value in figures.items():
        rows[f"enclosure/{name}"] = [value, None, None]
    expected = (
        "Under trial 0, on simulated data log p(x) lies within [-80.200, -79.300]: the mean of 16 examples, "
        "2 standard errors included; the estimate is -79.750, and the upper bound lies 0.250 ± 0.050 nats above it."
    )
    assert page.describe_estimates(page.Study(plan, rows)) == [expected]
    rows["enclosure/unresolved"] = [1.0, None, None]
    assert ">= -79.750 (1 of 16 examples unresolved)" in page.describe_estimates(page.Study(plan, rows))[0]


def find_enclosure_doubts(plan, excess, shortfall, unresolved=0.0):
    """Return the doubts about an estimate with these distances to its bounds, each with an error of 0.1."""
    found = {"excess": excess, "excess_stderr": 0.1, "shortfall": shortfall, "shortfall_stderr": 0.1}
    rows = frame(plan, 2).assign(**{"valid/nll": [1.0, 2.0]})
    for name, value in {**found, "unresolved": unresolved}.items():
        rows[f"enclosure/{name}"] = [value, None]
    return about("estimator", page.Study(plan, rows))


def test_an_estimate_outside_its_enclosure_is_in_doubt(plan):
    """Beyond three standard errors: below the lower bound it is too low, above the upper one too high."""
    assert find_enclosure_doubts(plan, -0.29, 0.5) == find_enclosure_doubts(plan, 0.5, -0.29) == []
    (below,) = find_enclosure_doubts(plan, -0.31, 0.5)
    assert below == (
        "estimator of log p(x): on data simulated by trial 0 it lies 0.31 ± 0.10 nats below the lower bound, so that "
        "nll is too high"
    )
    (above,) = find_enclosure_doubts(plan, 0.5, -0.31)
    assert above.endswith("it lies 0.31 ± 0.10 nats above the upper bound, so that nll is too low")
    assert find_enclosure_doubts(plan, -0.31, 0.5, unresolved=1.0) == [], "it is told to be a lower bound"


def test_one_weight_alone_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine", "--space", "beta"]))
    assert table.coordinates(plan) == ["model.latent", "objective.beta"]
    assert load_space("infovae").dimensions[1].name == "objective.alpha"
