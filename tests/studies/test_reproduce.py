"""Published results found again, at sizes that take seconds, on files of the published formats."""

import dataclasses
import json
import os

import numpy as np
import pytest

from tests.vae.data.test_binarized_mnist import write_amat
from tests.vae.data.test_torchvision_sets import write_mnist
from vaebench.studies.commands import reproduce
from vaebench.studies.commands.reproduce import ROWS
from vaebench.studies.reproduce import main
from vaebench.vae.config.run import Run
from vaebench.vae.data import torchvision_sets

SMALL = ("train.epochs=1", "model.hidden=6", "model.latent=2", "eval.examples=4", "train.device=cpu")
CHANGES = [part for change in SMALL for part in ("--set", change)]


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Forty images and eight for the test, in the idx files of MNIST, of which ten are held out."""
    random = np.random.default_rng(0)
    images, test = (random.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (40, 8))
    classes = [random.integers(0, 10, count, dtype=np.uint8) for count in (40, 8)]
    written = write_mnist(tmp_path / "data/MNIST/raw", images, classes[0], test, classes[1])
    monkeypatch.setitem(torchvision_sets.IDX_MD5, "mnist", written)
    monkeypatch.setitem(torchvision_sets.HELD_OUT, "mnist", 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder):
    return {read["name"]: read for read in (json.loads(path.read_text()) for path in folder.glob("*/result.json"))}


def test_without_a_name_all_are_listed_with_what_they_lack(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    out = capsys.readouterr().out
    for name, row in ROWS.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
        assert f"{row.nll:.4g}" in line
        assert "not run" in line
        assert row.source in line
        assert ("4 files in data/MNIST/raw" in line) != ("3 files in data/BinarizedMNIST" in line)
    assert list(tmp_path.iterdir()) == []


def test_without_the_data_one_sentence_names_the_files_and_their_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["burda2016"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(name in said for name in torchvision_sets.IDX_MD5["mnist"])
    assert "in data/MNIST/raw; put them there, or give --data-dir" in said
    assert main(["pythae"]) == 2
    assert "binarized_mnist_train.amat" in capsys.readouterr().err
    assert main(["burda"]) == 2
    assert "there is no published result 'burda'; choose from burda2016-vae" in capsys.readouterr().err


def test_a_name_trains_measures_and_keeps_all_that_begin_with_it(mnist, monkeypatch, capsys):
    assert main(["burda2016", *CHANGES]) == 0
    out = capsys.readouterr().out
    found = results(mnist / "runs/reproduce")
    assert set(found) == {name for name in ROWS if name.startswith("burda2016")}
    for name, kept in found.items():
        assert kept["verdict"].startswith("missed, too high"), "after one epoch"
        assert f"{name}: nll" in out
        assert kept["published"] == ROWS[name].nll
        assert kept["settings"]["train.epochs"] == 1
        assert kept["found"]["notes"][0] == "train.epochs = 1"
        assert kept["command"].startswith(f"python studies/reproduce.py {name} --data-dir data --set train.epochs=1")
        own_draw = "MNIST binarised once by data.seed, not the published draw" in kept["found"]["notes"]
        assert own_draw == ("fixed" in name)
    table = (mnist / "runs/reproduce/table.md").read_text()
    assert all(f"| {name} | {row.source} | {row.nll} " in table for name, row in ROWS.items())
    assert table.count("missed") == 6
    monkeypatch.setattr(reproduce, "fit", lambda *_, **__: pytest.fail("it trained again"))
    assert main(["burda2016", *CHANGES]) == 0
    assert results(mnist / "runs/reproduce") == found
    assert not list((mnist / "runs/reproduce").rglob(f"*.{os.getpid()}"))


def test_a_command_that_is_kept_leads_back_to_its_folder(mnist):
    assert main(["burda2016-vae", "--folder", "another place", *CHANGES]) == 0
    (kept,) = results(mnist / "another place").values()
    assert "--data-dir data --folder 'another place' --set train.epochs=1" in kept["command"]


def test_another_data_set_is_refused(capsys):
    assert main(["burda2016-vae", "--set", "data.name=digits"]) == 2
    assert "--set leaves data.name alone" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", '{"found": {"nll": 9', "[]", "{}", '{"found": {"nll": 90.0}}'])
def test_a_damaged_result_counts_as_not_there(tmp_path, text):
    (tmp_path / reproduce.RESULT).write_text(text)
    assert reproduce.read(tmp_path) is None


def test_results_of_other_settings_and_of_other_code_have_other_folders(tmp_path, monkeypatch):
    def place(epochs):
        return reproduce.place("pythae-vae", Run().replace({"train.epochs": epochs}), tmp_path)

    first = place(1)
    assert place(1) == first != place(2)
    monkeypatch.setattr(reproduce, "code_version", lambda: "another")
    assert place(1) != first


def test_a_figure_within_the_tolerance_is_reproduced(mnist, monkeypatch, capsys):
    wide = dataclasses.replace(ROWS["burda2016-vae"], nll=550.0, tolerance=200.0)
    monkeypatch.setitem(ROWS, "burda2016-vae", wide)
    assert main(["burda2016-vae", *CHANGES]) == 0
    assert "published 550.00, tolerance 200: reproduced; train.epochs = 1" in capsys.readouterr().out


def test_the_published_draw_is_taken_where_it_is_there(mnist):
    write_amat(mnist / "data/BinarizedMNIST", 30, 5, 6)
    assert main(["pythae", *CHANGES]) == 0
    (kept,) = results(mnist / "runs/reproduce").values()
    assert kept["settings"]["data.name"] == "binarized_mnist"
    assert not any("draw" in note for note in kept["found"]["notes"])


@pytest.mark.parametrize(("name", "widths"), [("burda2016-iwae5", (200, 200)), ("pythae-vae", (400,))])
def test_the_networks_and_the_objective_are_the_published_ones(name, widths):
    config, notes = reproduce.configure(name, {}, "nowhere")
    assert config.model.hidden == widths
    assert notes == []
    assert config == Run().replace({**ROWS[name].settings, "data.dir": "nowhere"})
    if name != "pythae-vae":
        assert (config.model.latent, config.model.activation, config.train.batch_size) == (50, "tanh", 20)
        assert (config.objective.draws, config.objective.gradient) == (5, "plain")
