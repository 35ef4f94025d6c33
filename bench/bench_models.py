"""Training, evaluation and data loading of the reference VAEs, and the cost of tracking a sweep."""

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vaebench.bench.cases import feeding, training_step
from vaebench.bench.cases.training_step import DIGITS, TrainingStep
from vaebench.bench.timing.harness import Call, Check, TimeInterleaved, Workload, pick_timer
from vaebench.bench.timing.ratios import MIN_ROUNDS
from vaebench.kernels import Backend
from vaebench.vae import data
from vaebench.vae import model as models
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits
from vaebench.vae.ensemble.fit_many import fit_many
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.training.fit import Result, fit

ROOT = Path(__file__).parent.parent
MODELS = 16
OBJECTIVES = {"elbo": {}, "mmd": {"objective.alpha": 0.5, "objective.lambda": 10.0}}
MOST_ANONYMOUS_MB = 900
SWEEP = ("--trials", "2", "--workers", "1", "--set", "train.epochs=2", "--set", "eval.examples=20")

SweepResult = tuple[subprocess.CompletedProcess[str], Path]


@pytest.mark.parametrize("backend", training_step.BACKENDS)
@pytest.mark.parametrize("name", ["digits-mlp", pytest.param("32x32-conv", marks=pytest.mark.session)])
def bench_training_step(time_interleaved: TimeInterleaved, device: torch.device, name: str, backend: Backend) -> None:
    """One step at batch 64, with each backend of the latent head."""
    backends = training_step.list_backends(device)
    if backend not in backends:
        pytest.skip(f"{backend}: not worth timing, or not to be had, on {device.type}")

    def prepare() -> Workload:
        step = TrainingStep.prepare(name, device)
        for other in backends:
            step.require_agreement(other)
        steps: dict[str, Call] = {one: step.with_backend(one) for one in backends}
        agreements: dict[str, Call] = {one: partial(step.require_agreement, one) for one in backends}

        def renew(provider: str) -> Check:
            step.take_other_batch()
            agreements[provider]()
            return require_finite

        return Workload(steps, require_finite, timer=pick_timer(device), renew=renew)

    time_interleaved(f"training step {name}", backend, prepare)


@pytest.mark.session
@pytest.mark.parametrize("provider", ["bare loop", "fit"])
def bench_training(time_interleaved: TimeInterleaved, provider: str) -> None:
    """Ten epochs of the digits at batch 64 on the CPU; `fit` also validates, and checks that all is finite."""
    config, splits = DIGITS.replace({"train.device": "cpu"}), data.load(DIGITS.data)
    providers: dict[str, Call] = {
        "bare loop": partial(train_bare_loop, splits, config),
        "fit": lambda: fit(config, data=splits).history[-1]["train/elbo"],
    }

    def prepare() -> Workload:
        elbo = sum(call() for call in providers.values()) / len(providers)
        return Workload(providers, partial(require_near, elbo))

    time_interleaved("training digits-mlp", provider, prepare)


@pytest.mark.session
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("provider", ["one after another", "fit_many"])
def bench_many_models(time_interleaved: TimeInterleaved, provider: str, objective: str) -> None:
    """Sixteen models of the digits for an epoch, each with its own beta and seed; the ratio is that of models/s."""
    changes = {"train.device": "cpu", "train.epochs": 1} | OBJECTIVES[objective]
    base, splits = DIGITS.replace(changes), data.load(DIGITS.data)
    configs = [base.replace({"objective.beta": 1 + i / 8, "train.seed": i}) for i in range(MODELS)]

    def fit_each() -> list[Result]:
        return [fit(config, data=splits) for config in configs]

    def prepare() -> Workload:
        providers: dict[str, Call] = {
            "one after another": fit_each,
            "fit_many": partial(fit_many, configs, data=splits),
        }
        return Workload(providers, partial(require_same_elbos, fit_each()), rounds=7)

    time_interleaved(f"training {MODELS} digits-mlp, {objective}", provider, prepare)


@pytest.mark.session
def bench_evaluation(time_interleaved: TimeInterleaved) -> None:
    """Every metric of a trained model: 100 importance samples for 64 test images."""
    config = DIGITS.replace({"train.device": "cpu", "train.epochs": 1, "eval.samples": 100, "eval.examples": 64})

    def check(metrics: dict[str, float]) -> None:
        assert metrics["test/nll"] <= -metrics["test/elbo"] + 5, "the bound is above log p(x)"

    def prepare() -> Workload:
        result = fit(config)
        return Workload({"measure": partial(measure, result.model, result.splits, config)}, check)

    time_interleaved("evaluation digits-mlp", "measure", prepare)


