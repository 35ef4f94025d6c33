"""The command that encloses log p(x) of a run: a table, a sentence, and one sentence where it cannot."""

import csv

import pytest
import torch

from vaebench.studies.experiments import enclosure
from vaebench.vae.config.run import Run
from vaebench.vae.errors import InputError
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.fit import fit

FEW = ["--examples", "6", "--temperatures", "3", "--chains", "2", "--tracking-uri", "none"]
SMALL = Run().replace(
    {
        "data.name": "linear",
        "data.size": 200,
        "model.network": "linear",
        "model.latent": 2,
        "model.likelihood": "gaussian",
        "train.epochs": 1,
        "train.device": "cpu",
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(SMALL, folder=folder)
    return folder


def test_a_run_is_enclosed_and_its_test_data_estimated(trained, tmp_path, capsys):
    assert enclosure.main([str(trained), *FEW, "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "on simulated data log p(x) lies within [" in said
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["data"], row["kind"]) for row in rows][::2] == [("simulated", "lower"), ("simulated", "upper")]
    assert [row["by"] for row in rows].count("usual estimate") == 2
    assert rows[3]["data"] == "test"
    printed = [line for line in said.splitlines() if line.startswith("simulated")]
    for line, row in zip(printed, rows, strict=False):
        assert f"{float(row['log p(x)']):.3f} ± {float(row['stderr']):.3f}" in line
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_an_estimate_that_is_a_bound_is_printed_as_one():
    row = {"data": "test", "by": "usual estimate", "kind": "lower", "log p(x)": -3.0, "stderr": 0.1, "unresolved": 2}
    assert enclosure.mark(row)["log p(x)"] == ">= -3.000"
    assert enclosure.mark({**row, "unresolved": 0})["log p(x)"] == "-3.000 ± 0.100"


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    assert enclosure.main([str(tmp_path), *FEW]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"enclosure.py: there is no run in {tmp_path}: it has no {CURRENT}")
    assert said.count("\n") == 1


def test_without_the_runs_data_one_sentence_stands_for_the_test_row(trained, tmp_path, monkeypatch, capsys):
    other = enclosure.load(SMALL.replace({"data.seed": 5}).data)
    monkeypatch.setattr(enclosure, "load", lambda data: other)
    assert enclosure.main([str(trained), *FEW, "--folder", str(tmp_path)]) == 0
    reason = f"{trained} is of a run on other data than {other.name} is now"
    assert capsys.readouterr().err == f"enclosure.py: {reason}; the row of the test data is left out.\n"
    with (tmp_path / "table.csv").open() as file:
        assert [row["data"] for row in csv.DictReader(file)] == ["simulated"] * 3


def test_data_that_are_not_there_leave_out_the_test_row(trained, tmp_path, monkeypatch, capsys):
    def missing(data):
        raise InputError("the folder is empty.")

    monkeypatch.setattr(enclosure, "load", missing)
    assert enclosure.main([str(trained), *FEW, "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == "enclosure.py: the folder is empty; the row of the test data is left out.\n"
    assert "on simulated data" in said.out


@pytest.mark.parametrize("value", ["0", "1", "1.5", "many"])
@pytest.mark.parametrize("option", ["examples", "chains"])
def test_counts_that_cannot_be_are_one_sentence(option, value, trained, capsys):
    with pytest.raises(SystemExit, match="2"):
        enclosure.main([str(trained), f"--{option}={value}"])
    assert f"argument --{option}: must be a whole number of at least 2, got {value}" in capsys.readouterr().err


def test_the_threads_are_those_of_other_commands(trained, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    enclosure.main([str(trained), *FEW, "--folder", str(tmp_path)])
    assert seen == [1]
