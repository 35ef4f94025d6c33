"""A decoder that needs no code uses one if alpha pays for it: `python studies/experiments/information_preference.py`.

With p(x|z) = prod_i p(x_i | x_<i, z) the decoder can be p(x) for every z, and then the ELBO is highest at a rate of
zero: a code that carried I(x; z) nats would cost as many. In

    E_q[log p(x|z)] - (1 - alpha) KL(q(z|x)||p(z)) - (alpha + lambda - 1) MMD^2(q(z), p(z))

information costs 1 - alpha times as much, while lambda keeps q(z) near the prior. On binarised digits it prints, for
each alpha, the rate, the mutual information, which cannot exceed log N, -log p(x), and by how much -log p(x) exceeds
that of alpha 0 with the same seed. Errors are standard errors over the seeds; those of the differences leave out what
the seeds have in common. Where images are unresolved, the printed figure is an upper bound, behind `<=`. It takes a
minute and a half on two cores.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from vaebench.studies.experiments import output, parallel
from vaebench.studies.experiments.output import Row, add_count, command_line, write_results
from vaebench.vae.config.run import Data, Model, Run, Train
from vaebench.vae.data import load
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.flows.autoregressive import MaskedNetwork
from vaebench.vae.model import VAE, GenerativeModel, networks
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.objective import infovae
from vaebench.vae.prob.densities import Bernoulli, Density
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state

ALPHAS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
LAMBDA = 100.0
NLL, EXCESS = "-log p(x)", "above alpha 0"
METRICS = {"rate": "test/rate", "mutual information": "latent/mi", NLL: "test/nll"}
SHOWN = 10
BASE = Run(
    Data(binarise="static"),
    Model(latent=4, hidden=(128,), likelihood="bernoulli"),
    infovae(0.0, LAMBDA),
    Train(learning_rate=5e-3, patience=0, device="cpu"),
)


@dataclass(frozen=True)
class Measurement:
    """Metrics of one training, and test images above draws from p(x|z) at their codes, `(2, SHOWN, H, W)`."""

    metrics: Metrics
    images: Tensor


@dataclass(frozen=True)
class AutoregressiveBits(Density):
    """Bits drawn one after the other, P(x_i = 1 | x_<i, z) = sigmoid(network(x, z)_i).

    Shapes: z `(..., K)`, an event of `shape`; drawing takes a pass for each bit.
    """

    network: MaskedNetwork
    z: Tensor
    shape: tuple[int, ...]

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        return len(self.shape)

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        return self._given(x).log_prob_elementwise(x)

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        x = self.z.new_zeros(*self.z.shape[:-1], *self.shape)
        for i in range(math.prod(self.shape)):
            x.flatten(-self.event_ndim)[..., i] = self._given(x).sample(generator).flatten(-self.event_ndim)[..., i]
        return x

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("bits that depend on each other have no mean in closed form: draw them.")

    def _given(self, x: Tensor) -> Bernoulli:
        """Return the distribution of each bit given the bits before it in x."""
        logits: Tensor = self.network(x.flatten(-self.event_ndim), self.z)
        return Bernoulli(logits.reshape(*logits.shape[:-2], *self.shape), self.event_ndim)


class AutoregressiveLikelihood(Likelihood):
    """p(x|z) of bits from a network that sees z and the bits before."""

    def __init__(self, network: MaskedNetwork, shape: tuple[int, ...]) -> None:
        super().__init__("bernoulli", shape, levels=2)
        self.network = network

    def forward(self, raw: Tensor) -> Density:
        """Return p(x|z) for codes `(..., K)`."""
        return AutoregressiveBits(self.network, raw, self.shape)


def build_vae(config: Model, shape: tuple[int, ...]) -> VAE:
    """Return a VAE of bits whose decoder sees z and the bits before."""
    encoder, _ = networks.build(config, shape, parameters=1)
    network = MaskedNetwork(torch.arange(math.prod(shape)), 1, config.hidden, context=config.latent)
    return VAE(encoder, nn.Identity(), AutoregressiveLikelihood(network, shape), config.latent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--seeds", 3, "trainings for each alpha", most=1000)
    add_count(parser, "--epochs", 80, "epochs of each training")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Train a VAE for each alpha and seed, side by side, and compare them."""
    configs = {alpha: [configure(alpha, seed, options.epochs) for seed in range(options.seeds)] for alpha in ALPHAS}
    measurements = parallel.map_groups(train, configs, load(BASE.data).shape, options)
    rows = compare(measurements)
    write_results(rows, plot(rows, measurements), options, printed=output.mark_bounds(rows, NLL, EXCESS))