@pytest.mark.parametrize("provider", ["DataLoader", "index select"])
def bench_loading(time_interleaved: TimeInterleaved, provider: str) -> None:
    """One epoch of the digits in random batches of 64, as floats."""
    split = data.load(DIGITS.data).train
    loader = DataLoader(TensorDataset(split.stored), batch_size=64, shuffle=True)

    def check(total: Tensor) -> None:
        torch.testing.assert_close(total, split.stored.float().sum() / split.top)

    providers: dict[str, Call] = {
        "DataLoader": lambda: sum((x.float() / split.top).sum() for (x,) in loader),
        "index select": lambda: sum(split.batch(index).sum() for index in torch.randperm(len(split)).split(64)),
    }
    time_interleaved("loading digits", provider, lambda: Workload(providers, check))


@pytest.mark.full
@pytest.mark.parametrize("storage", feeding.STORAGES)
def bench_feeding(time_interleaved: TimeInterleaved, image_folder: tuple[str, int], storage: str) -> None:
    """One epoch of `fit` on 1 GB of 64x64 colour images, in a process of its own; its own clock gives the time."""
    folder, images = image_folder
    results: dict[str, dict[str, Any]] = {}

    def train(storage: str) -> dict[str, Any]:
        results[storage] = train_in_process(folder, storage)
        return results[storage]

    def read_epoch_seconds(call: Call, repeats: int) -> float:  # without the time for starting, reading and hashing
        return sum(images / call()["images_per_s"] for _ in range(repeats)) / repeats

    providers = {name: partial(train, name) for name in feeding.STORAGES}
    workload = Workload(providers, require_fed, lambda name, _: results[name], read_epoch_seconds, MIN_ROUNDS)
    time_interleaved("feeding 1 GB", storage, lambda: workload)


@pytest.mark.full
@pytest.mark.parametrize("provider", ["untracked", "tracked"])
def bench_sweep(time_interleaved: TimeInterleaved, tmp_path_factory: pytest.TempPathFactory, provider: str) -> None:
    """`python studies/sweep.py` with two short trials, from its start to its end, with and without MLflow."""
    for package in ("optuna", "mlflow"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the sweep needs {package}")
    folder = tmp_path_factory.mktemp("sweep")
    providers = {"untracked": partial(sweep, folder, "--tracking-uri", "none"), "tracked": partial(sweep, folder)}
    workload = Workload(providers, require_finished, rounds=MIN_ROUNDS)
    time_interleaved("sweep of two trials", provider, lambda: workload)


@pytest.fixture(scope="module")
def image_folder() -> Iterator[tuple[str, int]]:
    """A temporary folder with 1 GB of images, and their number."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder, feeding.write(Path(folder), 1)


def train_in_process(folder: str, storage: str) -> dict[str, Any]:
    """Train on a folder's images in a new process; return what it printed, and how the images were stored."""
    line = [sys.executable, str(ROOT / "bench/cases/feeding.py"), folder, storage]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"way": storage}


def train_bare_loop(splits: Splits, config: Run) -> float:
    """Train as written by hand: textbook reparameterisation and KL, clipping, Adam; return the last ELBO."""
    torch.manual_seed(config.train.seed)
    vae = models.build(config.model, splits.shape, splits.levels)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.train.learning_rate, fused=True)
    x_all = splits.train.stored
    losses: list[Tensor] = []
    for _ in range(config.train.epochs):
        losses.clear()
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


def sweep(folder: Path, *options: str) -> SweepResult:
    """Run the command in a new folder; return how it ended, and the folder."""
    fresh = Path(tempfile.mkdtemp(dir=folder))
    line = [sys.executable, str(ROOT / "studies/sweep.py"), *SWEEP, *options]
    return subprocess.run(line, cwd=fresh, capture_output=True, text=True), fresh


def require_near(expected: float, elbo: float) -> None:
    """Require that a training ended within a tenth of the expected ELBO."""
    assert abs(elbo / expected - 1) < 0.1, f"the last epoch has an ELBO of {elbo:.1f}, not {expected:.1f}"


def require_same_elbos(expected: Sequence[Result], results: Sequence[Result]) -> None:
    """Require the validation ELBOs of models that were trained one after another."""
    for result, other in zip(results, expected, strict=True):
        one, two = (each.history[-1]["valid/elbo"] for each in (result, other))
        assert abs(one / two - 1) < 1e-4, f"seed {result.config.train.seed} ends at an ELBO of {one:.3f}, not {two:.3f}"


def require_fed(result: dict[str, Any]) -> None:
    """Require a finite bound and, where images are mapped, little memory."""
    assert math.isfinite(result["elbo"])
    memory = result["rss_anon_mb"]
    assert result["way"] == "in memory" or memory < MOST_ANONYMOUS_MB, f"{memory:.0f} MB"


def require_finished(result: SweepResult) -> None:
    """Require that the study ended well and left its page."""
    done, folder = result
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("runs/*/*.html")), "the study left no page"


def require_finite(loss: Tensor) -> None:
    """Require that a step left a finite loss."""
    assert torch.isfinite(loss), f"the loss is {loss.item()}"
