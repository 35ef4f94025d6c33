"""Training, evaluation and loading of the reference VAEs, and what tracking costs a sweep."""

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vaebench.bench.cases import feeding, training_step
from vaebench.bench.cases.training_step import DIGITS, Steps
from vaebench.bench.timing.harness import Contest
from vaebench.bench.timing.ratios import FEWEST
from vaebench.vae import data
from vaebench.vae import model as models
from vaebench.vae.ensemble.fit_many import fit_many
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.training.fit import fit

ROOT = Path(__file__).parent.parent
MANY = {"elbo": {}, "mmd": {"objective.alpha": 0.5, "objective.lambda": 10.0}}
MOST_ANONYMOUS_MB = 900
SWEEP = ("--trials", "2", "--workers", "1", "--set", "train.epochs=2", "--set", "eval.samples=10")


@pytest.mark.parametrize("backend", training_step.ORDER)
@pytest.mark.parametrize("name", ["digits-mlp", pytest.param("32x32-conv", marks=pytest.mark.session)])
def bench_training_step(interleaved, device, timer, name, backend):
    """One step at batch 64, with each backend of the latent head."""
    if backend not in training_step.able(device):
        pytest.skip(f"{backend}: not worth timing, or not to be had, on {device.type}")

    def prepare():
        started = Steps.start(name, device)
        for other in training_step.able(device):
            started.require_agreement(other)
        return Contest({one: started.with_backend(one) for one in training_step.able(device)}, require_finite)

    interleaved(f"training step {name}", backend, prepare, timer=timer)


@pytest.mark.session
@pytest.mark.parametrize("provider", ["bare loop", "fit"])
def bench_training(interleaved, provider):
    """Ten epochs of the digits at batch 64 on the CPU; `fit` also validates, and checks that all is finite."""
    config, splits = DIGITS.replace({"train.device": "cpu"}), data.load(DIGITS.data)
    providers = {
        "bare loop": lambda: bare_loop(splits, config),
        "fit": lambda: fit(config, data=splits).history[-1]["train/elbo"],
    }

    def prepare():
        learnt = sum(work() for work in providers.values()) / len(providers)
        return Contest(providers, partial(require_near, learnt))

    interleaved("training digits-mlp", provider, prepare)


@pytest.mark.session
@pytest.mark.parametrize("objective", MANY.keys())
@pytest.mark.parametrize("provider", ["one after another", "fit_many"])
def bench_many_models(interleaved, provider, objective):
    """Sixteen models of the digits for an epoch, each with its own beta and seed; the ratio is that of models/s."""
    base, splits = DIGITS.replace({"train.device": "cpu", "train.epochs": 1} | MANY[objective]), data.load(DIGITS.data)
    configs = [base.replace({"objective.beta": 1 + i / 8, "train.seed": i}) for i in range(16)]
    providers = {
        "one after another": lambda: [fit(config, data=splits) for config in configs],
        "fit_many": lambda: fit_many(configs, data=splits),
    }

    def prepare():
        return Contest(providers, partial(require_same_ends, [fit(config, data=splits) for config in configs]))

    interleaved(f"training 16 digits-mlp, {objective}", provider, prepare, rounds=7)


@pytest.mark.session
def bench_evaluation(interleaved):
    """Every metric of a trained model: 100 importance samples for 64 test images."""
    config = DIGITS.replace({"train.device": "cpu", "train.epochs": 1, "eval.samples": 100, "eval.examples": 64})

    def prepare():
        result = fit(config)
        return Contest({"measure": partial(measure, result.model, result.splits, config)}, check)

    def check(metrics):
        assert metrics["test/nll"] <= -metrics["test/elbo"] + 5, "the bound is above log p(x)"

    interleaved("evaluation digits-mlp", "measure", prepare)


@pytest.mark.parametrize("provider", ["DataLoader", "index select"])
def bench_loading(interleaved, provider):
    """One epoch of the digits in random batches of 64, as floats."""
    stored = data.load(DIGITS.data).train
    loader = DataLoader(TensorDataset(stored.stored), batch_size=64, shuffle=True)

    def selected():
        return sum(stored.batch(index).sum() for index in torch.randperm(len(stored)).split(64))

    def check(total):
        torch.testing.assert_close(total, stored.stored.float().sum() / stored.top)

    providers = {"DataLoader": lambda: sum((x.float() / stored.top).sum() for (x,) in loader), "index select": selected}
    interleaved("loading digits", provider, lambda: Contest(providers, check))


