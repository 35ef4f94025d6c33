"""`python studies/sweep.py` as a user meets it: what it finds, what it keeps, what it refuses."""

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState
from PIL import Image

from tests import chaos
from tests.elsewhere import elsewhere as elsewhere
from vaebench.studies import report as report_command
from vaebench.studies import sweep as sweep_command
from vaebench.studies import train as train_command
from vaebench.studies.commands import report, sweep
from vaebench.studies.engine.driver import dry_run, progress
from vaebench.studies.engine.driver.tracker_sync import TrackerSync
from vaebench.studies.engine.launch.choose import LOCAL
from vaebench.studies.engine.report import page_data
from vaebench.studies.engine.report.finish import write_results
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.samplers import draw_first_points
from vaebench.studies.engine.search.states import RAISED
from vaebench.studies.engine.study.target import quick_nll
from vaebench.studies.engine.workers.outcome import Outcome
from vaebench.studies.engine.workers.trial import QUICK
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.provenance import provenance
from vaebench.studies.tracking.record import PARENT_TRIAL
from vaebench.vae import model as models
from vaebench.vae.config.run import LARGEST_SEED, Run
from vaebench.vae.errors import InputError
from vaebench.vae.training.fit import Result
from vaebench.vae.training.state import load_model

OUTSIDE = ("../evil", "/tmp/evil", "a/b", "..", ".", "", "x" * 101, "a\nb", "it's")
MIG = ("--target", "mig", "--dataset", "sprites", "--set", "data.size=50", "--set", "model.hidden=4")


def finish(folder, *arguments, timeout=300):
    process = chaos.start(folder, *arguments)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def plan_of(*arguments):
    return sweep.make_plan(sweep_command.parser().parse_args(arguments))


def refused(capsys, *arguments):
    """Return the one sentence that a command line is refused with."""
    assert sweep_command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sweep.py: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def assert_everything_names(trial, study, out):
    """The table, the command, the report, the study's own run and the registered model name this trial as the best."""
    assert f"(trial {trial.number})" in out
    assert re.search(r"^ +trial .*\n +(\d+) ", out, re.M)[1] == str(trial.number), "the first row of the table"
    settings = Run().flat() | dict(re.findall(r"--set (\S+?)=(\S+)", out.rpartition("the best again:")[2]))
    assert {name: float(settings[name]) for name in trial.params} == pytest.approx(trial.params)
    assert re.search(r"^\| trial .*\n.*\n\| (\d+) ", Path(f"runs/{study}/report.md").read_text(), re.M)[1] == str(
        trial.number
    )
    page = Path(f"runs/{study}/report.html").read_text()
    trials = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["trials"]
    assert trials["trial"][trials["group"].index("best")] == trial.number
    tracker = Tracker(f"sqlite:///{Path.cwd()}/mlflow.db", study)
    client = MlflowClient(tracker.uri)
    own = client.get_run(tracker.parent).data
    (target,) = (name.removeprefix("study/best_") for name in own.metrics if name.startswith("study/best_"))
    assert own.tags["best_trial"] == str(trial.number)
    assert own.metrics[target] == own.metrics[f"study/best_{target}"] == trial.value
    registered = client.get_model_version_by_alias(study, "champion")
    assert client.get_run(registered.run_id).data.tags["trial"] == str(trial.number)
    assert f"trial {trial.number} of " in registered.description


