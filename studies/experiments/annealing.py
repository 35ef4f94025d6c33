"""Annealed importance sampling beside cheaper estimators of log p(x): `python studies/experiments/annealing.py`.

The ELBO of a trained VAE lies several nats below log p(x); annealing estimates log p(x) with the smallest error, at the
highest cost. It trains the default VAE on the digits and prints the mean log p(x) of test images by ELBO, IWAE,
importance sampling and annealing, each with standard error, effective sample size and cost. It takes a minute and a
half.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, limit_count, measure_time, write_results
from vaebench.vae.config.run import Run
from vaebench.vae.estimators import ais, evidence
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.prob.proposals import GaussianProposal
from vaebench.vae.training.fit import Result, fit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--images", 100, "test images; all where there are fewer")
    add_count(parser, "--temperatures", 1000, "temperatures of the annealing")
    add_count(parser, "--chains", 16, "chains for each image", least=2)
    parser.add_argument("--start", choices=("q", "prior"), default="q", help="where annealing starts (q, widened)")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Train the default VAE and estimate log p(x) of its test images."""
    result = fit(Run(), folder=options.folder / parts.FOLDER, progress=sys.stderr.isatty())
    limit_count(options, "images", len(result.splits.test), "test images")
    rows = measure(result, options)
    write_results(rows, plot(rows), options)


def measure(result: Result, options: argparse.Namespace) -> list[Row]:
    """Return one row for each estimator: the mean log p(x) of the first test images."""
    start, temperatures, chains = options.start, options.temperatures, options.chains
    model, device = result.model, result.splits.test.stored.device
    generator = torch.Generator(device).manual_seed(0)
    x = result.splits.test.batch(torch.arange(options.images, device=device), generator)
    with torch.no_grad():
        posterior = model.encode(x)
    q = GaussianProposal(posterior.mu, posterior.logvar)
    log_joint = evidence.with_standard_prior(lambda z: model.decode(z).log_prob(x))
    width = evidence.choose_width(log_joint, q, samples=500, generator=generator)

    def anneal() -> Estimate:
        first = q.widen(width) if start == "q" else GaussianProposal.prior(q.mu)
        path = ais.Path(log_joint, first, ais.sigmoid_schedule(temperatures))
        steps = ais.tune_steps(path, generator=generator, progress=True)
        return ais.anneal(path, steps, chains=chains, generator=generator, progress=True)

    estimators: dict[str, Callable[[], Estimate]] = {
        "ELBO": lambda: evidence.elbo(log_joint, q, samples=100, generator=generator),
        "IWAE-100": lambda: evidence.iwae(log_joint, q, k=100, samples=1000, generator=generator),
        "IWAE-5000": lambda: evidence.iwae(log_joint, q, k=5000, samples=10_000, generator=generator),
        f"sampling, q x {width:g}": lambda: evidence.importance_sampling(
            log_joint, q.widen(width), samples=5000, generator=generator
        ),
        f"annealing from {start}": anneal,
    }
    rows: list[Row] = []
    for name, estimator in estimators.items():
        row, state = parts.keep(options, name, _measure_one, name, estimator, generator)
        generator.set_state(state)  # an estimator that was done before leaves the noise as it left it then
        rows.append(row)
    return rows


def _measure_one(name: str, estimator: Callable[[], Estimate], generator: torch.Generator) -> tuple[Row, Tensor]:
    """Return the row of an estimator, and the state of the generator that it drew from."""
    estimate, seconds = measure_time(estimator)
    nats, stderr = estimate.mean()
    row: Row = {
        "estimator": name,
        "kind": estimate.kind,
        "nats": nats,
        "stderr": stderr,
        "ess": estimate.ess.median().item() if estimate.ess is not None else math.nan,
        "cost": estimate.cost,
        "seconds": seconds,
    }
    return row, generator.get_state()


def plot(rows: Sequence[Row]) -> Figure:
    """Return the estimates with their standard errors against their cost."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        cost, nats, stderr = (float(row[name]) for name in ("cost", "nats", "stderr"))
        axes.errorbar(cost, nats, stderr, marker="o", label=str(row["estimator"]))
    axes.set(xscale="log", xlabel="evaluations of the model for each image", ylabel="mean log p(x), nats")
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
