"""A flow is a VAE whose noise has gone to zero: `python studies/experiments/flow_limit.py`.

With f a flow, g its inverse, J the Jacobian of f at x, and one eps ~ N(0, I) throughout,

    q(z|x) = N(f(x), s^2 J J^T),    p(x|z) = N(g(z), s^2 I):    ELBO -> log p(f(x)) + log |det J|    as s -> 0,

the log-likelihood of the flow, for every eps and not only on average, and so do the gradients. With q(z|x) = N(f(x),
s^2 I) the limit is another: log p(f(x)) + (|eps|^2 - |J^-1 eps|^2) / 2, whose mean lies below unless J is a rotation.
It trains two flows on two moons and prints the errors of bound and gradient for each s. It takes 20 seconds.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import Tensor
from torch.autograd.functional import jvp
from tqdm import tqdm

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, plot_lines, write_results
from vaebench.vae.flows import Autoregressive, Compose, Coupling, Transform, alternating_mask
from vaebench.vae.prob.densities import Gaussian, log_standard_normal

Posterior = Literal["s^2 J J^T", "s^2 I"]

POSTERIORS: tuple[Posterior, ...] = ("s^2 J J^T", "s^2 I")
SCALES = tuple(10 ** (-k / 2) for k in range(1, 11))
DATA, SAMPLES = 256, 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--steps", 400, "steps of maximum likelihood for each flow")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Fit both flows and measure the VAEs that they make."""
    x = torch.from_numpy(make_moons(DATA, noise=0.1, random_state=0)[0])
    rows: list[Row] = []
    for name, flow in flows().items():
        rows += parts.keep(options, name, fit_and_measure, name, flow, x, options.steps)
    write_results(rows, plot(rows), options)


def fit_and_measure(name: str, flow: Transform, x: Tensor, steps: int) -> list[Row]:
    """Fit a flow and return its rows."""
    fit(flow, x, steps, name)
    return list(measure(name, flow, x))


def flows() -> dict[str, Transform]:
    """Return a coupling and an autoregressive flow of two dimensions, in float64."""
    mask, order = alternating_mask(2), torch.arange(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        couplings = [Coupling(mask if i % 2 else ~mask, hidden=(32, 32)) for i in range(6)]
        autoregressions = [Autoregressive(order if i % 2 else order.flip(0), hidden=(32, 32)) for i in range(6)]
    return {"coupling": Compose(*couplings).double(), "autoregressive": Compose(*autoregressions).double()}


def fit(flow: Transform, x: Tensor, steps: int, name: str) -> None:
    """Fit a flow by maximum likelihood on all data at once."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), desc=f"fitting the {name} flow", leave=False):
        optimizer.zero_grad()
        (-log_likelihood(flow, x).mean()).backward()
        optimizer.step()


def log_likelihood(flow: Transform, x: Tensor) -> Tensor:
    """Return log N(f(x); 0, I) + log |det J|, `(..., D) -> (...)`."""
    z, log_det = flow.forward_and_log_det(x)
    return log_standard_normal(z).sum(-1) + log_det


def elbo(flow: Transform, x: Tensor, eps: Tensor, s: float, posterior: Posterior) -> Tensor:
    """Return the ELBO of the VAE that a flow makes, with one eps for each x, `(..., D), (..., D) -> (...)`.

    log p(z) + log p(x|z) - log q(z|x),    z = f(x) + s J eps  or  f(x) + s eps
    """
    (f, log_det), (direction, _) = jvp(flow.forward_and_log_det, x, eps, create_graph=True)
    if posterior == "s^2 I":
        direction, log_det = eps, torch.zeros_like(log_det)
    scale = torch.tensor(s, dtype=x.dtype)
    log_q = log_standard_normal(eps).sum(-1) - x.shape[-1] * scale.log() - log_det
    z = f + s * direction
    return log_standard_normal(z).sum(-1) + Gaussian(flow.inverse_and_log_det(z)[0], scale).log_prob(x) - log_q


def gradient(flow: Transform, objective: Tensor) -> Tensor:
    """Return the gradient of the mean of an objective with respect to all parameters, in one vector."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(objective.mean(), list(flow.parameters()))])


def measure(name: str, flow: Transform, x: Tensor) -> Iterator[Row]:
    """Yield the errors of bound and gradient against the log-likelihood and its gradient, for each q and s."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(SAMPLES, *x.shape, generator=generator, dtype=x.dtype)
    x = x.expand(SAMPLES, -1, -1)
    truth = log_likelihood(flow, x)
    true_gradient = gradient(flow, truth)
    for posterior in POSTERIORS:
        for s in SCALES:
            bound = elbo(flow, x, eps, s, posterior)
            error = (gradient(flow, bound) - true_gradient).norm() / true_gradient.norm()
            yield {
                "flow": name,
                "covariance of q": posterior,
                "s": s,
                "log-likelihood": truth.mean().item(),
                "ELBO": bound.mean().item(),
                "rms error, one eps": (bound - truth).square().mean().sqrt().item(),
                "relative error, gradient": error.item(),
            }


def plot(rows: Sequence[Row]) -> Figure:
    """Return the errors of value and gradient against s: slope 1 with covariance s^2 J J^T, constant with s^2 I."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    errors = ("rms error, one eps", "relative error, gradient")
    for axes, error in zip(figure.subplots(1, 2), errors, strict=True):
        plot_lines(axes, rows, "s", error, lambda row: f"{row['flow']}, {row['covariance of q']}")
        axes.set(xlabel="s", ylabel=error)
    axes.legend(title="flow, covariance of q")
    return figure


if __name__ == "__main__":
    sys.exit(main())