def test_a_study_is_continued_by_the_same_command_and_grows_with_more_trials(tmp_path):
    code, out, err = finish(tmp_path, "--trials", "4")
    assert (code, err) == (0, "")
    name = next(Path("runs").iterdir()).name
    assert f"study {name}: 0 of 4 trials done, 2 workers" in out
    assert f"python studies/sweep.py --join --study {name}" in out
    assert "mlflow ui" in out
    code, out, err = finish(tmp_path, "--trials", "6")
    assert (code, err) == (0, "")
    assert f"study {name}: 4 of 6 trials done" in out
    assert len(list(Path("runs").iterdir())) == 1
    trials, runs = chaos.aftermath(name, f"runs/{name}/study.journal", f"sqlite:///{tmp_path}/mlflow.db")
    assert len(trials) == 6
    assert chaos.mismatches(trials, runs) == []
    searched = {"objective.beta", "objective.alpha", "objective.lambda", "model.latent", "train.learning_rate"}
    logarithms = {f"log10_{name}" for name in searched - {"objective.alpha"}}
    for run in runs:
        assert set(run.params) == searched | logarithms | {"w_kl", "w_d"}
        assert {"valid/nll", "valid/elbo", "valid/rate", "latent/active_units", "perf/images_per_s"} <= set(run.metrics)
        assert {"weights_sha256", "code", "torch", "train.epochs", "model.hidden", "objective.name"} <= set(run.tags)
        assert not {"model.sigma", "model.components", "data.noise"} & set(run.tags), "what changes nothing in a trial"
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert_everything_names(min(done, key=lambda trial: trial.value), name, out)


