"""`python studies/train.py` as a user meets it: a table and pictures, or one sentence and exit code 2."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from tests import ROOT, chaos
from vaebench.studies import train as command
from vaebench.studies.commands import train as work
from vaebench.studies.tracking.training_run import TrainingRun, track_training
from vaebench.vae.config import run as configs
from vaebench.vae.config.run import Data, Run
from vaebench.vae.data import load

SHORT = [
    *("--set", "train.epochs=2", "--set", "model.hidden=16", "--set", "eval.examples=20", "--set", "train.device=cpu"),
    *("--tracking-uri", "none"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return command.main([*SHORT, *arguments])


def test_the_script_runs_from_the_root_and_leaves_a_whole_run(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "studies/train.py", "--dataset", "digits", "--latent", "3", "--beta", "4"),
            *(*SHORT, "--folder", str(tmp_path / "run")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits (1439 train, 179 valid, 179 test), mlp, latent 3, weight of KL 4, of D 0" in done.stdout
    for name in ("test/bits_per_dim", "test/elbo", "latent/active_units", "perf/images_per_s"):
        assert name in done.stdout
    folder = tmp_path / "run"
    for picture, height in (("reconstructions", 450), ("samples", 300), ("traversal", 60), ("curves", 300)):
        with Image.open(folder / f"{picture}.png") as image:
            assert image.size[0] >= 500
            assert image.size[1] >= height
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records[:2]] == [1, 2]
    assert all(0 <= record["latent/active_units"] <= 3 for record in records)
    assert "test/nll_stderr" in records[-1]
    config = configs.from_toml(folder / "config.toml")
    assert (config.model.latent, config.objective.beta, config.train.epochs) == (3, 4.0, 2)


def test_the_bound_of_an_importance_weighted_run_is_printed(capsys):
    assert run("--set", "objective.name=iwae") == 0
    assert "test/bound" in capsys.readouterr().out
    assert run() == 0
    assert "test/bound" not in capsys.readouterr().out


def test_the_printed_folder_is_found_again_by_the_same_command(capsys):
    assert run() == 0
    first = capsys.readouterr().out
    weights = next(Path("runs").glob("*/checkpoint.safetensors")).read_bytes()
    assert run() == 0
    assert capsys.readouterr().out.splitlines()[3:8] == first.splitlines()[3:8]
    assert len(list(Path("runs").iterdir())) == 1
    assert next(Path("runs").glob("*/checkpoint.safetensors")).read_bytes() == weights


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("--set", "model.kind=coupling"),
        ("--set", "model.posterior=iaf", "--set", "model.dropout=0.1", "--set", "objective.name=factor_vae"),
        ("--dataset", "linear", "--set", "data.size=100", "--set", "model.likelihood=gaussian"),
        ("--set", "data.binarise=static", "--set", "model.likelihood=bernoulli"),
        ("--set", "data.binarise=dynamic", "--set", "model.likelihood=bernoulli"),
        ("--dataset", "sprites", "--set", "data.size=100", "--set", "model.likelihood=bernoulli"),
    ],
)
def test_the_largest_seeds_train_and_measure(capsys, settings):
    seeds = [text for part in ("train", "eval", "data") for text in ("--set", f"{part}.seed={configs.LARGEST_SEED}")]
    assert run(*seeds, "--epochs", "1", *settings) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("part", ["train", "eval", "data"])
def test_a_seed_beyond_the_largest_is_one_sentence(capsys, part):
    assert run("--set", f"{part}.seed={configs.LARGEST_SEED + 1}") == 2
    said = capsys.readouterr().err
    assert f"{part}.seed must be <= " in said
    assert said.count("\n") == 1


def test_a_config_file_is_overridden_by_shortcuts_and_these_by_set(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nlatent = 5\n[objective]\nlambda = 9.0\n[train]\nseed = 4\n")
    options = command.parser().parse_args(
        ["--config", str(path), "--latent", "6", "--lambda", "7", "--set", "objective.lambda=8"]
    )
    config = work.read_config(options)
    assert (config.model.latent, config.objective.lambda_, config.train.seed) == (6, 8.0, 4)


def test_a_tree_of_images_is_trained_on_and_found_again_where_it_moved(capsys):
    """Colour pictures, bits per dimension, one line for what is left out; the run goes on wherever the images are."""
    shades = np.random.default_rng(0).integers(0, 256, (30, 1, 1, 3)).repeat(12, 1).repeat(9, 2).astype(np.uint8)
    Path("mine").mkdir()
    for i, shade in enumerate(shades):
        Image.fromarray(shade).save(f"mine/{i}.png")
    Path("mine/x.png").write_text("no image")
    arguments = ["--dataset", "folder", "--set", "data.side=8", "--set", "model.network=conv", "--latent", "2"]
    assert run(*arguments, "--data-dir", "mine") == 0
    first = capsys.readouterr()
    assert first.out.startswith("folder (24 train, 3 valid, 3 test), conv, latent 2, ")
    assert "test/bits_per_dim" in first.out
    (folder,) = Path("runs").iterdir()
    with Image.open(folder / "reconstructions.png") as picture:
        assert picture.mode == "RGB"
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10
    Path("mine").rename("yours")
    assert run(*arguments, "--data-dir", "yours") == 0
    assert capsys.readouterr().out.splitlines()[3:8] == first.out.splitlines()[3:8]
    assert list(Path("runs").iterdir()) == [folder]
    Path("yours/0.png").unlink()
    assert run(*arguments, "--data-dir", "yours") == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_a_set_is_fetched_before_it_is_loaded(monkeypatch):
    calls = []
    monkeypatch.setattr(work, "download", lambda config: calls.append(("download", config.dir)))
    monkeypatch.setattr(work, "load", lambda config: calls.append("load") or load(Data()))
    assert run("--download", "--data-dir", "there") == 0
    assert calls == [("download", "there"), "load"]


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ([], "weight of KL 1, of D 0"),
        (["lambda=3", "divergence=stein"], "weight of KL 1, of D (stein) 2"),
        (["alpha=1", "lambda=5", "beta=2", "divergence=sliced"], "weight of KL 0, of D (sliced) 10"),
        (["name=tc_vae", "w_tc=6"], "weight of MI 1, of TC 6, of the marginals 1"),
        (["name=factor_vae", "gamma=35", "beta=9"], "weight of KL 1, of TC by a critic 35"),
        (["name=capacity", "gamma=100", "capacity=5"], "weight of |KL - C| 100, C from 0 to 5 nats in 40 epochs"),
        (
            ["name=capacity", "capacity_epochs=200"],
            "weight of |KL - C| 30, C from 0 to 25 nats in 200 epochs, of which there are 150",
        ),
        (["name=capacity", "capacity_epochs=0"], "weight of |KL - C| 30, C 25 nats"),
    ],
)
def test_weights_are_those_of_the_family_in_use(settings, title):
    options = command.parser().parse_args([part for s in settings for part in ("--set", f"objective.{s}")])
    config = work.read_config(options)
    assert config.objective.describe(config.train.epochs) == title


def test_data_that_are_no_images_give_no_pictures(capsys):
    arguments = ["--dataset", "linear", "--set", "model.likelihood=gaussian", "--set", "data.size=200"]
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "bits_per_dim" not in out
    assert re.findall(r"\w+\.png", out) == ["curves.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagenet"], "there is no data set 'imagenet'; choose from digits, linear, sprites, mnist,"),
        (["--dataset", "cifar10"], "--dataset cifar10 --data-dir data --download."),
        (["--dataset", "mnist", "--data-dir", "far"], "there is no far/MNIST/raw/train-images-idx3-ubyte; say where"),
        (["--dataset", "fashion_mnist", "--data-dir", "harmed"], "train-images-idx3-ubyte is damaged, or not the file"),
        (["--dataset", "mnist", "--data-dir", "a_file"], "Not a directory; give the folder with --data-dir."),
        (["--download"], "can be fetched, got data.name = digits; leave out --download."),
        (["--dataset", "folder", "--data-dir", "empty"], "there is no image in empty; files end in one of .bmp"),
        (["--dataset", "folder", "--data-dir", "a_file"], "cannot read the folder a_file: Not a directory; give the "),
        (["--dataset", "folder", "--data-dir", "circle"], "cannot read the folder circle: Too many levels of symbolic"),
        (["--dataset", "folder"], "cannot read the folder data: No such file or directory; give the tree of images"),
        (["--dataset", "folder", "--set", "data.channels=2"], "data.channels must be one of 1, 3, got 2."),
        (["--beta", "-1"], "objective.beta must be >= 0, got -1.0: "),
        (["--alpha", "1.5"], "objective.alpha must be <= 1, got 1.5: "),
        (["--lambda", "0"], "alpha + lambda - 1 >= 0"),
        (["--latent", "0"], "model.latent must be >= 1, got 0: "),
        (["--set", "train.epocs=3"], "did you mean train.epochs?"),
        (["--config", "nowhere.toml"], "cannot read the config file nowhere.toml"),
        (["--folder", "a_file/run"], "cannot write to a_file/run (Not a directory); give another folder."),
        (["--set", "train.backend=triton"], "train.backend = triton cannot run here: "),
        (["--dataset", "linear"], "got continuous data: set model.likelihood = gaussian."),
        (["--set", "model.likelihood=bernoulli"], "got 17: set data.binarise to static or dynamic."),
        (["--set", "train.learning_rate=1e30", "--set", "train.clip_norm=1e30"], "training diverged in epoch"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, arguments, message):
    Path("a_file").touch()
    Path("empty").mkdir()
    Path("circle").symlink_to("circle")
    Path("harmed/FashionMNIST/raw").mkdir(parents=True)
    Path("harmed/FashionMNIST/raw/train-images-idx3-ubyte").write_bytes(b"harmed")
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train.py: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nlattent = 3\n", "there is no setting 'model.lattent'; did you mean model.latent?"),
        ("[model]\nlatent = 'many'\n", "model.latent must be int, got 'many'."),
    ],
)
def test_bad_files_too(capsys, text, message):
    Path("bad.toml").write_text(text)
    assert run("--config", "bad.toml") == 2
    assert message in capsys.readouterr().err


def test_nan_in_the_data_is_named(capsys, monkeypatch):
    from vaebench.vae.data import LOADERS, from_tensors

    x = torch.zeros(20, 4)
    x[3, 2] = float("nan")
    monkeypatch.setitem(LOADERS, "linear", lambda config: from_tensors(x, x, x, name="mine"))
    assert run("--dataset", "linear", "--set", "model.likelihood=gaussian") == 2
    assert "mine: split train holds 1 values that are not finite" in capsys.readouterr().err


def test_a_stopped_run_says_how_it_goes_on(capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(work, "fit", interrupted)
        assert run() == 130
    assert "Stopped before the first checkpoint" in capsys.readouterr().err
    assert run("--folder", "there") == 0
    monkeypatch.setattr(work, "evaluate", interrupted)
    assert run("--folder", "there") == 130
    assert "The same command goes on from the last checkpoint in there." in capsys.readouterr().err


def test_settings_are_listed(capsys):
    assert command.main(["--settings"]) == 0
    assert "objective.lambda" in capsys.readouterr().out


def test_a_training_is_a_run_in_mlflow_and_the_same_command_writes_into_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    tracked = SHORT[: SHORT.index("--tracking-uri")]
    for _ in range(2):
        assert command.main(tracked) == 0
        assert "; in MLflow: experiment training" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert (run.info.status, run.data.params["train.epochs"]) == ("FINISHED", "2")
    assert {"test/nll", "latent/active_units", "system/cpu_percent", "train/objective"} <= set(run.data.metrics)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/objective")] == [1, 2]
    assert "| latent/mmd2 |" in run.data.tags["mlflow.note.content"]
    assert {"config.toml", "samples.png"} <= {file.path for file in client.list_artifacts(run.info.run_id)}

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "fit", stop)
    assert command.main([*tracked, "--latent", "3"]) == 130
    states = {one.info.status for one in client.search_runs([run.info.experiment_id])}
    assert states == {"FINISHED", "KILLED"}


def test_the_curves_of_a_run_are_whole_though_earlier_starts_did_not_write_all_epochs(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    arguments = ["--set", "train.epochs=3", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    right = TrainingRun.log

    def log(self, epoch, metrics):
        if epoch == 3:
            raise KeyboardInterrupt
        if epoch == 1:
            right(self, epoch, metrics)

    monkeypatch.setattr(TrainingRun, "log", log)  # epoch 2 was not written when the process was killed in epoch 3
    assert run(*arguments) == 130
    monkeypatch.setattr(TrainingRun, "log", right)
    assert run(*arguments) == run(*arguments) == 0
    client = MlflowClient(arguments[-1])
    (kept,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    curve = client.get_metric_history(kept.info.run_id, "valid/elbo")
    (file,) = tmp_path.glob("runs/*/metrics.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()[:3]]
    assert [(point.step, point.value) for point in sorted(curve, key=lambda point: point.step)] == [
        (record["epoch"], record["valid/elbo"]) for record in records
    ]
    units = client.get_metric_history(kept.info.run_id, "latent/active_units")
    assert {point.step for point in units} == {1, 2, 3}


def test_a_training_that_begins_anew_replaces_its_curve_and_the_final_figure_is_shown(tmp_path):
    """Its folder was deleted, and its figures are others: of two points at a step MLflow shows the later one."""
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    uri, run, splits = f"sqlite:///{tmp_path}/mlflow.db", Run(), load(Data())
    curves = [[-9.0, -8.0], [-9.0, -7.0]]
    for elbos in curves:
        history = [{"valid/elbo": elbo, "latent/active_units": 8.0} for elbo in elbos]
        with track_training(uri, run, splits, tmp_path / "mine", "python studies/train.py") as tracked:
            tracked.begin()
            tracked.log(1, history[0])
            tracked.finish({"latent/active_units": 3.0}, history, [])
    client = MlflowClient(uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    found = sorted(client.get_metric_history(kept.info.run_id, "valid/elbo"), key=lambda point: point.timestamp)
    assert [(point.step, point.value) for point in found] == [(2, -8.0), (1, -9.0), (2, -7.0)]
    assert kept.data.metrics == kept.data.metrics | {"valid/elbo": -7.0, "latent/active_units": 3.0}


def test_a_training_whose_tracker_did_not_answer_is_written_by_the_same_command(tmp_path, caplog):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    for uri in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}/mlflow.db"):
        assert run("--tracking-uri", uri) == 0
    client = MlflowClient(uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    for curve in ("train/objective", "valid/elbo"):
        assert [point.step for point in client.get_metric_history(kept.info.run_id, curve)] == [1, 2]
    assert kept.info.status == "FINISHED"


def test_a_damaged_checkpoint_is_told_once(caplog):
    assert run("--folder", "mine") == 0
    path = Path("mine/checkpoint.safetensors")
    path.with_name("checkpoint.previous.safetensors").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run("--folder", "mine") == 0
    assert caplog.text.count("Trying the previous one.") == 1


def test_a_refused_training_leaves_no_run_and_a_scheduler_ends_it_as_ctrl_c_does(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").write_bytes(chaos.empty_database())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert run("--folder", "mine") == 0
    for refused in (["--latent", "3"], ["--model", "nowhere.py:make"], ["--set", "model.network=conv"]):
        assert run("--folder", "mine", "--tracking-uri", uri, *refused) == 2
    client = MlflowClient(uri)
    assert client.get_experiment_by_name("training") is None
    before = signal.getsignal(signal.SIGTERM)
    right = TrainingRun.log

    def log(self, epoch, metrics):
        right(self, epoch, metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingRun, "log", log)
    assert run("--folder", "other", "--tracking-uri", uri) == 130
    assert "Stopped before the first checkpoint; the same command starts again." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    (kept,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert kept.info.status == "KILLED"


def test_a_tracker_that_cannot_be_reached_costs_a_training_one_sentence(capsys, caplog):
    assert run("--tracking-uri", "http://127.0.0.1:9") == 0
    assert "the results are written, and the same command tries again." in caplog.text
    assert "MLflow" not in capsys.readouterr().out
    assert run("--tracking-uri", "here") == 2
    assert "--tracking-uri takes http://HOST:PORT" in capsys.readouterr().err
