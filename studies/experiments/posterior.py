"""Markov chains and variational inference against an exact posterior: `python studies/experiments/posterior.py`.

On probabilistic PCA with a correlated posterior, samplers improve as long as they run, while variational inference
stops at the best member of its family. It prints cost and error for Metropolis-Hastings, Gibbs, Hamiltonian Monte
Carlo, mean-field and amortised variational inference; the error is KL(N(mean, covariance) || p(z|x)), averaged over the
data. The cost is the number of evaluations of log p(x, z) for each datum, where a gradient counts as two, and one sweep
of Gibbs, which multiplies as many numbers, as one. What amortised inference spends on its training data is shared out
among the data, of which more would cost nothing. It takes 20 seconds.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, measure_time, plot_lines, write_results
from vaebench.vae.estimators import mcmc
from vaebench.vae.estimators.elbo_gradients import pathwise
from vaebench.vae.estimators.exact import FullGaussian, ProbabilisticPCA
from vaebench.vae.estimators.joint import GRADIENT_COST
from vaebench.vae.estimators.posterior_fit import fit_posterior
from vaebench.vae.prob.proposals import GaussianProposal

CHAINS = 8
WARMUP_SHARE = 4
TUNING = 100
WALK_STEP = 0.35
TRAINING_DATA = 2000
BATCH = 100
LEARNING_RATE = 0.02


@dataclass
class KnownPosterior:
    """A model, data `(B, D)`, the exact posterior of each datum, and the evaluations of log p(x, z) so far."""

    model: ProbabilisticPCA
    x: Tensor
    posterior: FullGaussian
    spent: int = 0

    def log_joint(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return log p(x, z) of the data, or of others, `(..., B, K) -> (..., B)`, and count the evaluations."""
        self.spent += z.shape[:-1].numel() * (GRADIENT_COST if z.requires_grad else 1)
        return self.model.log_joint(self.x if x is None else x, z)

    def draw_starts(self, generator: torch.Generator) -> Tensor:
        """Draw the starting points of the chains from the prior, `(C, B, K)`."""
        shape = (CHAINS, *self.posterior.mean.shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


Method = Callable[[KnownPosterior, int, torch.Generator], Tensor | FullGaussian]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--latent", 8, "latent size K", most=64)  # above, the covariance of short chains is singular
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Measure every method on one posterior."""
    problem = build(options.latent)
    rows = [row for name in METHODS for row in parts.keep(options, name, measure, name, problem)]
    write_results(rows, plot(rows), options)


def build(K: int, data: int = 10) -> KnownPosterior:
    """Return a model whose posterior's correlations cost the diagonal family a few tenths of a nat."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * K, K, generator=generator, dtype=torch.float64) / K**0.5
    model = ProbabilisticPCA(weight, torch.zeros(2 * K, dtype=torch.float64), 0.5)
    x, _ = model.sample(data, generator)
    return KnownPosterior(model, x, model.posterior(x))


def measure(name: str, problem: KnownPosterior) -> list[Row]:
    """Return a row for each effort of a method: draws of each chain, or steps of the optimiser.

    The first call is not timed, because it includes imports.
    """
    method, efforts = METHODS[name]
    method(problem, efforts[0], torch.Generator().manual_seed(0))
    rows: list[Row] = []
    for effort in efforts:
        problem.spent = 0
        found, seconds = measure_time(method, problem, effort, torch.Generator().manual_seed(0))
        gaussian = found if isinstance(found, FullGaussian) else fit_gaussian(found)
        row: Row = {
            "method": name,
            "effort": effort,
            "evaluations": problem.spent / len(problem.x),
            "seconds": seconds,
            "kl to the posterior": gaussian.kl(problem.posterior).mean().item(),
            "r_hat": mcmc.r_hat(found).max().item() if isinstance(found, Tensor) else math.nan,
            "ess": mcmc.effective_sample_size(found).min().item() if isinstance(found, Tensor) else math.nan,
        }
        rows.append(row)
    return rows


def fit_gaussian(samples: Tensor) -> FullGaussian:
    """Return the Gaussian with the mean and covariance of draws `(T, C, B, K)`, for each of B data."""
    flat = samples.flatten(0, 1)
    centred = flat - flat.mean(0)
    return FullGaussian(flat.mean(0), torch.einsum("sbi,sbj->bij", centred, centred) / (len(flat) - 1))


def metropolis_hastings(problem: KnownPosterior, draws: int, generator: torch.Generator) -> Tensor:
    """Return draws of a random walk, `(T, C, B, K)`."""
    return mcmc.metropolis_hastings(
        problem.log_joint,
        problem.draw_starts(generator),
        mcmc.random_walk(WALK_STEP),
        samples=draws,
        warmup=draws // WARMUP_SHARE,
        generator=generator,
    ).samples


def gibbs(problem: KnownPosterior, draws: int, generator: torch.Generator) -> Tensor:
    """Return sweeps of the exact conditionals, `(T, C, B, K)`."""
    updates = problem.model.gibbs_updates(problem.x)
    warmup, starts = draws // WARMUP_SHARE, problem.draw_starts(generator)
    problem.spent += (draws + warmup) * starts.shape[:-1].numel()
    return torch.stack(mcmc.gibbs(updates, starts, samples=draws, warmup=warmup, generator=generator))


def hmc(problem: KnownPosterior, draws: int, generator: torch.Generator) -> Tensor:
    """Return draws of Hamiltonian Monte Carlo after tuning its step, `(T, C, B, K)`."""
    step, warm = mcmc.tune_step(problem.log_joint, problem.draw_starts(generator), warmup=TUNING, generator=generator)
    return mcmc.hmc(problem.log_joint, warm, step, samples=draws, generator=generator).samples


def mean_field(problem: KnownPosterior, steps: int, generator: torch.Generator) -> FullGaussian:
    """Return the diagonal Gaussian fitted to each datum separately."""
    start = GaussianProposal.prior(problem.posterior.mean)
    q = fit_posterior(problem.log_joint, start, steps=steps, generator=generator)
    return FullGaussian(q.mu, torch.diag_embed(q.logvar.exp()))


def amortised(problem: KnownPosterior, steps: int, generator: torch.Generator) -> FullGaussian:
    """Return the posteriors that a linear encoder predicts, trained on other data of the model."""
    D, K = problem.model.weight.shape
    train, _ = problem.model.sample(TRAINING_DATA, generator)
    mu, logvar = nn.Linear(D, K, dtype=torch.float64), nn.Parameter(torch.zeros(K, dtype=torch.float64))
    nn.init.zeros_(mu.weight)
    nn.init.zeros_(mu.bias)
    optimizer = torch.optim.Adam([*mu.parameters(), logvar], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for _ in range(steps):
        x = train[torch.randint(TRAINING_DATA, (BATCH,), generator=generator)]
        codes = mu(x), logvar.expand(BATCH, K)
        gradient = pathwise(partial(problem.log_joint, x=x), *codes, samples=1, generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(codes, [-gradient.mu.mean(0) / BATCH, -gradient.logvar.mean(0) / BATCH])
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return FullGaussian(mu(problem.x), torch.diag(logvar.exp()))


METHODS: dict[str, tuple[Method, Sequence[int]]] = {
    "Metropolis-Hastings": (metropolis_hastings, (100, 400, 1600, 6400)),
    "Gibbs": (gibbs, (100, 400, 1600)),
    "HMC": (hmc, (25, 100, 400, 1600)),
    "mean-field VI": (mean_field, (25, 100, 400, 1600)),
    "amortised VI": (amortised, (25, 100, 400, 1600)),
}


def plot(rows: Sequence[Row]) -> Figure:
    """Return error against model evaluations, one line for each method."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    plot_lines(axes, rows, "evaluations", "kl to the posterior", lambda row: str(row["method"]))
    axes.set(xlabel="evaluations of log p(x, z) for each datum", ylabel="KL to the exact posterior, nats")
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