def test_a_study_knows_its_data_and_not_where_they_are(tmp_path, capsys):
    """The same images elsewhere are the same study; others are another one, and cannot help with it."""
    for name, shade in (("here", 10), ("other", 11)):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("L", (8, 8), i * shade).save(tmp_path / name / f"{i}.png")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    settings = ("--dataset", "folder", "--set", "data.side=8", "--tracking-uri", "none", "--data-dir")
    here, there, other = (plan_of(*settings, name) for name in ("here", "there", "other"))
    assert here.name == there.name != other.name
    assert here.identity() == there.identity()
    assert {part for part, value in here.identity().items() if other.identity()[part] != value} == {"data"}
    sweep.open_job(here, "python studies/sweep.py")
    queue.create_study(here)
    queue.create_study(there)
    with pytest.raises(InputError, match=f"study {here.name} was started with other data, and its trials"):
        queue.create_study(dataclasses.replace(other, name=here.name, storage=here.storage))
    shutil.rmtree("here")
    options = sweep_command.parser().parse_args(["--join", "--study", here.name, "--data-dir", "there"])
    helper = sweep.load_plan(options, LOCAL)
    assert sweep.open_job(helper, "python studies/sweep.py").raw.digest == here.data
    (tmp_path / "there" / "x.png").touch()
    assert sweep_command.main([*settings, "there", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "1 of 11 images in there cannot be read and are left out: x.png (not an image).\n"
    assert "sampler tpe" in captured.out
    assert "cannot read the folder there/nowhere" in refused(capsys, *settings, "there/nowhere")
    message = refused(capsys, "--join", "--study", here.name, "--data-dir", "other")
    assert "is on other data than those in other; give their folder with --data-dir." in message


@pytest.mark.slow
def test_seeds_are_averaged_and_their_spread_is_kept(tmp_path):
    code, out, err = finish(tmp_path, "--study", "seeds", "--trials", "2", "--seeds", "3")
    assert (code, err) == (0, ""), out
    assert "each setting is trained with 3 seeds; figures are means over them, with their spread" in out
    assert "nll_seed_sd" in out
    assert "valid/nll_seed_sd" in Path("runs/seeds/report.md").read_text()
    trials, runs = chaos.aftermath("seeds", "runs/seeds/study.journal", f"sqlite:///{tmp_path}/mlflow.db")
    for trial, run in zip(trials, runs, strict=True):
        assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
        assert trial.value == run.metrics["valid/nll"]
        assert 0 < run.metrics["valid/nll_seed_sd"] < trial.value
        means = chaos.metric_history(f"sqlite:///{tmp_path}/mlflow.db", run.id, "latent/mi")
        assert len(means) == 1, "the end of the study measures the best seed, and leaves the mean"
        assert "test/nll" in run.metrics


@pytest.mark.slow
def test_rate_and_distortion_are_two_targets_without_a_pruner(tmp_path):
    code, out, err = finish(tmp_path, "--study", "front", "--trials", "3", "--target", "rate-distortion")
    assert (code, err) == (0, ""), out
    assert "target rate-distortion has no pruner: every trial runs to its end" in out
    trials, runs = chaos.aftermath("front", "runs/front/study.journal", f"sqlite:///{tmp_path}/mlflow.db")
    for trial, run in zip(trials, runs, strict=True):
        assert trial.values == [run.metrics["valid/distortion"], run.metrics["valid/rate"]]


@pytest.mark.slow
def test_disentanglement_is_a_target_of_data_with_factors(tmp_path):
    sprites = ("--dataset", "sprites", "--set", "data.size=300", "--set", "model.likelihood=bernoulli")
    code, out, err = finish(tmp_path, "--study", "mig", "--trials", "3", "--target", "mig", "--space", "beta", *sprites)
    assert (code, err) == (0, ""), out
    assert "target mig has no pruner: every trial runs to its end" in out
    trials, runs = chaos.aftermath("mig", "runs/mig/study.journal", f"sqlite:///{tmp_path}/mlflow.db")
    for trial, run in zip(trials, runs, strict=True):
        assert trial.values == [run.metrics["latent/mig"]]
        assert 0 <= run.metrics["latent/mig"] < run.metrics["latent/mig_ceiling"]
        assert "valid/nll_quick" not in run.metrics
    best = max(trials, key=lambda trial: trial.value)
    assert f"Best latent/mig: {best.value:.3f}" in out
    assert_everything_names(best, "mig", out)
    for picture in ("latent.png", "traversal.png"):
        assert len(list(Path("runs/mig/trials").glob(f"*/{picture}"))) == 3


@pytest.mark.slow
def test_a_grid_is_run_point_by_point(tmp_path):
    arguments = ("--study", "grid", "--trials", "4", "--space", "beta", "--sampler", "grid", "--pruner", "none")
    code, out, err = finish(tmp_path, *arguments)
    assert (code, err) == (0, ""), out
    trials = chaos.trials_of("grid", "runs/grid/study.journal")
    points = {(trial.params["model.latent"], trial.params["objective.beta"]) for trial in trials}
    assert points == {(2, 0.1), (2, 10.0), (32, 0.1), (32, 10.0)}
    assert len(trials) == 4


@pytest.mark.slow
def test_a_setting_that_cannot_be_trained_is_a_result_and_the_study_goes_on(tmp_path):
    Path("wild.toml").write_text(
        "[train]\nlearning_rate = { choices = [0.001, 1e30] }\nclip_norm = 1e30\n[model]\nlatent = 4\n"
    )
    code, out, err = finish(tmp_path, "--study", "wild", "--trials", "4", "--space", "wild.toml", "--sampler", "grid")
    assert (code, err) == (0, ""), out
    trials, runs = chaos.aftermath("wild", "runs/wild/study.journal", f"sqlite:///{tmp_path}/mlflow.db")
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert [trial.params["train.learning_rate"] for trial in failed] == [1e30]
    assert "training diverged in epoch 1" in failed[0].user_attrs["raised"]
    assert chaos.mismatches(trials, runs) == []
    assert "training diverged" in Path("runs/wild/report.html").read_text()


@pytest.mark.slow
def test_the_printed_command_trains_the_very_same_weights(tmp_path):
    code, out, err = finish(tmp_path, "--study", "again", "--trials", "1", "--pruner", "none")
    assert (code, err) == (0, "")
    line = out.split("the best again:")[1].split()
    assert line[:2] == ["python", "studies/train.py"]
    assert train_command.main([*line[2:], "--folder", "again", "--tracking-uri", "none"]) == 0
    ours, _ = load_model(tmp_path / "runs/again/trials/0/checkpoint.safetensors")
    theirs, _ = load_model(tmp_path / "again" / "checkpoint.safetensors")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.slow
def test_a_model_of_ones_own_is_swept_reported_trained_again_and_known_by_its_source(tmp_path, capsys):
    source = (
        "from torch import nn\n\ndef build(config, shape):\n    K = config.latent\n"
        "    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 2 * K))\n"
        "    decoder = nn.Sequential(nn.Linear(K, 12), nn.Tanh(), nn.Linear(12, 128), nn.Unflatten(1, (2, 8, 8)))\n"
        "    return encoder, decoder\n"
    )
    Path("mine.py").write_text(source)
    arguments = ("--study", "own", "--trials", "2", "--model", "mine.py:build", "--space", "beta", "--pruner", "none")
    code, out, err = finish(tmp_path, *arguments)
    assert (code, err) == (0, "")
    trials, runs = chaos.aftermath("own", "runs/own/study.journal", f"sqlite:///{tmp_path}/mlflow.db")
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert {run.tags["model.source_sha256"] for run in runs} == {models.digest_source("mine.py:build")}
    line = out.split("the best again:")[1].split()
    assert "model.build=mine.py:build" in line
    assert train_command.main([*line[2:], "--folder", "again", "--tracking-uri", "none"]) == 0
    best = min(trials, key=lambda trial: trial.value)
    ours, _ = load_model(tmp_path / f"runs/own/trials/{best.number}/checkpoint.safetensors")
    theirs, _ = load_model(tmp_path / "again" / "checkpoint.safetensors")
    assert {tuple(tensor.shape) for tensor in ours.encoder.state_dict().values()} >= {(12, 64), (12,)}
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert report_command.main(["own"]) == 0
    capsys.readouterr()
    Path("mine.py").write_text(source.replace("Tanh", "ReLU"))
    assert "study own was started with another model, and its trials" in refused(capsys, *chaos.SHORT, *arguments)
    assert "with another model" in refused(capsys, "--join", "--study", "own")


def test_a_dry_run_shows_the_plan_and_leaves_nothing(capsys, tmp_path):
    assert sweep_command.main([*chaos.SHORT, "--dry-run", "--trials", "7"]) == 0
    out = capsys.readouterr().out
    assert "7 trials of 6 epochs, 2 workers" in out
    assert "objective.lambda     1 to 1000, numbers, log" in out
    assert out.count("model.latent ") == 1 + 5
    assert "s on this machine" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_space_that_varies_the_epochs_alone(capsys):
    Path("epochs.toml").write_text("[train]\nepochs = { low = 4, high = 9 }\n")
    assert sweep_command.main(["--space", "epochs.toml", "--dry-run", "--trials", "3"]) == 0
    out = capsys.readouterr().out
    assert "3 trials, 2 workers" in out
    assert "4 to 9, integers" in out


def test_the_line_of_a_worker_tells_the_epochs_of_its_own_trial():
    message = {"trial": 17, "epoch": 24, "epochs": 60, "valid/elbo": -91.2, QUICK: 89.951, "valid/rate": 3.0}
    assert progress.describe_worker(message) == "trial 17: epoch 24/60, elbo -91.20, nll 89.95"


def test_the_time_that_a_dry_run_tells_includes_what_the_pruner_is_told(monkeypatch):
    """A clock that only the quick figure moves, by seven seconds: ten reports a trial."""
    plan, clock, asked = plan_of("--set", "train.epochs=60", "--set", "train.device=cpu"), [0.0], []

    def quick(model, split, config):
        asked.append(len(split))
        clock[0] += 7.0
        return 0.0

    monkeypatch.setattr(dry_run, "quick_nll", quick)
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    raw = sweep.load_raw(plan.base)
    point = draw_first_points(plan)[0]
    outcome = Outcome(TrialState.COMPLETE, best=Result(plan.config(point), None, raw, [], 0))
    assert dry_run.measure_reports(plan, outcome, 60) == 70
    assert asked == [len(raw.valid)]
    assert dry_run.measure_reports(plan_of("--target", "rate-distortion"), outcome, 60) == 0
    assert dry_run.measure_reports(dataclasses.replace(plan, seeds=2), outcome, 60) == 140
    share = 0.5 * plan.trials / plan.workers
    assert dry_run.estimate_seconds(plan, point, raw) == pytest.approx(share * 70)


def test_what_the_pruner_is_told_has_a_bounded_price(monkeypatch):
    plan, spent = plan_of("--set", "train.device=cpu"), []
    raw = sweep.load_raw(plan.base)
    model = models.build(plan.base.model, raw.shape, raw.levels)
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: spent.append(z.shape[0] * z.shape[1]) or decode(z), raising=False)
    quick_nll(model, raw.train, plan.base)
    widths, examples = 4, 64
    assert sum(spent) == (32 + widths * 3) * examples
    spent.clear()
    quick_nll(model, raw.train, plan.base.replace({"eval.examples": 20}))
    assert sum(spent) == (32 + widths * 3) * 20


def test_two_commands_of_one_meaning_have_one_name_and_others_another():
    name = plan_of().name
    assert plan_of("--trials", "60", "--workers", "1", "--sampler", "random").name == name
    assert plan_of("--set", "train.epochs=7").name != name
    assert plan_of("--space", "beta").name.startswith("digits-beta-nll-")
    Path("mein größter (1).toml").write_text("[model]\nlatent = { low = 2, high = 3 }\n")
    assert plan_of("--space", "mein größter (1).toml").name.startswith("digits-mein-gr-ter-1--nll-")


def test_printed_commands_begin_as_the_process_was_started(monkeypatch):
    plan = plan_of("--study", "mine")
    assert sweep.join_command(plan) == "python studies/sweep.py --join --study mine"
    assert provenance(sweep.join_command(plan))["mlflow.source.name"] == "studies/sweep.py"
    monkeypatch.setattr(sys, "argv", ["vaebench sweep", "--study", "mine"])
    assert sweep.join_command(plan) == "vaebench sweep --join --study mine"
    assert provenance(sweep.join_command(plan))["mlflow.source.name"] == "vaebench sweep"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "--trials must be at least 1, got 0."),
        (["--workers", "0"], "--workers must be at least 1, got 0."),
        (["--space", "ful"], "there is no space 'ful'; choose from full, infovae, beta, latent"),
        (["--space", "low.toml"], "alpha + lambda - 1 >= 0"),
        (["--dataset", "imagenet"], "there is no data set 'imagenet'"),
        (["--target", "mig"], "target mig needs factors of variation, which the data set digits does not give"),
        ([*MIG, "--set", "eval.labels=none"], "target mig needs eval.labels = fast or all, got none."),
        (
            [*MIG, "--set", "model.kind=coupling"],
            "needs codes, which model.kind = coupling does not have; use --target",
        ),
        ([*MIG, "--space", "kinds.toml"], "needs codes, which model.kind = coupling does not have; use --target nll."),
        (["--set", "train.epocs=3"], "did you mean train.epochs?"),
        (["--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/none"], "cannot reach the storage"),
        (["--storage", "sqlite:///study.db"], "runs queued trials twice"),
        (["--storage", "postgresql+nothing://127.0.0.1/none"], "cannot reach the storage"),
        (["--tracking-uri", "somewhere"], "--tracking-uri takes http://HOST:PORT"),
        (
            ["--tracking-uri", "htp://foo"],
            "--tracking-uri takes http://HOST:PORT or the URL of a database (postgresql, ",
        ),
        (["--tracking-uri", "http://foo:99999"], "with a port below 65536; got 'http://foo:99999'."),
        (
            ["--space", "list.toml"],
            "model.latent takes one value, { low, high }, or { choices = [2, 4, 8] }; got [2, 4, 8]",
        ),
        (["--set", "model.latent=100000000"], "a model of 7.7e+10 parameters needs at least 1,232 GB to be trained"),
        (["--replay", "--study", "nobody"], "there is no study 'nobody' in runs."),
        *((["--study", name], f"it names a folder in runs; got {name!r}.") for name in OUTSIDE),
        *((["--join", "--study", name], f"it names a folder in runs; got {name!r}.") for name in OUTSIDE),
        *((["--replay", "--study", name], f"it names a folder in runs; got {name!r}.") for name in OUTSIDE),
        (["--gpus-per-worker", "0.5"], "--address and --gpus-per-worker need --engine ray."),
        (["--model", "mine"], "model.build must be FILE.py:FUNCTION, or none, got 'mine'"),
        (["--model", "mine.py:build"], "sweep.py: cannot read the model's file mine.py: No such file or directory."),
        (["--join"], "--join needs --study NAME"),
        (["--join", "--study", "nobody"], "there is no study 'nobody'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, arguments, message):
    Path("list.toml").write_text("[model]\nlatent = [2, 4, 8]\nhidden = [16, 8]\n")
    Path("kinds.toml").write_text('[model]\nkind = { choices = ["vae", "coupling"] }\n')
    Path("low.toml").write_text("[objective]\nalpha = { low = 0.0, high = 1.0 }\nlambda = { low = 0.5, high = 2.0 }\n")
    said = refused(capsys, *arguments)
    assert message in said
    assert "secret" not in said
    if "names a folder" in message or "nobody" in arguments:
        assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        (["--space", "beta"], "another space and other settings (objective.alpha = 0.0, not in 0 to 1, numbers; "),
        (["--set", "train.epochs=7"], "other settings (train.epochs = 7, not 50), and"),
        (["--seeds", "2"], "other settings (--seeds = 2, not 1), and"),
        (["--target", "rate-distortion"], "other settings (--target = rate-distortion, not nll), and"),
        (
            ["--set", "model.latent=4"],
            "another space and other settings (model.latent = 4, not in 2 to 32, integers, log), and",
        ),
    ],
)
def test_a_study_of_another_search_under_the_same_name_is_refused(capsys, arguments, differs):
    plan = plan_of("--study", "mine")
    queue.create_study(plan)
    kept = Path(plan.storage).read_bytes()
    assert f"study mine was started with {differs}" in refused(capsys, "--study", "mine", *arguments)
    assert Path(plan.storage).read_bytes() == kept


