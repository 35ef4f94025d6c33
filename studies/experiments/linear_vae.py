"""A linear VAE walks to the optimum of probabilistic PCA: `python studies/experiments/linear_vae.py`.

With beta, the directions that stay active are those whose eigenvalue exceeds beta * sigma^2, and their strength, the
squared singular value of the decoder, is the eigenvalue less beta * sigma^2.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from vaebench.studies.experiments.output import Row, at_least, leave, render
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae import model as models
from vaebench.vae.config.run import Data, Model, Objective, Run, Train
from vaebench.vae.data import Splits, load
from vaebench.vae.estimators.exact import FullGaussian, ProbabilisticPCA, fit_beta_ppca
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state

DATA = Data(name="linear", size=4000, features=12, rank=4, noise=0.5)
MODEL = Model(network="linear", latent=4, likelihood="gaussian", sigma=DATA.noise)
BETAS = (1.0, 3.0, 8.0, 16.0, 30.0, 50.0)
COLLAPSED = 0.01


@dataclass(frozen=True)
class Epoch:
    """Where a walk stands: the objective in closed form, in nats, and the squared singular values of the decoder."""

    objective: float
    strengths: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("linear_vae", __doc__)
    parser.add_argument("--epochs", type=at_least(1), default=300, help="for each beta (default: 300)")
    options = parser.parse_args(arguments)
    train = Train(epochs=options.epochs, batch_size=400, learning_rate=3e-2, patience=0, device="cpu")
    splits = load(DATA)
    x = splits.train.batch().double()
    walks = {beta: walk(beta, train, splits) for beta in tqdm(BETAS, desc="beta", leave=False)}
    rows = [compare(beta, path[-1], x) for beta, path in walks.items()]
    print(render(rows))
    leave(rows, draw(walks, x), options)
    return 0


def walk(beta: float, train: Train, splits: Splits) -> list[Epoch]:
    """Train a linear VAE and return where it stood after each epoch."""
    with own_random_state(train.seed, torch.device("cpu")):
        vae = models.build(MODEL, splits.shape, splits.levels)
    x, epochs = splits.train.batch(), []

    def report(epoch: int, metrics: Metrics) -> None:
        epochs.append(where(vae, x, beta))

    fit(Run(DATA, MODEL, Objective(beta=beta), train), data=splits, model=vae, report=report)
    return epochs


@torch.no_grad()
def where(vae: models.VAE, x: Tensor, beta: float) -> Epoch:
    """Evaluate the objective of a linear VAE on all data without a sample, as that of probabilistic PCA."""
    layer = next(module for module in vae.decoder.modules() if isinstance(module, nn.Linear))
    model = ProbabilisticPCA(layer.weight.double(), layer.bias.double(), DATA.noise**2)
    q = vae.encode(x)
    codes = FullGaussian(q.mu.double(), torch.diag_embed(q.logvar.double().exp()))
    return Epoch(objective(model, x.double(), codes, beta), torch.linalg.svdvals(model.weight).square())


def objective(model: ProbabilisticPCA, x: Tensor, q: FullGaussian, beta: float) -> float:
    """Return the mean over the data of E_q log p(x|z) - beta KL(q || p(z)) in closed form."""
    return (model.elbo(x, q) - (beta - 1) * q.kl(model.prior())).mean().item()


def optimum(x: Tensor, beta: float) -> Epoch:
    """Return the highest objective that any linear VAE reaches: the best q is the posterior at noise beta sigma^2."""
    best = fit_beta_ppca(x, MODEL.latent, beta=beta, noise=DATA.noise**2)
    q = dataclasses.replace(best, noise=beta * best.noise).posterior(x)
    return Epoch(objective(best, x, q, beta), best.weight.square().sum(0))


def compare(beta: float, end: Epoch, x: Tensor) -> Row:
    """Return what was predicted for one beta, and what training came to."""
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


def draw(walks: Mapping[float, list[Epoch]], x: Tensor) -> Figure:
    """Return the way to the optimum for each beta, and the strengths found beside the predicted ones."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for beta, epochs in walks.items():
        best = optimum(x, beta)
        left.semilogy([max(best.objective - epoch.objective, 1e-6) for epoch in epochs], label=f"beta {beta:g}")
        numbers = range(1, len(best.strengths) + 1)
        (line,) = right.plot(numbers, best.strengths, label=f"beta {beta:g}")
        right.plot(numbers, epochs[-1].strengths, "o", color=line.get_color())
    left.set(xlabel="epoch", ylabel="nats below the optimum")
    right.set(xlabel="direction", ylabel="strength: predicted (line), found (dot)")
    left.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
