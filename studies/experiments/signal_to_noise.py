"""Signal-to-noise ratio of the encoder's gradients of IWAE against k: `python studies/experiments/signal_to_noise.py`.

On probabilistic PCA, under a q beside the posterior and wider, or narrower. The plain gradient's ratio falls like
1 / sqrt(k). The ratio of the doubly reparameterised one rises like sqrt(k) under the wider q; under the narrower one
E_q w^4 is infinite, and it falls. It prints for each k the length of the mean gradient in q's mean and log variance,
the root of its total variance, their ratio, and what is known of it: the exact value at k = 1, and the limit of large
k, both from integrals of Gaussians. It takes a quarter of a minute.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, write_results
from vaebench.vae.config.objective import Batch
from vaebench.vae.estimators.exact import ProbabilisticPCA
from vaebench.vae.objective import IWAE
from vaebench.vae.prob.densities import DiagonalGaussian
from vaebench.vae.prob.draws import normal_like
from vaebench.vae.prob.terms import Terms

ORDERS = tuple(2**i for i in range(9))
GRADIENTS: tuple[Literal["dreg", "plain"], ...] = ("dreg", "plain")
SHIFT = (0.3, -0.2)
LOG_WIDENING = {"wider q": (0.4, 0.2), "narrower q": (math.log(2 / 3), math.log(2 / 3))}
CODES_AT_ONCE = 2**19
RADIUS, NODES = 16.0, 801


@dataclass(frozen=True)
class Problem:
    """One datum x, `(1, D)`, of a probabilistic PCA, and a q of its code: mu and logvar, `(1, K)`."""

    model: ProbabilisticPCA
    x: Tensor
    mu: Tensor
    logvar: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--repeats", 20_000, "independent gradients for each row", least=2, most=10**6)
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Measure both gradients with each q."""
    rows = [row for q in LOG_WIDENING for row in parts.keep(options, q, measure, q, options.repeats)]
    write_results(rows, plot(rows), options)


def build(q: str) -> Problem:
    """Return a datum of two latents whose posterior is diagonal, with a q of this name."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=torch.float64)).Q
    model = ProbabilisticPCA(basis * torch.tensor([3.0, 1.0]), torch.zeros(4, dtype=torch.float64), 1.0)
    x = model.sample(1, generator)[0]
    mu, logvar = model.best_diagonal(x)
    return Problem(model, x, mu + mu.new_tensor(SHIFT), logvar + logvar.new_tensor(LOG_WIDENING[q]))


def measure(q: str, repeats: int, orders: Sequence[int] = ORDERS) -> list[Row]:
    """Return a row for each gradient and k."""
    problem = build(q)
    rows: list[Row] = []
    for gradient in GRADIENTS:
        limit = limit_ratio(problem, gradient)
        for k in orders:
            sample = draw_gradients(problem, IWAE(samples=k, gradient=gradient), repeats)
            variance = sample.var(0).sum()
            signal = (sample.mean(0).square().sum() - variance / repeats).clamp_min(0).sqrt()  # the mean's noise apart
            rows.append(
                {
                    "q": q,
                    "gradient": gradient,
                    "k": k,
                    "signal": signal.item(),
                    "noise": variance.sqrt().item(),
                    "ratio": (signal / variance.sqrt()).item(),
                    "exact": exact_ratio(problem, gradient) if k == 1 else math.nan,
                    "limit": limit * math.sqrt(k if gradient == "dreg" else 1 / k),
                }
            )
    return rows


def draw_gradients(problem: Problem, objective: IWAE, repeats: int, seed: int = 0) -> Tensor:
    """Return independent gradients of the bound in q's mean and log variance, `(repeats, 2K)`."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.arange(repeats).split(max(1, CODES_AT_ONCE // objective.samples))
    return torch.cat([_gradients(problem, objective, len(block), generator) for block in blocks])


def _gradients(problem: Problem, objective: IWAE, count: int, generator: torch.Generator) -> Tensor:
    leaf = torch.cat([problem.mu, problem.logvar], dim=1).repeat(count, 1).requires_grad_()
    mu, logvar = leaf.chunk(2, dim=1)
    eps = normal_like(mu.new_empty(objective.samples, *mu.shape), generator)
    z = mu + torch.exp(0.5 * logvar) * eps
    log_px = problem.model.log_likelihood(problem.x, z)
    terms = Terms(log_px, torch.zeros_like(log_px), z, DiagonalGaussian(mu, logvar))
    bound, _ = objective.value(terms, {"warmup": 1.0}, Batch(count))
    (gradient,) = torch.autograd.grad(count * bound, leaf)
    return gradient