@pytest.mark.slow
def test_a_study_without_a_tracker_has_the_same_figures_and_warnings(tmp_path):
    collapsed = ("--space", "full", "--set", "objective.beta=200", "--set", "train.warmup_epochs=0")
    few = ("--trials", "3", "--pruner", "none", "--workers", "2", *collapsed)
    for name, more in (("tracked", ()), ("untracked", ("--tracking-uri", "none"))):
        code, out, err = finish(tmp_path, "--study", name, *few, *more)
        assert (code, err) == (0, "")
        assert "posterior collapse: trials 0, 1, 2 ended without an active unit" in out
        assert "its log p(x) minus the estimate is" in out
    tables = [pd.read_csv(f"runs/{name}/trials.csv") for name in ("tracked", "untracked")]
    left_out = {"run", "start", "seconds", *(name for name in tables[0] if name.startswith(("perf/", "system/")))}
    assert set(tables[0]) == set(tables[1])
    for name in set(tables[0]) - left_out:
        pd.testing.assert_series_equal(*(table[name] for table in tables), rtol=1e-4)
    study = report.read("untracked")
    assert {"Machine", "Versions", "Command"} <= set(dict(page_data.list_facts(study)))


def test_the_command_to_join_names_a_journal_that_lies_elsewhere():
    assert sweep.join_command(plan_of("--study", "mine")) == "python studies/sweep.py --join --study mine"
    elsewhere = plan_of("--study", "mine", "--storage", "some place.journal")
    assert sweep.join_command(elsewhere).endswith("--join --study mine --storage 'some place.journal'")


