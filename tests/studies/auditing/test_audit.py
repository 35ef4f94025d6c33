"""`python studies/audit.py` as a user meets it, on linear Gaussian models in plain torch whose figures are known."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import ROOT, linear_vae
from tests.exact_models import generator
from vaebench.studies import audit as command
from vaebench.studies import train
from vaebench.studies.auditing import measure
from vaebench.studies.auditing.subject import load_subject
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.vae.model import own

FILE = ROOT / "tests" / "linear_vae.py"
FEW = ["--examples", "24", "--gap-examples", "8", "--simulated", "8", "--temperatures", "10", "--set", "eval.codes=300"]
NO_TRACKER = ["--tracking-uri", "none"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, _ = linear_vae.exact().ppca.sample(600, generator(0))
    np.save("x.npy", x.numpy())


def audit(model, *arguments, data="x.npy"):
    return command.main(["--model", f"{FILE}:{model}", "--data", data, *FEW, *NO_TRACKER, *arguments])


def read(folder="out"):
    return json.loads(Path(folder, "audit.json").read_text())


def test_a_sound_model_is_measured_and_nothing_is_found(capsys):
    assert audit("exact", "--folder", "out") == 0
    out, found = capsys.readouterr().out, read()
    assert "linear_vae-exact, 3 latents, p(x|z) Normal; x (480 train, 60 valid, 60 test)" in out
    assert "- Nothing that this audit looks for is wrong." in out
    assert found["findings"] == []
    x = torch.from_numpy(np.load("x.npy"))
    assert set(found["log_px"]) == set(measure.PER_EXAMPLE)
    log_px = linear_vae.exact().ppca.log_prob(x)
    nearest = (torch.tensor(found["log_px"]["value"])[:, None] - log_px).abs().min(1).values
    assert nearest.max() < 1e-3
    figures = found["figures"]
    assert figures["gap/amortisation"] == pytest.approx(0, abs=0.05)
    assert figures["gap/family"] == pytest.approx(0, abs=0.05)
    assert figures["latent/active_units"] == 3


def test_what_is_wrong_is_said(capsys):
    assert audit("narrow", "--folder", "out") == 0
    assert "- q is too narrow by 1.9x:" in capsys.readouterr().out
    known = linear_vae.narrow().amortisation_gap()
    assert read()["figures"]["gap/amortisation"] == pytest.approx(known, abs=0.1)
    assert audit("idle", "--folder", "out") == 0
    assert "- The posterior is collapsed in 5 of 8 latents" in capsys.readouterr().out
    page = Path("out/audit.html").read_text()
    assert "collapsed in 5 of 8 latents" in page
    assert "3 of 8" in page
    assert [row["active"] for row in read()["latents"]] == [True] * 3 + [False] * 5


def test_the_page_stands_alone_and_knows_light_and_dark():
    assert audit("exact", "--folder", "out") == 0
    page = Path("out/audit.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    for label in (
        "log p(x) of test data",
        "on simulated data",
        "log p(x) - ELBO",
        "active latents",
        "mutual information",
    ):
        assert label in page
    assert "audit.py --model" in page


def test_an_audit_that_was_stopped_goes_on(monkeypatch, capsys):
    calls = []

    def counted(name):
        original = getattr(measure, name)

        def call(*arguments, **options):
            calls.append(name)
            if name == "enclose" and "stop" in calls:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(measure, name, call)

    for name in ("model_log_likelihood", "measure", "measure_inference", "enclose"):
        counted(name)
    monkeypatch.setattr(measure, "BLOCK", 10)
    calls.append("stop")
    assert audit("exact", "--folder", "out") == 130
    assert "The same command goes on with what is in out." in capsys.readouterr().err
    assert calls == ["stop", *["model_log_likelihood"] * 3, "measure", "measure_inference", "enclose"]
    calls.clear()
    assert audit("exact", "--folder", "out") == 0
    assert calls == ["enclose"]
    calls.clear()
    first = read()
    assert audit("exact", "--folder", "out") == 0
    assert calls == []
    assert read() == first
    assert audit("narrow", "--folder", "out") == 0
    assert len(calls) == 6
    calls.clear()
    assert audit("narrow", "--folder", "out", "--simulated", "9") == 0
    assert calls == ["enclose"]


HIDDEN = """
from torch import nn
from torch.distributions import Independent, Normal
from train import weight

