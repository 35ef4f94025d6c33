"""VAEs and normalizing flows on one scale: `python studies/experiments/vae_vs_flow.py`, also with `--dataset sprites`.

Which of them models images better depends on the data. It prints bits per dimension of dequantised test images, where
each level is a cell of width 1. A flow gives the cells a density, averaged over ten places in each, whose bits are an
upper bound of its bits of levels; a VAE of levels gives the probability of a cell, a constant density in it, by
importance sampling. Where images are unresolved, the printed figure is an upper bound too, behind `<=`. It also prints
the bits of a full Gaussian and of a histogram of each pixel, the number of parameters, and the time to train, to draw
an image and to measure one. Errors are standard errors over the seeds, none with one seed, and gains over the VAE are
those of the same seed; the wider VAE has as many parameters as the VAE with a flow as its prior. The digits take three
minutes on two cores.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies.experiments import output, parallel
from vaebench.studies.experiments.output import Row, add_count, command_line, measure_time, write_results
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits, load
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.evaluation.evaluate import PLACES, importance_nll
from vaebench.vae.model import GenerativeModel
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
BITS, GAIN = "bits/dim", f"below the {BASELINE}"
SHOWN = 10
DRAWN = 20
REPEATS = 3
MOST_LINEAR = 10  # largest over smallest value on a linear axis


@dataclass(frozen=True)
class Measurement:
    """Results of one training: bits per dimension, parameters, seconds to train, to draw and to measure an image.

    unresolved: images for which the estimate of log p(x) is a bound alone; 0 for a flow.
    images: draws from the model, `(SHOWN, H, W)`.
    """

    bits: float
    unresolved: int
    parameters: int
    training: float
    drawing: float
    measuring: float
    images: Tensor


Measurements = Mapping[str, Sequence[Measurement]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--seeds", 3, "trainings of each model", most=1000)
    add_count(parser, "--epochs", 150, "most epochs of each training")
    parser.add_argument("--dataset", choices=DATASETS, default="digits", help="images to model (digits)")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Train every model with every seed, side by side, and compare them."""
    options.folder /= options.dataset
    configs = {
        name: [configure(options.dataset, name, seed, options.epochs) for seed in range(options.seeds)]
        for name in MODELS
        if name not in TOO_SLOW[options.dataset]
    }
    splits = load(configs[BASELINE][0].data)
    measurements = parallel.map_groups(train, configs, splits.shape, options)
    references = {"full Gaussian": full_gaussian(splits), "pixel histogram": pixel_histogram(splits)}
    rows = compare(measurements, references)
    write_results(
        rows, plot(rows, measurements, splits), options, printed=output.mark_bounds(rows, BITS, GAIN, below=True)
    )


def configure(dataset: str, model: str, seed: int, epochs: int) -> Run:
    """Return the settings of one training, with at most this many epochs."""
    own = {"model.hidden": WIDER[dataset]} if model == "VAE, wider" else MODELS[model]
    config = Run().replace({"train.device": "cpu", "train.seed": seed, **own, **DATASETS[dataset]})
    return config.replace({"train.epochs": min(epochs, config.train.epochs)})


def train(config: Run) -> Measurement:
    """Train one model and measure it on the test split."""
    result, training_time = measure_time(fit, config)
    model, test, generator = result.model, result.splits.test, torch.Generator().manual_seed(config.train.seed)
    metrics, measuring_time = measure_time(importance_nll, model, test, config)
    return Measurement(
        bits=metrics["nll"] / (math.prod(result.splits.shape) * math.log(2)),
        unresolved=int(metrics.get("nll_unresolved", 0)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        training=training_time,
        drawing=measure_drawing(model, generator),
        measuring=measuring_time / len(test),
        images=draw_images(model, SHOWN, generator)[:, 0],
    )


@torch.no_grad()
def draw_images(model: GenerativeModel, count: int, generator: torch.Generator) -> Tensor:
    """Return images drawn from the model, `(count, *shape)`."""
    return model.sample(count, generator)


def measure_drawing(model: GenerativeModel, generator: torch.Generator) -> float:
    """Return the seconds to draw one image among twenty, the median of three repetitions."""
    return statistics.median(measure_time(draw_images, model, DRAWN, generator)[1] / DRAWN for _ in range(REPEATS))


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


def compare(measurements: Measurements, references: Mapping[str, float]) -> list[Row]:
    """Return one row for each model, with means over its seeds, and one for each reference without a network."""
    rows: list[Row] = []
    for name, runs in measurements.items():
        bits, stderr = output.mean_and_stderr([run.bits for run in runs])
        gains = [baseline.bits - run.bits for baseline, run in zip(measurements[BASELINE], runs, strict=True)]
        gain, gain_stderr = output.mean_and_stderr(gains)
        rows.append(
            {
                "model": name,
                BITS: bits,
                f"{BITS} +-": stderr,
                GAIN: gain,
                f"{GAIN} +-": gain_stderr,
                "unresolved": sum(run.unresolved for run in runs),
                "parameters": runs[0].parameters,
                "training, s": statistics.fmean(run.training for run in runs),
                "drawing, ms an image": 1e3 * statistics.fmean(run.drawing for run in runs),
                "measuring, ms an image": 1e3 * statistics.fmean(run.measuring for run in runs),
            }
        )
    unknown = dict.fromkeys(list(rows[0])[2:], math.nan)
    return rows + [{"model": name, BITS: bits, **unknown} for name, bits in references.items()]


def plot(rows: Sequence[Row], measurements: Measurements, splits: Splits) -> Figure:
    """Return bits per dimension, and a row of images from each model below a row of data.

    Error bars are standard errors over the seeds, where there are several. The axis is logarithmic where the bits span
    an order of magnitude.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    seeds = len(measurements[BASELINE])
    for place, row in enumerate(rows):
        bits, stderr = float(row[BITS]), float(row[f"{BITS} +-"])
        left.errorbar(bits, -place, xerr=None if math.isnan(stderr) else stderr, capsize=3, **choose_style(row, seeds))
    left.set_yticks([-place for place in range(len(rows))], [str(row["model"]) for row in rows])
    left.set(xlabel=f"bits per dimension of dequantised test images, {splits.name}; less is better")
    least, most = (pick(float(row[BITS]) for row in rows) for pick in (min, max))
    if most > MOST_LINEAR * least:
        left.set_xscale("log")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))  # one for each kind of row
    left.legend(handles.values(), handles, fontsize="small")
    draws = {name: runs[0].images for name, runs in measurements.items()}
    output.plot_image_rows(right, {"data": splits.test.batch()[:SHOWN, 0], **draws})
    return figure


def choose_style(row: Row, seeds: int) -> dict[str, str]:
    """Return how a row is drawn: a model, an upper bound of one, or a reference without a network."""
    unresolved = float(row["unresolved"])
    if math.isnan(unresolved):
        return {"color": "0.5", "marker": "s", "label": "without a network"}
    over = f"mean of {seeds} seeds, standard error" if seeds > 1 else "one seed"
    if unresolved:
        return {"color": "C0", "marker": "<", "label": f"upper bound, {over}"}
    return {"color": "C0", "marker": "o", "label": over}


if __name__ == "__main__":
    sys.exit(main())