def test_a_grid_that_has_more_points_than_trials_is_refused_unless_it_is_there(capsys):
    plan = plan_of("--study", "there", "--sampler", "grid", "--trials", "32")
    queue.create_study(plan)
    plan.save()
    assert plan_of("--study", "there", "--sampler", "grid", "--trials", "4").trials == 4
    said = refused(capsys, "--sampler", "grid", "--trials", "20")
    assert (
        "the coarsest grid of space full has 32 points; give --trials 32 or more, or hold settings with --set." in said
    )


def test_a_study_without_a_trial_that_ended_has_no_report(capsys):
    plan = plan_of("--study", "mine")
    search = queue.create_study(plan)
    plan.save()
    assert report_command.main(["mine"]) == 2
    assert "no trial of study mine has a result to report: none has ended yet." in capsys.readouterr().err
    trial = search.study.ask()
    plan.space.suggest(trial)
    trial.set_user_attr(RAISED, "RuntimeError: no room.")
    search.study.tell(trial, state=TrialState.FAIL)
    assert report_command.main(["mine"]) == 2
    assert "to report: all failed, the first by: RuntimeError: no room.\n" in capsys.readouterr().err


def test_a_study_whose_tracker_is_down_at_its_end_leaves_its_own_run_for_a_replay():
    plan = plan_of("--study", "mine", "--tracking-uri", "http://127.0.0.1:1", "--trials", "1")
    search, job = queue.create_study(plan), sweep.open_job(plan, "python studies/sweep.py")
    search.top_up()
    trial = search.claim("me")
    plan.space.suggest(trial)
    search.study.tell(trial, 90.0)
    assert "python studies/sweep.py --replay" in write_results(job, search, TrackerSync(job))
    waiting = {record.trial: record for record in job.outbox.take()}
    assert (waiting[PARENT_TRIAL].status, waiting[PARENT_TRIAL].tags["best_trial"]) == ("FINISHED", "0")
    assert "study/finished" in [name for name, *_ in waiting[PARENT_TRIAL].metrics]


