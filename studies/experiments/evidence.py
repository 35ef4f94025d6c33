"""Estimators of log p(x) against the truth, error against cost: `python studies/experiments/evidence.py`.

Probabilistic PCA with K from 1 to 64 and mixtures of Gaussians. It shows where the Riemann sum dies, where naive Monte
Carlo dies, why a proposal q helps, and what a q that is too narrow does.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vaebench.studies.experiments.output import Row, at_least, leave, render
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae.estimators import ais, evidence
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.exact import MixtureOfGaussians, ProbabilisticPCA
from vaebench.vae.prob.proposals import CategoricalProposal, DefensiveMixture, GaussianProposal, Proposal

LATENT_SIZES = (1, 2, 3, 4, 8, 16, 32, 64)
CLASSES = (4, 64)
SAMPLES = (100, 1000, 10_000)
GRIDS = {1: (17, 65, 257), 2: (17, 65, 129), 3: (9, 17, 33), 4: (5, 9, 13)}
WIDTH_SAMPLES = 100
CHAINS = 16
LEAPFROG_STEPS = 2
NINETY_NINE = 2.5758

Estimator = Callable[[int, torch.Generator], Estimate]


@dataclass(frozen=True)
class World:
    """Data of a model with known log p(x), `(B,)`, and estimators of it by name, each with the sizes to try."""

    name: str
    log_p: Tensor
    estimators: dict[str, tuple[Estimator, Sequence[int]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("evidence", __doc__)
    parser.add_argument("--data", type=at_least(1), default=50, help="data points for each model (default: 50)")
    options = parser.parse_args(arguments)
    worlds = [ppca_world(K, options.data) for K in LATENT_SIZES] + [mixture_world(C, options.data) for C in CLASSES]
    rows = [row for world in tqdm(worlds, desc="models", leave=False) for row in measure(world)]
    last = {(row["model"], row["estimator"]): row for row in rows}
    print(render(list(last.values())))
    print(refusal())
    leave(rows, draw(rows), options)
    return 0


def ppca_world(K: int, data: int) -> World:
    """Return probabilistic PCA of 2K dimensions whose best diagonal q is good but not exact."""
    generator = torch.Generator().manual_seed(K)
    basis = torch.linalg.qr(torch.randn(2 * K, K, generator=generator, dtype=torch.float64)).Q
    mixing = torch.eye(K, dtype=torch.float64) + 0.02 * torch.randn(K, K, generator=generator, dtype=torch.float64)
    scales = torch.linspace(3, 1, K, dtype=torch.float64)
    model = ProbabilisticPCA(basis * scales @ mixing, torch.zeros(2 * K, dtype=torch.float64), 1.0)
    x, _ = model.sample(data, generator)
    q = GaussianProposal(*model.best_diagonal(x))
    prior, narrow = GaussianProposal.prior(q.mu), q.widened(0.5)

    def log_joint(z: Tensor) -> Tensor:
        return model.log_joint(x, z)

    def sampled(proposal: Proposal) -> tuple[Estimator, Sequence[int]]:
        return lambda S, g: evidence.importance_sampling(log_joint, proposal, samples=S, generator=g), SAMPLES

    def widened(S: int, g: torch.Generator) -> Estimate:
        width = evidence.choose_width(log_joint, narrow, samples=WIDTH_SAMPLES, generator=g)
        return evidence.importance_sampling(log_joint, narrow.widened(width), samples=S, generator=g)

    def annealed(S: int, g: torch.Generator) -> Estimate:
        temperatures = max(2, S // LEAPFROG_STEPS)
        path = ais.Path(log_joint, prior, ais.sigmoid_schedule(temperatures), LEAPFROG_STEPS)
        return ais.anneal(path, ais.tune_steps(path, generator=g), chains=CHAINS, generator=g)

    def gridded(points: int, g: torch.Generator) -> Estimate:
        return evidence.riemann_sum(log_joint, q.mu, points=points)

    def naive(S: int, g: torch.Generator) -> Estimate:
        return evidence.naive_monte_carlo(lambda z: model.log_likelihood(x, z), prior, samples=S, generator=g)

    estimators: dict[str, tuple[Estimator, Sequence[int]]] = {
        "naive": (naive, SAMPLES),
        "elbo, q": (lambda S, g: evidence.elbo(log_joint, q, samples=S, generator=g), SAMPLES),
        "iwae 10, q": (lambda S, g: evidence.iwae(log_joint, q, k=10, samples=S, generator=g), SAMPLES),
        "sampling, q": sampled(q),
        "sampling, q/2": sampled(narrow),
        "sampling, q/2 widened": (widened, SAMPLES),
        "sampling, q/2 defended": sampled(DefensiveMixture(narrow, q)),
        "annealing, prior": (annealed, (100, 400)),
    }
    if K in GRIDS:
        estimators["riemann"] = (gridded, GRIDS[K])
    return World(f"ppca {K}", model.log_prob(x), estimators)


def mixture_world(C: int, data: int) -> World:
    """Return a mixture of C Gaussians in four dimensions, and as q(c|x) the posterior at twice the temperature."""
    generator = torch.Generator().manual_seed(C)
    factors = torch.randn(C, 4, 4, generator=generator, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.3 * torch.eye(4, dtype=torch.float64)
    means = 2 * torch.randn(C, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(C, generator=generator, dtype=torch.float64)
    model = MixtureOfGaussians(torch.log(weights / weights.sum()), means, covariances)
    x, _ = model.sample(data, generator)
    prior = CategoricalProposal(model.log_weights.expand(data, C))
    q = CategoricalProposal(torch.log_softmax(0.5 * model.log_joint(x), dim=-1))

    def log_joint(c: Tensor) -> Tensor:
        return model.log_joint_at(x, c)

    def naive(S: int, g: torch.Generator) -> Estimate:
        return evidence.naive_monte_carlo(lambda c: log_joint(c) - prior.log_prob(c), prior, samples=S, generator=g)

    return World(
        f"mixture {C}",
        model.log_prob(x),
        {
            "naive": (naive, SAMPLES),
            "elbo, q": (lambda S, g: evidence.elbo(log_joint, q, samples=S, generator=g), SAMPLES),
            "iwae 10, q": (lambda S, g: evidence.iwae(log_joint, q, k=10, samples=S, generator=g), SAMPLES),
            "sampling, q": (
                lambda S, g: evidence.importance_sampling(log_joint, q, samples=S, generator=g),
                SAMPLES,
            ),
        },
    )


def measure(world: World) -> Iterator[Row]:
    """Yield one row for each estimator and size: its bias, its error, how often its 99 % interval holds the truth."""
    generator = torch.Generator().manual_seed(0)
    for name, (estimator, sizes) in world.estimators.items():
        for size in sizes:
            started = time.perf_counter()
            estimate = estimator(size, generator)
            seconds = time.perf_counter() - started
            error = estimate.value - world.log_p
            covered = error.abs() <= NINETY_NINE * estimate.stderr
            yield {
                "model": world.name,
                "estimator": name,
                "kind": estimate.kind,
                "cost": estimate.cost,
                "bias": error.mean().item(),
                "rmse": error.square().mean().sqrt().item(),
                "covered": covered.double().mean().item() if estimate.kind == "unbiased" else float("nan"),
                "ess": estimate.ess.median().item() if estimate.ess is not None else float("nan"),
                "tail": estimate.tail.median().item() if estimate.tail is not None else float("nan"),
                "seconds": seconds,
            }


def refusal() -> str:
    """Return what the Riemann sum says where it cannot be paid for."""
    try:
        evidence.riemann_sum(lambda z: z.sum(-1), torch.zeros(1, 8), points=33)
    except ValueError as error:
        return f"\nppca 8: {error}"
    raise AssertionError("the Riemann sum accepted 33^8 cells")


def draw(rows: Sequence[Row]) -> Figure:
    """Return one panel for each model: root mean squared error in nats against evaluations of the model."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    figure = Figure(figsize=(16, 7), layout="constrained")
    axes = figure.subplots(2, (len(models) + 1) // 2, sharey=True)
    for panel, model in zip(axes.flat, models, strict=False):
        for number, name in enumerate(dict.fromkeys(str(row["estimator"]) for row in rows)):
            line = [row for row in rows if row["model"] == model and row["estimator"] == name]
            cost, rmse = [row["cost"] for row in line], [max(float(row["rmse"]), 1e-12) for row in line]
            panel.loglog(cost, rmse, marker=".", color=f"C{number}", label=name)
        panel.set(title=model, xlabel="evaluations", ylim=(1e-6, 1e3))
    axes.flat[0].set_ylabel("rmse, nats")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    sys.exit(main())