def exact_ratio(problem: Problem, gradient: str) -> float:
    """Return the ratio of one draw, |E g| / sqrt(sum of Var g), by quadrature over its noise."""
    density, _, g = integrands(problem, gradient)
    mean, variance = mean_and_variance(density, g)
    return (mean.norm() / variance.sqrt()).item()


def mean_and_variance(density: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean `(2K,)` of values `(n, 2K)` under a density on the grid, `(n,)`, and their total variance."""
    mean = (density[:, None] * values).sum(0)
    return mean, (density[:, None] * (values - mean).square()).sum()


def limit_ratio(problem: Problem, gradient: str) -> float:
    """Return the limit of ratio * sqrt(k), or of dreg ratio / sqrt(k); NaN where no limit exists.

    With r = w / p(x), E r = 1, g = d log w, and h = (d log w / dz) dz at constant parameters of the density q

        plain: sum v g ~ 1/k sum r g,              of mean A / k and variance E[r^2 g^2] / k
        dreg:  sum v^2 h ~ 1/k^2 sum r^2 h / rbar^2, of mean A / k and variance Var[r^2 h - 2 A r] / k^3

    where A = E[r^2 h], and rbar is the mean of the k values of r.
    """
    variance_ratio = problem.model.precision().diagonal() * problem.logvar[0].exp()
    if gradient == "dreg" and bool((4 * variance_ratio <= 3).any()):
        return math.nan  # E w^4, the integral of p(z|x)^4 / q^3, is infinite
    density, r, h = integrands(problem, "dreg")
    A = (density[:, None] * r[:, None].square() * h).sum(0)
    if gradient == "dreg":
        _, variance = mean_and_variance(density, r[:, None].square() * h - 2 * A * r[:, None])
    else:
        _, _, g = integrands(problem, "plain")
        variance = (density[:, None] * r[:, None].square() * g.square()).sum()
    return (A.norm() / variance.sqrt()).item()


def integrands(problem: Problem, gradient: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return for nodes of a grid of eps N(eps; 0, I) times the cell, r, and the gradient, `(n,)`, `(n,)`, `(n, 2K)`.

    With P the precision of the diagonal posterior, m its mean, d = mu - m and z = mu + s eps

        log r = 1/2 sum_k log P s^2 - P (d + s eps)^2 + eps^2
        plain: d/dmu = -P (d + s eps),              d/dlogvar = 1/2 s eps d/dmu + 1/2
        dreg:  d/dmu = -P (d + s eps) + eps / s,    d/dlogvar = 1/2 s eps d/dmu
    """
    axis = torch.linspace(-RADIUS, RADIUS, NODES, dtype=torch.float64)
    eps = torch.cartesian_prod(axis, axis)
    P, s = problem.model.precision().diagonal(), torch.exp(0.5 * problem.logvar[0])
    z = problem.mu[0] - problem.model.posterior(problem.x).mean[0] + s * eps
    density = torch.exp(-0.5 * eps.square().sum(1)) / (2 * math.pi) * (axis[1] - axis[0]).square()
    r = torch.exp(0.5 * ((P * s.square()).log() - P * z.square() + eps.square()).sum(1))
    path = -P * z + (eps / s if gradient == "dreg" else 0)
    slope = 0.5 * s * eps * path + (0 if gradient == "dreg" else 0.5)
    return density, r, torch.cat([path, slope], dim=1)


def plot(rows: Sequence[Row]) -> Figure:
    """Return the ratios against k, with the exact ones at k = 1 and the limits."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, q in zip(figure.subplots(1, len(LOG_WIDENING), sharey=True), LOG_WIDENING, strict=True):
        for color, gradient in zip(("C0", "C1"), GRADIENTS, strict=True):
            own = [row for row in rows if (row["q"], row["gradient"]) == (q, gradient)]
            k = [row["k"] for row in own]
            axes.loglog(k, [row["ratio"] for row in own], "o-", color=color, label=gradient)
            axes.loglog(k, [row["limit"] for row in own], ":", color=color, label=f"{gradient}, limit of large k")
            axes.loglog(k, [row["exact"] for row in own], "x", color="black", markersize=10, zorder=3)
        axes.set(title=q, xlabel="draws k")
        axes.set_xscale("log", base=2)
    figure.axes[0].set_ylabel("signal-to-noise ratio of the gradient (x: exact)")
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
