"""Training brings a linear VAE to the optimum of probabilistic PCA: `python studies/experiments/linear_vae.py`.

With beta, a direction stays active if its eigenvalue exceeds beta * sigma^2, and its strength, the squared singular
value of the decoder, is the eigenvalue less beta * sigma^2. It prints, for each beta, the active directions predicted
and found, the largest error of a strength, and the distance from the optimum. It takes half a minute.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, write_results
from vaebench.vae.config.run import Data, Model, Run, Train
from vaebench.vae.data import Splits, load
from vaebench.vae.estimators.exact import FullGaussian, ProbabilisticPCA, fit_beta_ppca
from vaebench.vae.model import VAE
from vaebench.vae.model.build import build_vae
from vaebench.vae.objective import beta_vae
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state

DATA = Data(name="linear", size=4000, features=12, rank=4, noise=0.5)
MODEL = Model(network="linear", latent=4, likelihood="gaussian", sigma=DATA.noise)
BETAS = (1.0, 3.0, 8.0, 16.0, 30.0, 50.0)
COLLAPSED = 0.01


@dataclass(frozen=True)
class Solution:
    """The objective of a linear VAE in closed form, in nats, and the squared singular values of its decoder."""

    objective: float
    strengths: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--epochs", 300, "epochs for each beta")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Train a linear VAE for each beta and compare it with its optimum."""
    settings = Train(epochs=options.epochs, batch_size=400, learning_rate=3e-2, patience=0, device="cpu")
    splits = load(DATA)
    x = splits.train.batch().double()
    paths = {
        beta: parts.keep(options, beta, train, beta, settings, splits) for beta in tqdm(BETAS, desc="beta", leave=False)
    }
    rows = [compare(beta, path[-1], x) for beta, path in paths.items()]
    write_results(rows, plot(paths, x), options)


def train(beta: float, settings: Train, splits: Splits) -> list[Solution]:
    """Train a linear VAE and return its solution after each epoch."""
    with own_random_state(settings.seed, torch.device("cpu")):
        vae = build_vae(MODEL, splits.shape, splits.levels)
    x, path = splits.train.batch(), []

    def report(epoch: int, metrics: Metrics) -> None:
        path.append(evaluate(vae, x, beta))

    fit(Run(DATA, MODEL, beta_vae(beta), settings), data=splits, model=vae, report=report)
    return path


@torch.no_grad()
def evaluate(vae: VAE, x: Tensor, beta: float) -> Solution:
    """Evaluate a linear VAE on all data as probabilistic PCA, in closed form instead of from samples."""
    layer = next(module for module in vae.decoder.modules() if isinstance(module, nn.Linear))
    model = ProbabilisticPCA(layer.weight.double(), layer.bias.double(), DATA.noise**2)
    q = vae.encode(x)
    codes = FullGaussian(q.mu.double(), torch.diag_embed(q.logvar.double().exp()))
    return Solution(objective(model, x.double(), codes, beta), torch.linalg.svdvals(model.weight).square())


def objective(model: ProbabilisticPCA, x: Tensor, q: FullGaussian, beta: float) -> float:
    """Return the mean over the data of E_q log p(x|z) - beta KL(q || p(z)) in closed form."""
    return (model.elbo(x, q) - (beta - 1) * q.kl(model.prior())).mean().item()


def optimum(x: Tensor, beta: float) -> Solution:
    """Return the best solution of any linear VAE, whose q is the posterior at noise beta sigma^2."""
    best = fit_beta_ppca(x, MODEL.latent, beta=beta, noise=DATA.noise**2)
    q = dataclasses.replace(best, noise=beta * best.noise).posterior(x)
    return Solution(objective(best, x, q, beta), best.weight.square().sum(0))


def compare(beta: float, end: Solution, x: Tensor) -> Row:
    """Return the row of one beta: the prediction beside the solution at the end of training."""
    best, threshold = optimum(x, beta), beta * DATA.noise**2
    ratios = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-MODEL.latent :] / threshold
    return {
        "beta": beta,
        "threshold": threshold,
        "nearest eigenvalue / threshold": ratios[ratios.log().abs().argmin()].item(),
        "directions predicted": int((best.strengths > 0).sum()),
        "found": int((end.strengths > COLLAPSED * threshold).sum()),
        "largest error of a strength": (end.strengths - best.strengths).abs().max().item(),
        "nats below the optimum": best.objective - end.objective,
    }


def plot(paths: Mapping[float, list[Solution]], x: Tensor) -> Figure:
    """Return the path to the optimum for each beta, and the strengths found beside the predicted ones."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for beta, path in paths.items():
        best = optimum(x, beta)
        left.semilogy([max(best.objective - solution.objective, 1e-6) for solution in path], label=f"beta {beta:g}")
        numbers = range(1, len(best.strengths) + 1)
        (line,) = right.plot(numbers, best.strengths, label=f"beta {beta:g}")
        right.plot(numbers, path[-1].strengths, "o", color=line.get_color())
    left.set(xlabel="epoch", ylabel="nats below the optimum")
    right.set(xlabel="direction", ylabel="strength: predicted (line), found (dot)")
    left.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