@pytest.mark.full
@pytest.mark.parametrize("provider", feeding.WAYS)
def bench_feeding(interleaved, large_files, provider):
    """One epoch of `fit` on 1 GB of 64x64 colour images, each in a process of its own, whose own clock counts."""
    contest = Contest(
        {way: Feeding(large_files, way) for way in feeding.WAYS}, require_fed, lambda name, work: work.found
    )
    interleaved("feeding 1 GB", provider, lambda: contest, timer=epoch_seconds, rounds=FEWEST)


@pytest.mark.full
@pytest.mark.parametrize("provider", ["untracked", "tracked"])
def bench_sweep(interleaved, tmp_path_factory, provider):
    """`python studies/sweep.py` with two short trials, from its start to its end, with and without MLflow."""
    for package in ("optuna", "mlflow"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the sweep needs {package}")
    folder = tmp_path_factory.mktemp("sweep")
    providers = {"untracked": partial(sweep, folder, "none"), "tracked": partial(sweep, folder, None)}
    interleaved("sweep of two trials", provider, lambda: Contest(providers, require_finished), rounds=FEWEST)


@pytest.fixture(scope="module")
def large_files():
    """A folder with 1 GB of images, for as long as they are needed, and how many they are."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder, feeding.write(Path(folder), 1)


class Feeding:
    """One training, in a process of its own, that leaves what it found."""

    def __init__(self, files, way):
        folder, self.images = files
        self.line, self.found = [sys.executable, str(ROOT / "bench/cases/feeding.py"), folder, way], {}

    def __call__(self):
        done = subprocess.run(self.line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.found = json.loads(done.stdout) | {"way": self.line[-1]}
        return self.found


def epoch_seconds(work, repeats):
    """Return the seconds of an epoch by the training's own clock: starting, reading and hashing are not counted."""
    return sum(work.images / work()["images_per_s"] for _ in range(repeats)) / repeats


def require_fed(found):
    """Require a finite bound and, of a mapped file, little memory."""
    assert math.isfinite(found["elbo"])
    assert found["way"] == "in memory" or found["rss_anon_mb"] < MOST_ANONYMOUS_MB, f"{found['rss_anon_mb']:.0f} MB"


def bare_loop(splits, config):
    """Train as a person would by hand: textbook reparameterisation and KL, clipping, Adam; return the last ELBO."""
    torch.manual_seed(config.train.seed)
    vae = models.build(config.model, splits.shape, splits.levels)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.train.learning_rate, fused=True)
    x_all = splits.train.stored
    for _ in range(config.train.epochs):
        losses = []
        for index in torch.randperm(len(x_all)).split(config.train.batch_size):
            x = x_all[index].float() / splits.train.top
            q = vae.encode(x)
            std = torch.exp(0.5 * q.logvar)
            z = q.mu + std * torch.randn_like(std)
            kl = -0.5 * torch.sum(1 + q.logvar - q.mu.pow(2) - q.logvar.exp(), dim=1)
            loss = (kl - vae.decode(z).log_prob(x)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), config.train.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
    return -torch.stack(losses).mean().item()


def sweep(folder, tracking):
    """Start the command in a folder of its own and return how it ended, and the folder."""
    fresh = Path(tempfile.mkdtemp(dir=folder))
    tracked = ["--tracking-uri", tracking] if tracking else []
    line = [sys.executable, str(ROOT / "studies/sweep.py"), *SWEEP, *tracked]
    return subprocess.run(line, cwd=fresh, capture_output=True, text=True), fresh


def require_near(expected, elbo):
    """Require that a training ended within a tenth of the expected ELBO."""
    assert abs(elbo / expected - 1) < 0.1, f"the last epoch has an ELBO of {elbo:.1f}, not {expected:.1f}"


def require_same_ends(expected, results):
    """Require that models ended the epoch where they do one after another."""
    for result, other in zip(results, expected, strict=True):
        one, two = (each.history[-1]["valid/elbo"] for each in (result, other))
        assert abs(one / two - 1) < 1e-4, f"seed {result.config.train.seed} ends at an ELBO of {one:.3f}, not {two:.3f}"


def require_finished(result):
    """Require that the study ended well and left its page."""
    done, folder = result
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("runs/*/*.html")), "the study left no page"


def require_finite(loss):
    """Require that a step left a finite loss."""
    assert torch.isfinite(loss), f"the loss is {loss.item()}"
