"""Annealed importance sampling on a trained VAE beside its cheaper bounds: `python studies/experiments/annealing.py`.

Trains the default VAE on the digits, a few seconds, and measures log p(x) of test images by ELBO, IWAE, importance
sampling and annealing.
"""

import sys
import time
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure

from vaebench.studies.experiments.output import Row, at_least, leave, render
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae.config.run import Run
from vaebench.vae.estimators import ais, evidence
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.prob.proposals import GaussianProposal
from vaebench.vae.training.fit import Result, fit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("annealing", __doc__)
    parser.add_argument("--images", type=at_least(1), default=100, help="test images (default: 100)")
    parser.add_argument("--temperatures", type=at_least(1), default=1000, help="of the annealing (default: 1000)")
    parser.add_argument("--chains", type=at_least(2), default=16, help="for each image (default: 16)")
    parser.add_argument(
        "--start", choices=("q", "prior"), default="q", help="where annealing starts (default: q, widened)"
    )
    options = parser.parse_args(arguments)
    result = fit(Run(), progress=sys.stderr.isatty())
    rows = measure(result, options.images, options.temperatures, options.chains, options.start)
    print(render(rows))
    leave(rows, draw(rows), options)
    return 0


def measure(result: Result, images: int, temperatures: int, chains: int, start: str) -> list[Row]:
    """Return one row for each estimator: the mean log p(x) of the first test images."""
    model, device = result.model, result.splits.test.stored.device
    generator = torch.Generator(device).manual_seed(0)
    x = result.splits.test.batch(torch.arange(images, device=device), generator)
    with torch.no_grad():
        posterior = model.encode(x)
    q = GaussianProposal(posterior.mu, posterior.logvar)
    log_joint = evidence.with_standard_prior(lambda z: model.decode(z).log_prob(x))
    width = evidence.choose_width(log_joint, q, samples=500, generator=generator)

    def annealed() -> Estimate:
        first = q.widened(width) if start == "q" else GaussianProposal.prior(q.mu)
        path = ais.Path(log_joint, first, ais.sigmoid_schedule(temperatures))
        steps = ais.tune_steps(path, generator=generator, progress=True)
        return ais.anneal(path, steps, chains=chains, generator=generator, progress=True)

    estimators: dict[str, Callable[[], Estimate]] = {
        "ELBO": lambda: evidence.elbo(log_joint, q, samples=100, generator=generator),
        "IWAE-100": lambda: evidence.iwae(log_joint, q, k=100, samples=1000, generator=generator),
        "IWAE-5000": lambda: evidence.iwae(log_joint, q, k=5000, samples=10_000, generator=generator),
        f"sampling, q x {width:g}": lambda: evidence.importance_sampling(
            log_joint, q.widened(width), samples=5000, generator=generator
        ),
        f"annealing from {start}": annealed,
    }
    return [_row(name, estimator) for name, estimator in estimators.items()]


def draw(rows: Sequence[Row]) -> Figure:
    """Return the estimates with their standard errors against what they cost."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.errorbar(
            float(row["cost"]), float(row["nats"]), float(row["stderr"]), marker="o", label=str(row["estimator"])
        )
    axes.set(xscale="log", xlabel="evaluations of the model for each image", ylabel="mean log p(x), nats")
    axes.legend()
    return figure


def _row(name: str, estimator: Callable[[], Estimate]) -> Row:
    started = time.perf_counter()
    estimate = estimator()
    nats, stderr = estimate.mean()
    return {
        "estimator": name,
        "kind": estimate.kind,
        "nats": nats,
        "stderr": stderr,
        "ess": estimate.ess.median().item() if estimate.ess is not None else float("nan"),
        "cost": estimate.cost,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    sys.exit(main())