@pytest.mark.parametrize("setting", ["train.learning_rate=1e30", "objective.lambda=1e30"])
def test_a_dry_run_of_a_setting_that_diverges_is_one_sentence(capsys, setting):
    assert "training diverged in epoch 1" in refused(capsys, "--dry-run", "--set", setting, "--trials", "2")


def test_a_dry_run_takes_the_largest_seed(capsys):
    seed = f"train.seed={LARGEST_SEED}"
    assert sweep_command.main([*chaos.SHORT, "--dry-run", "--set", seed, "--trials", "2"]) == 0


def test_a_study_of_other_code_is_refused(capsys, monkeypatch):
    queue.create_study(plan_of("--study", "mine"))
    monkeypatch.setattr("vaebench.studies.engine.study.plan.code_version", lambda: "another")
    assert "study mine was started with other code" in refused(capsys, "--study", "mine")


def test_a_damaged_journal_line_is_named_and_the_file_left_alone(capsys):
    plan = plan_of("--study", "mine")
    search = queue.create_study(plan)
    search.top_up()
    lines = Path(plan.storage).read_text().splitlines(keepends=True)
    Path(plan.storage).write_text("".join([*lines[:5], "#!?\n", *lines[5:]]))
    kept = Path(plan.storage).read_bytes()
    said = refused(capsys, "--study", "mine")
    assert "line 6 of the journal runs/mine/study.journal is damaged" in said
    assert Path(plan.storage).read_bytes() == kept


