"""VAEs and flows on one yardstick: `python studies/experiments/vae_vs_flow.py`, also with `--dataset sprites`.

Bits per dimension of dequantised test images, each level a cell of width 1: a flow gives them a density, ten places
in each cell averaged; a VAE of levels gives the probability of the cell, which as a density is constant in it, by
importance sampling, whose 500 samples leave it about 0.002 bits too high. Beside them what a full Gaussian and a
histogram of each pixel reach, parameters, and the time that it takes to train, to draw an image, and to measure one so.
Error bars are standard errors over the seeds; the wider VAE has as many parameters as the one with a flow for a prior.
"""

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies.experiments import parallel
from vaebench.studies.experiments.output import Row, at_least, leave, mean_and_stderr, render, show
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits, load
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.evaluation.evaluate import PLACES, importance_nll
from vaebench.vae.model import VAE
from vaebench.vae.training.fit import fit

Settings = Mapping[str, object]

AFFINE: Settings = {"model.hidden": (128,), "train.patience": 20}
SPLINES: Settings = {"model.hidden": (64,), "model.spline_bins": 8, "train.patience": 15, "train.epochs": 80}
MODELS: dict[str, Settings] = {
    "VAE": {},
    "VAE, wider": {},
    "VAE, flow prior": {"model.prior": "flow"},
    "VAE, flow posterior": {"model.posterior": "iaf"},
    "coupling flow": {**AFFINE, "model.kind": "coupling"},
    "autoregressive flow": {**AFFINE, "model.kind": "autoregressive", "model.flow_layers": 2},
    "coupling flow, splines": {**SPLINES, "model.kind": "coupling"},
    "autoregressive flow, splines": {**SPLINES, "model.kind": "autoregressive", "model.flow_layers": 1},
}
DATASETS: dict[str, Settings] = {
    "digits": {},
    "sprites": {"data.name": "sprites", "model.likelihood": "bernoulli", "train.epochs": 40, "train.patience": 10},
}
WIDER = {"digits": (312, 312), "sprites": (264, 264)}
TOO_SLOW = {"digits": (), "sprites": ("coupling flow, splines", "autoregressive flow, splines")}
BASELINE = "VAE"
SHOWN = 10
DRAWN = 20
REPEATS = 3


@dataclass(frozen=True)
class Job:
    """One training: data, a model, a seed, and for how long at most."""

    dataset: str
    model: str
    seed: int
    epochs: int

    @property
    def config(self) -> Run:
        """Return what is run."""
        own = {"model.hidden": WIDER[self.dataset]} if self.model == "VAE, wider" else MODELS[self.model]
        config = Run().replace({"train.device": "cpu", "train.seed": self.seed, **own, **DATASETS[self.dataset]})
        return config.replace({"train.epochs": min(self.epochs, config.train.epochs)})


@dataclass(frozen=True)
class Trained:
    """What one training came to: bits per dimension, numbers of parameters, seconds, and images `(SHOWN, H, W)`."""

    model: str
    bits: float
    parameters: int
    training: float
    drawing: float
    measuring: float
    images: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("vae_vs_flow", __doc__)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="trainings of each model (default: 3)")
    parser.add_argument("--epochs", type=at_least(1), default=150, help="at most, for each training (default: 150)")
    parser.add_argument("--dataset", choices=DATASETS, default="digits", help="images to model (default: digits)")
    options = parser.parse_args(arguments)
    names = [name for name in MODELS if name not in TOO_SLOW[options.dataset]]
    jobs = [Job(options.dataset, name, seed, options.epochs) for seed in range(options.seeds) for name in names]
    splits = load(jobs[0].config.data)
    trained = parallel.each(train, jobs, splits.shape)
    references = {"full Gaussian": full_gaussian(splits), "pixel histogram": pixel_histogram(splits)}
    rows = compare(trained, references)
    print(render(rows))
    options.folder /= options.dataset
    leave(rows, draw(rows, trained, splits), options)
    return 0


