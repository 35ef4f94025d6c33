"""A decoder that needs no code, and what makes it use one: `python studies/experiments/information_preference.py`.

With p(x|z) = prod_i p(x_i | x_<i, z) the decoder can be p(x) whatever z is, and then the ELBO is highest at a rate of
zero: a code that carried I(x; z) nats would cost as many. In

    E_q[log p(x|z)] - (1 - alpha) KL(q(z|x)||p(z)) - (alpha + lambda - 1) MMD^2(q(z), p(z))

information costs 1 - alpha of that, while lambda keeps q(z) near the prior. On binarised digits, for each alpha: rate,
mutual information, which cannot exceed log N, and -log p(x) by importance sampling, which errs high where few samples
are effective. Error bars are standard errors over the seeds.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from vaebench.studies.experiments import parallel
from vaebench.studies.experiments.output import Row, at_least, leave, mean_and_stderr, render, show
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae.config.run import Data, Eval, Model, Objective, Run, Train
from vaebench.vae.data import load
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.flows.autoregressive import MaskedNetwork
from vaebench.vae.model import VAE, networks
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.prob.densities import Bernoulli, Density
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state

ALPHAS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
LAMBDA = 100.0
FIGURES = {"rate": "test/rate", "mutual information": "latent/mi", "-log p(x)": "test/nll"}
SHOWN = 10
BASE = Run(
    Data(binarise="static"),
    Model(latent=4, hidden=(128,), likelihood="bernoulli"),
    Objective(lambda_=LAMBDA),
    Train(learning_rate=5e-3, patience=0, device="cpu"),
    Eval(samples=3000),
)


@dataclass(frozen=True)
class Job:
    """One training: a weight, a seed, and how long."""

    alpha: float
    seed: int
    epochs: int


@dataclass(frozen=True)
class Trained:
    """What one training came to: all metrics, and test images above draws from p(x|z) at their codes."""

    alpha: float
    metrics: Metrics
    images: Tensor


@dataclass(frozen=True)
class AutoregressiveBits(Density):
    """Bits one after the other, P(x_i = 1 | x_<i, z) = sigmoid(network(x, z)_i).

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
        """Return the distribution of each bit given those before it in x."""
        logits: Tensor = self.network(x.flatten(-self.event_ndim), self.z)
        return Bernoulli(logits.reshape(*logits.shape[:-2], *self.shape), self.event_ndim)


class AutoregressiveVAE(VAE):
    """A VAE of bits whose decoder sees z and the bits before."""

    def __init__(self, config: Model, shape: tuple[int, ...]) -> None:
        likelihood = Likelihood("bernoulli", shape, levels=2)
        encoder, _ = networks.build(config, shape, likelihood.parameters_per_element)
        decoder = MaskedNetwork(torch.arange(math.prod(shape)), 1, config.hidden, context=config.latent)
        super().__init__(encoder, decoder, likelihood, config.latent)

    def decode(self, z: Tensor) -> Density:
        decoder: nn.Module = self.decoder
        assert isinstance(decoder, MaskedNetwork)
        return AutoregressiveBits(decoder, z, self.likelihood.shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("information_preference", __doc__)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="trainings for each alpha (default: 3)")
    parser.add_argument("--epochs", type=at_least(1), default=80, help="of each training (default: 80)")
    options = parser.parse_args(arguments)
    jobs = [Job(alpha, seed, options.epochs) for alpha in ALPHAS for seed in range(options.seeds)]
    trained = parallel.each(train, jobs, load(BASE.data).shape)
    rows = compare(trained)
    print(render(rows))
    leave(rows, draw(rows, trained), options)
    return 0


def train(job: Job) -> Trained:
    """Train and measure with one alpha and one seed."""
    config = BASE.replace({"objective.alpha": job.alpha, "train.seed": job.seed, "train.epochs": job.epochs})
    splits = load(config.data)
    with own_random_state(job.seed, torch.device("cpu")):
        model = AutoregressiveVAE(config.model, splits.shape)
    result = fit(config, data=load(Data()), model=model)
    return Trained(job.alpha, measure(model, result.splits, result.config), pairs(model, result.splits.test.batch()))


@torch.no_grad()
def pairs(model: VAE, x: Tensor) -> Tensor:
    """Return test images, and as many draws from p(x|z) at their codes, `(2, SHOWN, H, W)`."""
    x = x[:SHOWN]
    drawn = model.decode(model.represent(x)).sample(torch.Generator().manual_seed(0))
    return torch.stack([x[:, 0], drawn[:, 0]])


def compare(trained: Sequence[Trained]) -> list[Row]:
    """Return a row for each alpha: means over the seeds, each with its standard error."""
    rows: list[Row] = []
    for alpha in dict.fromkeys(one.alpha for one in trained):
        runs = [one.metrics for one in trained if one.alpha == alpha]
        row: dict[str, str | int | float] = {"alpha": alpha}
        for name, metric in FIGURES.items():
            row[name], row[f"{name} +-"] = mean_and_stderr([metrics[metric] for metrics in runs])
        row["log N"] = runs[0]["latent/log_n"]
        row["effective samples"] = min(metrics["test/nll_ess"] for metrics in runs)
        rows.append(row)
    return rows


def draw(rows: Sequence[Row], trained: Sequence[Trained]) -> Figure:
    """Return the figures against alpha, and what is drawn at the codes of test images for the outer alphas."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    information, evidence, images = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    for name, axes in zip(FIGURES, (information, information, evidence), strict=True):
        curve(axes, rows, name)
    information.axhline(float(rows[0]["log N"]), color="0.6", label="log N")
    information.set(ylabel="nats")
    information.legend()
    evidence.set(ylabel="-log p(x), nats")
    show(images, sheets(trained))
    return figure


def curve(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Draw one figure against alpha with its error bars."""
    alphas, values, errors = ([float(row[key]) for row in rows] for key in ("alpha", name, f"{name} +-"))
    axes.errorbar(alphas, values, yerr=errors, marker="o", capsize=3, label=name)
    axes.set(xlabel="alpha")


def sheets(trained: Sequence[Trained]) -> Mapping[str, Tensor]:
    """Return a line of test images, and for each alpha the draws at their codes."""
    drawn = {f"alpha {one.alpha:g}": one.images[1] for one in reversed(trained)}
    return {"test images": trained[0].images[0]} | {name: drawn[name] for name in reversed(drawn)}


if __name__ == "__main__":
    sys.exit(main())
