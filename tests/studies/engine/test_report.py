"""The report of a study: what it says is in the runs, and what it embeds is in the page."""

import html
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import chaos
from vaebench.studies import report as report_command
from vaebench.studies import train as train_command
from vaebench.studies.commands import report
from vaebench.studies.commands import train as train_work
from vaebench.studies.engine.report import files, page_data, table
from vaebench.studies.engine.study.paired import ExampleLikelihoods, nll_difference


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
    assert report_command.main(["runs/first/", "second"]) == 0
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
