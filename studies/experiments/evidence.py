"""Estimators of log p(x) against the truth, error against cost: `python studies/experiments/evidence.py`.

On probabilistic PCA with K from 1 to 64 and on mixtures of Gaussians it shows where the Riemann sum and naive Monte
Carlo fail, why a proposal q helps, and how a q that is too narrow misleads. It prints the Riemann sum's refusal of a
grid in eight dimensions, and bias, error, coverage and cost of each estimator at its largest size. It takes a minute.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vaebench.studies.experiments import output
from vaebench.studies.experiments.output import Row, add_count, command_line, write_results
from vaebench.vae.estimators import ais, evidence
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.exact import MixtureOfGaussians, ProbabilisticPCA
from vaebench.vae.prob.densities import LogDensity
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
class KnownEvidence:
    """Data with known log p(x), `(B,)`, and estimators of it by name, each with the sizes to try."""

    name: str
    log_p: Tensor
    estimators: dict[str, tuple[Estimator, Sequence[int]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--data", 50, "data points for each model", most=10_000)
    options = parser.parse_args(arguments)
    models = [build_ppca(K, options.data) for K in LATENT_SIZES] + [build_mixture(C, options.data) for C in CLASSES]
    rows = [row for model in tqdm(models, desc="models", leave=False) for row in measure(model)]
    largest = {(row["model"], row["estimator"]): row for row in rows}
    print(refuse_grid())
    return write_results(rows, plot(rows), options, printed=list(largest.values()))


def build_ppca(K: int, data: int) -> KnownEvidence:
    """Return probabilistic PCA of 2K dimensions whose best diagonal q is good but not exact."""
    generator = torch.Generator().manual_seed(K)
    basis = torch.linalg.qr(torch.randn(2 * K, K, generator=generator, dtype=torch.float64)).Q
    mixing = torch.eye(K, dtype=torch.float64) + 0.02 * torch.randn(K, K, generator=generator, dtype=torch.float64)
    scales = torch.linspace(3, 1, K, dtype=torch.float64)
    model = ProbabilisticPCA(basis * scales @ mixing, torch.zeros(2 * K, dtype=torch.float64), 1.0)
    x, _ = model.sample(data, generator)
    q = GaussianProposal(*model.best_diagonal(x))
    prior, narrow = GaussianProposal.prior(q.mu), q.widen(0.5)

    def log_joint(z: Tensor) -> Tensor:
        return model.log_joint(x, z)

    def naive(S: int, g: torch.Generator) -> Estimate:
        return evidence.naive_monte_carlo(lambda z: model.log_likelihood(x, z), prior, samples=S, generator=g)

    def sample_widened(S: int, g: torch.Generator) -> Estimate:
        width = evidence.choose_width(log_joint, narrow, samples=WIDTH_SAMPLES, generator=g)
        return evidence.importance_sampling(log_joint, narrow.widen(width), samples=S, generator=g)

    def anneal(S: int, g: torch.Generator) -> Estimate:
        temperatures = max(2, S // LEAPFROG_STEPS)
        path = ais.Path(log_joint, prior, ais.sigmoid_schedule(temperatures), LEAPFROG_STEPS)
        return ais.anneal(path, ais.tune_steps(path, generator=g), chains=CHAINS, generator=g)

    def sum_grid(points: int, g: torch.Generator) -> Estimate:
        return evidence.riemann_sum(log_joint, q.mu, points=points)

    estimators: dict[str, tuple[Estimator, Sequence[int]]] = {
        "naive": (naive, SAMPLES),
        **estimators_with(log_joint, q),
        "sampling, q/2": (sample_from(log_joint, narrow), SAMPLES),
        "sampling, q/2 widened": (sample_widened, SAMPLES),
        "sampling, q/2 defended": (sample_from(log_joint, DefensiveMixture(narrow, q)), SAMPLES),
        "annealing, prior": (anneal, (100, 400)),
    }
    if K in GRIDS:
        estimators["riemann"] = (sum_grid, GRIDS[K])
    return KnownEvidence(f"ppca {K}", model.log_prob(x), estimators)


def build_mixture(C: int, data: int) -> KnownEvidence:
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

    estimators = {"naive": (naive, SAMPLES), **estimators_with(log_joint, q)}
    return KnownEvidence(f"mixture {C}", model.log_prob(x), estimators)


def estimators_with(log_joint: LogDensity, q: Proposal) -> dict[str, tuple[Estimator, Sequence[int]]]:
    """Return the estimators that every model has with its proposal q."""
    return {
        "elbo, q": (lambda S, g: evidence.elbo(log_joint, q, samples=S, generator=g), SAMPLES),
        "iwae 10, q": (lambda S, g: evidence.iwae(log_joint, q, k=10, samples=S, generator=g), SAMPLES),
        "sampling, q": (sample_from(log_joint, q), SAMPLES),
    }


def sample_from(log_joint: LogDensity, proposal: Proposal) -> Estimator:
    """Return importance sampling with a proposal."""
    return lambda S, g: evidence.importance_sampling(log_joint, proposal, samples=S, generator=g)


def measure(model: KnownEvidence) -> Iterator[Row]:
    """Yield one row for each estimator and size: its bias, its error, how often its 99 % interval holds the truth."""
    generator = torch.Generator().manual_seed(0)
    for name, (estimator, sizes) in model.estimators.items():
        for size in sizes:
            estimate, seconds = output.measure_time(estimator, size, generator)
            error = estimate.value - model.log_p
            covered = error.abs() <= NINETY_NINE * estimate.stderr
            yield {
                "model": model.name,
                "estimator": name,
                "kind": estimate.kind,
                "cost": estimate.cost,
                "bias": error.mean().item(),
                "rmse": error.square().mean().sqrt().item(),
                "covered": covered.double().mean().item() if estimate.kind == "unbiased" else math.nan,
                "ess": estimate.ess.median().item() if estimate.ess is not None else math.nan,
                "tail": estimate.tail.median().item() if estimate.tail is not None else math.nan,
                "seconds": seconds,
            }


def refuse_grid() -> str:
    """Return the sentence with which the Riemann sum refuses a grid that is too large."""
    try:
        evidence.riemann_sum(lambda z: z.sum(-1), torch.zeros(1, 8), points=33)
    except ValueError as error:
        return f"ppca 8: {error}\n"
    raise AssertionError("the Riemann sum accepted 33^8 cells")


def plot(rows: Sequence[Row]) -> Figure:
    """Return one panel for each model: root mean squared error in nats against evaluations of the model."""
    models = output.group_by(rows, lambda row: str(row["model"]))
    figure = Figure(figsize=(16, 7), layout="constrained")
    axes = figure.subplots(2, (len(models) + 1) // 2, sharey=True)
    for panel, (model, lines) in zip(axes.flat, models.items(), strict=False):
        output.plot_lines(panel, lines, "cost", "rmse", lambda row: str(row["estimator"]))
        panel.set(title=model, xlabel="evaluations", ylim=(1e-6, 1e3))
    axes.flat[0].set_ylabel("rmse, nats")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    sys.exit(main())