def train(job: Job) -> Trained:
    """Train one model with one seed and measure it on the test split."""
    started = time.perf_counter()
    result = fit(job.config)
    training = time.perf_counter() - started
    model, test, generator = result.model, result.splits.test, torch.Generator().manual_seed(job.seed)
    started = time.perf_counter()
    nll = importance_nll(model, test, job.config)["nll"]
    measuring = time.perf_counter() - started
    return Trained(
        job.model,
        bits=nll / (math.prod(result.splits.shape) * math.log(2)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        training=training,
        drawing=drawing_time(model, generator),
        measuring=measuring / len(test),
        images=images(model, SHOWN, generator)[:, 0],
    )


@torch.no_grad()
def images(model: VAE, count: int, generator: torch.Generator) -> Tensor:
    """Return images drawn from the model, `(count, *shape)`."""
    z = model.prior(torch.zeros(count, model.latent)).rsample(generator)
    return model.decode(z).sample(generator)


def drawing_time(model: VAE, generator: torch.Generator) -> float:
    """Return the median time of an image, drawn among twenty."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        images(model, DRAWN, generator)
        times.append((time.perf_counter() - started) / DRAWN)
    return statistics.median(times)


def full_gaussian(splits: Splits) -> float:
    """Return the bits per dimension of N(m, C) fitted to the dequantised training images, u having variance 1/12."""
    train, test = levels(splits.train), levels(splits.test)
    D = train.shape[1]
    covariance = torch.cov(train.T, correction=0) + torch.eye(D, dtype=train.dtype) / 12
    generator = torch.Generator().manual_seed(0)
    y = test + torch.rand(PLACES, *test.shape, generator=generator, dtype=test.dtype)
    return -FullGaussian(train.mean(0) + 0.5, covariance).log_prob(y).mean().item() / (D * math.log(2))


def pixel_histogram(splits: Splits) -> float:
    """Return the bits per dimension of independent pixels, each level counted once more than it was seen."""
    train, test = (levels(split).long() for split in (splits.train, splits.test))
    counts = torch.stack([(train == level).sum(0) for level in range(splits.levels)]) + 1.0
    return -(counts / counts.sum(0)).log2().gather(0, test).mean().item()


def levels(split: Split) -> Tensor:
    """Return the levels 0, 1, ... of a split in float64, `(N, D)`."""
    return (split.batch().flatten(1).double() * split.top).round()


def compare(trained: Sequence[Trained], references: Mapping[str, float]) -> list[Row]:
    """Return a row for each model, means over its seeds, and for what any model should beat."""
    baseline = [one.bits for one in trained if one.model == BASELINE]
    rows: list[Row] = []
    for name in dict.fromkeys(one.model for one in trained):
        runs = [one for one in trained if one.model == name]
        bits, stderr = mean_and_stderr([one.bits for one in runs])
        gain, gain_stderr = mean_and_stderr([base - one.bits for base, one in zip(baseline, runs, strict=True)])
        rows.append(
            {
                "model": name,
                "bits/dim": bits,
                "+-": stderr,
                f"below the {BASELINE}": gain,
                "+- of it": gain_stderr,
                "parameters": runs[0].parameters,
                "training, s": statistics.fmean(one.training for one in runs),
                "drawing, ms an image": 1e3 * statistics.fmean(one.drawing for one in runs),
                "measuring, ms an image": 1e3 * statistics.fmean(one.measuring for one in runs),
            }
        )
    unknown = dict.fromkeys(list(rows[0])[2:], math.nan)
    return rows + [{"model": name, "bits/dim": bits, **unknown} for name, bits in references.items()]


def draw(rows: Sequence[Row], trained: Sequence[Trained], splits: Splits) -> Figure:
    """Return bits per dimension with error bars, and a line of images from each model below one of data."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for place, row in enumerate(rows):
        style = {"color": "0.5", "marker": "|"} if math.isnan(float(row["+-"])) else {"marker": "o"}
        left.errorbar(float(row["bits/dim"]), -place, xerr=float(row["+-"]), capsize=3, **style)
    left.set_yticks([-place for place in range(len(rows))], [str(row["model"]) for row in rows])
    left.set(xlabel=f"bits per dimension of dequantised test images, {splits.name}; less is better")
    sheets = {"data": splits.test.batch()[:SHOWN, 0]} | {one.model: one.images for one in reversed(trained)}
    show(right, {name: sheets[name] for name in ("data", *MODELS) if name in sheets})
    return figure


if __name__ == "__main__":
    sys.exit(main())