def configure(alpha: float, seed: int, epochs: int) -> Run:
    """Return the settings of one training."""
    return BASE.replace({"objective.alpha": alpha, "train.seed": seed, "train.epochs": epochs})


def train(config: Run) -> Measurement:
    """Train and measure one model."""
    splits = load(config.data)
    with own_random_state(config.train.seed, torch.device("cpu")):
        model = build_vae(config.model, splits.shape)
    result = fit(config, data=load(Data()), model=model)
    images = reconstruct(model, result.splits.test.batch())
    return Measurement(measure(model, result.splits, result.config), images)


@torch.no_grad()
def reconstruct(model: GenerativeModel, x: Tensor) -> Tensor:
    """Return test images, and as many draws from p(x|z) at their codes, `(2, SHOWN, H, W)`."""
    x = x[:SHOWN]
    drawn = model.decode(model.represent(x)).sample(torch.Generator().manual_seed(0))
    return torch.stack([x[:, 0], drawn[:, 0]])


def compare(measurements: Mapping[float, Sequence[Measurement]]) -> list[Row]:
    """Return one row for each alpha: means over the seeds, each with its standard error.

    The difference to alpha 0, the first one, is the mean over the seeds of the differences of the same seed.
    """
    rows: list[Row] = []
    (_, without), *_ = measurements.items()
    for alpha, seeds in measurements.items():
        metrics = [measurement.metrics for measurement in seeds]
        row: dict[str, str | int | float] = {"alpha": alpha}
        for name, metric in METRICS.items():
            row[name], row[f"{name} +-"] = output.mean_and_stderr([values[metric] for values in metrics])
        pairs = zip(metrics, without, strict=True)
        differences = [values["test/nll"] - other.metrics["test/nll"] for values, other in pairs]
        row[EXCESS], row[f"{EXCESS} +-"] = output.mean_and_stderr(differences)
        row["unresolved"] = int(sum(values["test/nll_unresolved"] for values in metrics))
        row["log N"] = metrics[0]["latent/log_n"]
        row["effective samples"] = min(values["test/nll_ess"] for values in metrics)
        rows.append(row)
    return rows


def plot(rows: Sequence[Row], measurements: Mapping[float, Sequence[Measurement]]) -> Figure:
    """Return the metrics against alpha, and for each alpha images drawn at the codes of test images.

    The errors of the differences to alpha 0 are those of pairs of one seed.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    information, evidence, images = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    for name, axes in (("rate", information), ("mutual information", information), (EXCESS, evidence)):
        plot_metric(axes, rows, name)
    information.axhline(float(rows[0]["log N"]), color="0.6", label="log N")
    information.set(ylabel="nats")
    information.legend()
    evidence.axhline(0, color="0.6")
    evidence.set(ylabel="-log p(x) above that of alpha 0, nats")
    first = {f"alpha {alpha:g}": seeds[0].images for alpha, seeds in measurements.items()}
    test_images, _ = next(iter(first.values()))
    output.plot_image_rows(images, {"test images": test_images, **{name: draws for name, (_, draws) in first.items()}})
    return figure


def plot_metric(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Plot one metric against alpha with its error bars."""
    alphas, values, errors = ([float(row[key]) for row in rows] for key in ("alpha", name, f"{name} +-"))
    axes.errorbar(alphas, values, yerr=errors, marker="o", capsize=3, label=name)
    axes.set(xlabel="alpha")


if __name__ == "__main__":
    sys.exit(main())