def test_a_line_torn_by_a_kill_loses_nothing_and_swallows_nothing():
    plan = plan_of("--study", "mine")
    search = queue.create_study(plan)
    search.top_up()
    with Path(plan.storage).open("a") as journal:
        journal.write('{"op_code":4,"worker_id":"torn')
    assert queue.connect(plan).counts().waiting == plan.trials
    search.study.enqueue_trial({})
    assert len(queue.connect(plan).study.trials) == plan.trials + 1
    for line in Path(plan.storage).read_text().splitlines():
        json.loads(line)


def test_a_dead_writers_lock_is_taken_from_it():
    plan = plan_of("--study", "mine")
    search = queue.create_study(plan)
    target, lock = Path(plan.storage).resolve(), Path(f"{plan.storage}.lock")
    lock.symlink_to(target)
    os.utime(target, (0, 0))
    search.top_up()
    assert search.counts().waiting == plan.trials


@pytest.mark.slow
def test_a_read_only_folder_is_named(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    as_others = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    command = [*as_others, sys.executable, str(chaos.ROOT / "studies" / "sweep.py"), "--study", "mine"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    folder.chmod(stat.S_IRWXU)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "cannot write to runs/mine" in done.stderr


def can_mount():
    asked = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return asked.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare") or not can_mount(), reason="needs a kernel that lets users mount tmpfs")
def test_a_full_disk_stops_the_study_with_a_sentence_and_keeps_what_was_finished(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    sweeps = f"{sys.executable} {chaos.ROOT / 'studies' / 'sweep.py'} {' '.join(chaos.SHORT)} --study full --trials 30"
    script = (
        f"mount -t tmpfs -o size=3m none {small} && cd {small} && {sweeps}; code=$?; "
        f"cp -r runs/full/study.journal {tmp_path}/journal; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
    trials = chaos.trials_of("full", str(tmp_path / "journal"))
    assert any(trial.state.name == "COMPLETE" and trial.values for trial in trials)
