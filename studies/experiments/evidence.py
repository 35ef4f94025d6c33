"""Estimators of log p(x) against the truth, error against cost: `python studies/experiments/evidence.py`.

It prints how far the estimates lie from log p(x), and how many evaluations of log p(x, z) they take. Codes are drawn
import argparse
from the prior, from q, from q widened, from q mixed with a wider q, or from a Gaussian fitted to the posterior; the
policy of the project fits, judges and escalates; annealing starts at the prior or at q. A grid is exact for K = 2, and
refused for K = 8. The truth is exact for probabilistic PCA of K = 2, 16 and 64 latents, and for a mixture of such
models, whose posteriors have several modes. The truth of a VAE of the digits is a long annealing with an error of its
own. The printed table has the largest size of each estimator, table.csv all of them. It takes two minutes on two cores.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaebench.studies.experiments import output, parallel
from vaebench.studies.experiments.known_evidence import DIGITS, PROBLEMS, Problem, anneal, mean_cost
from vaebench.studies.experiments.output import Row, add_count, command_line, write_results
from vaebench.vae.data import load
from vaebench.vae.estimators import evidence
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import fit_laplace
from vaebench.vae.estimators.log_likelihood import CheckedEstimate, Policy, log_likelihood
from vaebench.vae.prob.proposals import DefensiveMixture, GaussianProposal, Proposal

SAMPLES = (100, 1000, 10_000)
POLICY_SAMPLES = (200, 1000, 5000)
TEMPERATURES = (10, 50, 250)
CHAINS = 16
POINTS = (17, 65, 257)
WIDTH_SAMPLES = 100
WIDE = 2.0
NINETY_NINE = 2.5758
ROUNDING = 1e-9
EXACT = 1e-5
GRID, POLICY, VAE = "Riemann sum", "fitted, judged, escalated", "vae"

Estimator = Callable[[Problem, int, torch.Generator], Estimate]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--data", 100, "data points of each exact model", most=10_000)
    add_count(parser, "--images", 30, "images of the VAE", most=360)
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Measure every estimator on every problem, side by side."""
    counts = {name: options.images if name == VAE else options.data for name in PROBLEMS}
    tasks = {name: [(name, count)] for name, count in sorted(counts.items(), key=lambda item: item[0] != VAE)}
    found = parallel.map_groups(measure_problem, tasks, load(DIGITS.data).shape, options)
    rows = [row for name in PROBLEMS for row in found[name][0]]
    largest = {(row["problem"], row["estimator"]): row for row in rows}
    print(refuse_grid())
    write_results(rows, plot(rows), options, printed=list(largest.values()))


def measure_problem(task: tuple[str, int]) -> list[Row]:
    """Build a problem, by name, of so many data, and measure every estimator on it."""
    name, data = task
    return list(measure(PROBLEMS[name](data)))


def weigh(problem: Problem, joint: CountedJoint, proposal: Proposal, S: int, generator: torch.Generator) -> Estimate:
    """Estimate log p(x) by importance sampling; the cost includes what was spent on the proposal."""
    found = evidence.importance_sampling(lambda z: joint(z, joint.rows), proposal, samples=S, generator=generator)
    return replace(found, cost=mean_cost(joint))


def sample_prior(problem: Problem, S: int, generator: torch.Generator) -> Estimate:
    """Draw codes from N(0, I), which is the prior of every problem here."""
    return weigh(problem, problem.count(), GaussianProposal.prior(problem.q.mu), S, generator)


def sample_q(problem: Problem, S: int, generator: torch.Generator) -> Estimate:
    """Draw codes from q."""
    return weigh(problem, problem.count(), problem.q, S, generator)


def sample_widened(problem: Problem, S: int, generator: torch.Generator) -> Estimate:
    """Draw codes from q widened by the best of four factors."""
    joint = problem.count()
    width = evidence.choose_width(lambda z: joint(z, joint.rows), problem.q, samples=WIDTH_SAMPLES, generator=generator)
    return weigh(problem, joint, problem.q.widen(width), S, generator)


def sample_defended(problem: Problem, S: int, generator: torch.Generator) -> Estimate:
    """Draw half of the codes from q, and half from a q twice as wide."""
    return weigh(problem, problem.count(), DefensiveMixture(problem.q, problem.q.widen(WIDE)), S, generator)


def sample_fitted(problem: Problem, S: int, generator: torch.Generator) -> Estimate:
    """Draw codes from a Gaussian fitted to the posterior."""
    joint = problem.count()
    return weigh(problem, joint, fit_laplace(joint, joint.rows, problem.q), S, generator)


def follow_policy(problem: Problem, S: int, generator: torch.Generator) -> Estimate:
    """Fit, weigh, escalate and tell, with S codes in the first attempt."""
    return log_likelihood(problem.log_joint, problem.q, policy=Policy(samples=S), generator=generator)


def anneal_from_prior(problem: Problem, temperatures: int, generator: torch.Generator) -> Estimate:
    """Anneal from N(0, I)."""
    return anneal(problem, GaussianProposal.prior(problem.q.mu), temperatures, CHAINS, generator)


def anneal_from_q(problem: Problem, temperatures: int, generator: torch.Generator) -> Estimate:
    """Anneal from q."""
    return anneal(problem, problem.q, temperatures, CHAINS, generator)