def make(sigma=0.5):
    decoder = nn.Linear(3, 6)
    nn.init.constant_(decoder.weight, weight)
    nn.init.zeros_(decoder.bias)

    class Hidden:
        def encode(self, x):
            return x[:, :3], x[:, :3] * 0

        def decode(self, z):
            return Independent(Normal(decoder(z), sigma), 1)

    return Hidden()

def other():
    return make(0.6)
"""


def test_a_model_is_known_by_what_it_does_and_imports_what_lies_beside_it(monkeypatch):
    """Its weights are in a closure, its sigma is a number, and the file beside it has a name of ours."""
    Path("hidden").mkdir()
    Path("hidden/mine.py").write_text(HIDDEN)
    digests = []
    for weight, function in ((1.0, "make"), (1.0, "make"), (1.1, "make"), (1.0, "other")):
        Path("hidden/train.py").write_text(f"weight = {weight}  # {len(digests)}\n")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "train", raising=False)
        own._load_function.cache_clear()
        before = list(sys.path)
        options = command.parser().parse_args(["--model", f"hidden/mine.py:{function}", "--data", "x.npy"])
        digests.append(load_subject(options).digest)
        assert sys.path == before
    monkeypatch.delitem(sys.modules, "train")
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_damaged_part_is_computed_again():
    assert audit("exact", "--folder", "out") == 0
    first = read()["figures"]
    Path("out/parts/latents.json").write_text("{")
    assert audit("exact", "--folder", "out") == 0
    assert read()["figures"] == first


def test_settings_of_data_that_the_model_never_saw_are_not_recorded():
    assert audit("exact", "--folder", "out") == 0
    settings = read()["settings"]
    assert {"model", "data", "data_sha256", "eval.examples"} <= set(settings)
    assert settings["data"] == "x"
    assert not [name for name in settings if name.startswith("data.")]


def test_the_same_audit_is_one_run_in_mlflow(tmp_path):
    tracked = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert audit("idle", *tracked) == 0
    assert audit("idle", *tracked) == 0
    tracker = Tracker(tracked[1], "audits")
    with_tag = [run for run in tracker._search("") if "audit" in run.data.tags]
    assert len(with_tag) == 1
    (run,) = with_tag
    assert run.data.metrics["latent/active_units"] == 3
    assert "collapsed in 5 of 8" in run.data.tags["findings"]
    assert run.data.params["eval.examples"] == "24"
    files = {file.path for file in tracker._client.list_artifacts(run.info.run_id)}
    assert {"audit.html", "audit.json"} <= files


def test_a_run_of_ours_is_audited_on_its_own_data_with_pictures(capsys):
    short = ["--set", "train.epochs=1", "--set", "model.hidden=8", "--latent", "2", "--folder", "mine"]
    assert train.main([*short, "--set", "eval.examples=20", "--set", "train.device=cpu", *NO_TRACKER]) == 0
    capsys.readouterr()
    assert command.main(["--model", "mine", *FEW, *NO_TRACKER, "--folder", "out"]) == 0
    assert "mine, 2 latents, p(x|z) discretised_logistic; digits (1439 train" in capsys.readouterr().out
    assert Path("out/audit.html").read_text().count("data:image/png;base64,") == 4
    assert "test/bits_per_dim" in read()["figures"]
    assert command.main(["--model", "mine", "--data", "x.npy", *FEW, *NO_TRACKER]) == 2
    assert "the likelihood is of data of shape (1, 8, 8), x has (6,)." in capsys.readouterr().err
    assert command.main(["--model", "mine", "--sigma", "1", *FEW, *NO_TRACKER]) == 2
    assert "p(x|z) of VAE has its own; leave --sigma out." in capsys.readouterr().err
    assert command.main(["--model", "mine", "--set", "data.seed=5", *FEW, *NO_TRACKER]) == 2
    assert "mine was trained on other data than digits; name the data of the audit" in capsys.readouterr().err


def test_a_run_of_ours_whose_images_have_moved_is_found_by_their_folder(capsys):
    Path("pictures").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)):
        Image.fromarray(image).save(f"pictures/{i}.png")
    data = ["--dataset", "folder", "--data-dir", "pictures", "--set", "data.side=8", "--set", "eval.examples=4"]
    short = ["--set", "train.epochs=1", "--set", "model.hidden=8", "--set", "train.device=cpu", "--folder", "mine"]
    assert train.main([*data, *short, *NO_TRACKER]) == 0
    Path("pictures").rename("moved here")
    assert command.main(["--model", "mine", *FEW, *NO_TRACKER]) == 2
    assert "with --data-dir" in capsys.readouterr().err
    subject = load_subject(command.parser().parse_args(["--model", "mine", "--data-dir", "moved here", *FEW]))
    assert len(subject.adapted.splits.train) == 32


@pytest.mark.slow
def test_the_script_runs_from_the_root(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "studies/audit.py", "--model", "tests/linear_vae.py:exact"),
            *("--data", str(tmp_path / "x.npy"), "--folder", str(tmp_path / "out"), *FEW, *NO_TRACKER),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "enclosure/upper" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model takes FILE.py:FUNCTION or the folder of a saved model; there is no folder"),
        (["--model", str(FILE)], "--model takes FILE.py:FUNCTION, where the function returns the model; got"),
        (["--model", "nowhere.py:make"], "nowhere.py: No such file or directory."),
        (["--model", f"{FILE}:nothing"], "linear_vae.py has no function nothing."),
        (["--model", f"{FILE}:MODEL"], "linear_vae.py has no function MODEL."),
        (["--model", f"{FILE}:broken"], "RuntimeError: no weights here."),
        (["--model", "wrong.py:make"], "wrong.py, line 2: SyntaxError"),
        (["--model", f"{FILE}:NoDecoder"], "NoDecoder has no decode."),
        (["--model", "empty"], "empty holds no model: there is neither a checkpoint of vaebench, nor"),
        (["--model", f"{FILE}:exact", "--data", "imagenet"], "an .npy or .npz file, or one of digits, linear, sprites"),
        (["--model", f"{FILE}:exact", "--data", "none.npy"], "cannot read none.npy: No such file or directory."),
        (["--model", f"{FILE}:exact", "--data", "digits"], "encode fails on a tensor (B, 1, 8, 8): "),
        (["--model", f"{FILE}:exact", "--data", "empty"], "there is no image in empty"),
        (["--model", f"{FILE}:exact", "--set", "model.latent=3"], "an audit changes settings of data and eval, and"),
        (["--model", f"{FILE}:exact", "--set", "eval.sample=3"], "did you mean eval.samples?"),
        (["--model", f"{FILE}:exact", "--folder", "a_file/out"], "cannot write to a_file/out (Not a directory)"),
        (["--model", f"{FILE}:exact", "--tracking-uri", "here"], "--tracking-uri takes http://HOST:PORT"),
    ],
)
def test_wrong_commands_are_one_sentence_and_exit_code_2(capsys, arguments, message):
    Path("wrong.py").write_text("x = 1\ndef make(:\n")
    Path("empty").mkdir()
    Path("a_file").touch()
    assert command.main(["--data", "x.npy", *FEW, *NO_TRACKER, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("audit.py: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_model_without_data_is_one_sentence(capsys):
    assert command.main(["--model", f"{FILE}:exact", *NO_TRACKER]) == 2
    assert "this model does not know its data: name them with --data." in capsys.readouterr().err
