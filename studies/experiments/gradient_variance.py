"""Variance of the estimators of the ELBO's gradient: `python studies/experiments/gradient_variance.py`.

On probabilistic PCA, with a q near the best one, the score function with a baseline has the lower variance for one or
two latents, and the pathwise estimator for more. It prints the variance of each estimator of d ELBO / d mu and the
distance of its mean from the known gradient, for each latent size and number of samples. It takes ten seconds.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, plot_lines, write_results
from vaebench.vae.estimators.elbo_gradients import GaussianGradient, pathwise, score_function
from vaebench.vae.estimators.exact import FullGaussian, ProbabilisticPCA
from vaebench.vae.prob.proposals import GaussianProposal

LATENT_SIZES = (1, 2, 4, 8, 16, 32)
SAMPLES = (2, 4, 16, 64)
BASELINE_SAMPLES = 100

Estimator = Callable[[int], GaussianGradient]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--repeats", 2000, "independent estimates for each row", least=2, most=20_000)
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Measure the estimators for each latent size."""
    rows = [row for K in LATENT_SIZES for row in parts.keep(options, K, measure, K, options.repeats)]
    write_results(rows, plot(rows), options)


def measure(K: int, repeats: int) -> list[Row]:
    """Return the variance of each estimator of d ELBO / d mu, summed over K, and how far its mean is from the truth."""
    generator = torch.Generator().manual_seed(K)
    basis = torch.linalg.qr(torch.randn(2 * K, K, generator=generator, dtype=torch.float64)).Q
    model = ProbabilisticPCA(basis, torch.zeros(2 * K, dtype=torch.float64), 0.5)
    x = model.sample(1, generator)[0].expand(repeats, -1)
    mu, logvar = model.best_diagonal(x)
    mu, logvar = mu + 0.3, logvar + 0.2
    exact = exact_gradient(model, x, mu, logvar)
    rows: list[Row] = []
    for name, estimator in estimators(model, x, mu, logvar, generator).items():
        for samples in SAMPLES:
            estimates = estimator(samples).mu.mean(0)
            variance = estimates.var(0).sum().item()
            error = (estimates.mean(0) - exact).square().sum().sqrt().item()
            row: Row = {
                "K": K,
                "estimator": name,
                "samples": samples,
                "variance": variance,
                "distance of the mean": error,
            }
            rows.append(row)
    return rows


def estimators(
    model: ProbabilisticPCA, x: Tensor, mu: Tensor, logvar: Tensor, generator: torch.Generator
) -> dict[str, Estimator]:
    """Return the estimators by name, each a function of the number of samples."""

    def log_joint(z: Tensor) -> Tensor:
        return model.log_joint(x, z)

    q = GaussianProposal(mu, logvar)
    z = q.sample(BASELINE_SAMPLES, generator)
    mean_log_weight = (log_joint(z) - q.log_prob(z)).mean(0)
    return {
        "pathwise": lambda S: pathwise(log_joint, mu, logvar, samples=S, generator=generator),
        "score": lambda S: score_function(log_joint, mu, logvar, samples=S, generator=generator),
        "score, baseline": lambda S: score_function(
            log_joint, mu, logvar, samples=S, baseline=mean_log_weight, generator=generator
        ),
        "score, leave one out": lambda S: score_function(
            log_joint, mu, logvar, samples=S, baseline="leave_one_out", generator=generator
        ),
    }


def exact_gradient(model: ProbabilisticPCA, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Return d ELBO / d mu of the first datum, by automatic differentiation of the closed form, `(K,)`."""
    leaf = mu[:1].clone().requires_grad_()
    bound = model.elbo(x[:1], FullGaussian(leaf, torch.diag_embed(logvar[:1].exp())))
    return torch.autograd.grad(bound.sum(), leaf)[0][0]


def plot(rows: Sequence[Row]) -> Figure:
    """Return variance against samples at K = 8, and against K at 16 samples."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, x, fixed, value in ((left, "samples", "K", 8), (right, "K", "samples", 16)):
        chosen = [row for row in rows if row[fixed] == value]
        plot_lines(axes, chosen, x, "variance", lambda row: str(row["estimator"]))
        axes.set_xscale("log", base=2)
    left.set(xlabel="samples (K = 8)", ylabel="variance of d ELBO / d mu")
    right.set(xlabel="latent size K (16 samples)")
    left.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