def sum_grid(problem: Problem, points: int, generator: torch.Generator) -> Estimate:
    """Integrate over a grid; nothing is drawn."""
    rows = torch.arange(len(problem.q))
    return evidence.riemann_sum(lambda z: problem.log_joint(z, rows), problem.q.mu, points=points)


ESTIMATORS: dict[str, tuple[Estimator, Sequence[int]]] = {
    "prior": (sample_prior, SAMPLES),
    "q": (sample_q, SAMPLES),
    "q, widened": (sample_widened, SAMPLES),
    "q, and q twice as wide": (sample_defended, SAMPLES),
    "fitted Gaussian": (sample_fitted, SAMPLES),
    POLICY: (follow_policy, POLICY_SAMPLES),
    "annealing from the prior": (anneal_from_prior, TEMPERATURES),
    "annealing from q": (anneal_from_q, TEMPERATURES),
    GRID: (sum_grid, POINTS),
}


def measure(problem: Problem) -> Iterator[Row]:
    """Yield one row for each estimator and size: its bias, its error, how often its 99 % interval holds the truth."""
    generator = torch.Generator().manual_seed(0)
    for name, (estimator, sizes) in ESTIMATORS.items():
        if name == GRID and problem.q.mu.shape[1] > 2:
            continue
        for size in sizes:
            estimate, seconds = output.measure_time(estimator, problem, size, generator)
            yield {"problem": problem.name, "estimator": name, **compare(estimate, problem.truth), "seconds": seconds}


def compare(estimate: Estimate, truth: Estimate) -> dict[str, str | int | float]:
    """Return what an estimate costs, and how it relates to the truth, whose error `truth +-` is 0 if it is exact."""
    error = estimate.value - truth.value
    covered = error.abs() <= NINETY_NINE * torch.hypot(estimate.stderr, truth.stderr) + ROUNDING
    return {
        "cost": estimate.cost,
        "bias": error.mean().item(),
        "rmse": error.square().mean().sqrt().item(),
        "truth +-": truth.stderr.square().mean().sqrt().item(),
        "covered": covered.double().mean().item() if estimate.kind != "exact" else math.nan,
        "ess": estimate.ess.median().item() if estimate.ess is not None else math.nan,
        "tail": estimate.tail.median().item() if estimate.tail is not None else math.nan,
        "unresolved": estimate.unresolved if isinstance(estimate, CheckedEstimate) else math.nan,
    }


def refuse_grid() -> str:
    """Return the sentence with which the Riemann sum refuses a grid that is too large."""
    try:
        evidence.riemann_sum(lambda z: z.sum(-1), torch.zeros(1, 8), points=33)
    except ValueError as error:
        return f"K = 8: {error}\n"
    raise AssertionError("the Riemann sum accepted 33^8 cells")


STYLES: dict[str, dict[str, object]] = {
    "prior": {"color": "0.6", "marker": "o"},
    "q": {"color": "C0", "marker": "o"},
    "q, widened": {"color": "C9", "marker": "s"},
    "q, and q twice as wide": {"color": "C4", "marker": "^"},
    "fitted Gaussian": {"color": "C1", "marker": "D"},
    POLICY: {"color": "C3", "marker": "o", "linewidth": 2.5, "zorder": 3},
    "annealing from the prior": {"color": "C2", "marker": "v", "linestyle": "--"},
    "annealing from q": {"color": "C2", "marker": "v"},
    GRID: {"color": "C5", "marker": "P"},
}


def plot(rows: Sequence[Row]) -> Figure:
    """Return one panel for each problem: root mean squared error in nats against evaluations of log p(x, z)."""
    problems = output.group_by(rows, lambda row: str(row["problem"]))
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = list(figure.subplots(2, 3, sharex=True, sharey="row").flat)
    for panel, (problem, lines) in zip(panels, problems.items(), strict=False):
        plot_problem(panel, problem, lines)
        panel.tick_params(labelbottom=True)
    for panel in panels[len(problems) :]:
        panel.axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False, fontsize="x-large")
    figure.supxlabel("evaluations of log p(x, z) for each datum")
    figure.supylabel("root mean squared error of log p(x), nats")
    return figure


def plot_problem(axes: Axes, problem: str, rows: Sequence[Row]) -> None:
    """Plot the error of every estimator against its cost; the grey area is the error of the truth.

    Errors below `EXACT` are drawn at it.
    """
    for name, line in output.group_by(rows, lambda row: str(row["estimator"])).items():
        costs, errors = [row["cost"] for row in line], [max(float(row["rmse"]), EXACT) for row in line]
        axes.loglog(costs, errors, label=name, **STYLES[name])
    if rows[0]["truth +-"]:
        axes.axhspan(EXACT, float(rows[0]["truth +-"]), color="0.9", linewidth=0)
        axes.text(0.03, 0.04, "less than the error of the truth", transform=axes.transAxes, color="0.3")
    least = min(float(row["rmse"]) for row in rows)
    axes.set_title(problem)
    ticks = [EXACT, 0.0001, 0.001, 0.01, 0.1, 1, 10, 100]
    axes.set_yticks(ticks, ["exact", *(f"{tick:g}" for tick in ticks[1:])])
    axes.set_ylim(EXACT / 2 if least < EXACT else 0.01, 200)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    sys.exit(main())
