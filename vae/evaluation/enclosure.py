"""log p(x) enclosed from both sides, on data simulated from the model: bidirectional Monte Carlo.

An estimate of log p(x) from a finite sample is a lower bound in expectation, and on real data nothing tells how far it
falls short. On data that the model has made itself the code z that made x is known, and is an exact draw from p(z|x).
Annealing from it backwards gives an upper bound. Axes: B examples, C chains, K latent size.

References: Grosse et al., Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, 2015; Wu et al., On the
Quantitative Analysis of Decoder-Based Generative Models, 2017.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.errors import InputError
from vaebench.vae.estimators import ais
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import fit_laplace
from vaebench.vae.estimators.log_likelihood import DEFAULT, CheckedEstimate, Policy
from vaebench.vae.evaluation.likelihood import codes_at_once, model_log_likelihood
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.proposals import FullGaussianProposal, GaussianProposal
from vaebench.vae.training.streams import evaluation_generator

EXAMPLES, TEMPERATURES, CHAINS = 64, 100, 16
STDERRS = 2.0
STDERRS_OF_DOUBT = 3.0
FEWEST_JUDGED = 8  # examples

ValueAndStderr = tuple[float, float]


@dataclass(frozen=True)
class Enclosure:
    """Bounds of log p(x) of B simulated examples, beside the usual estimate of it.

    All chains back from an example start at the one code that made it. Their spread misses the spread of that code, so
    every error here comes from the spread of differences over the examples.

    Attributes:
        lower: `(B,)`, at most log p(x) in expectation, by annealing from a Gaussian fitted to the posterior.
        upper: `(B,)`, at least log p(x) in expectation, by annealing from the exact draw from the posterior.
        estimate: what `model_log_likelihood` says of the same examples.
        evaluations: evaluations of log p(x, z) for each example that both bounds took, mean.
    """

    lower: Tensor
    upper: Tensor
    estimate: CheckedEstimate
    evaluations: float

    @property
    def width(self) -> ValueAndStderr:
        """Return the mean of upper - lower, at least 0 in expectation, and its standard error.

        The noise of the two bounds is independent given x, so that the error is at least that of either bound.
        """
        return mean_and_stderr(self.upper - self.lower)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the limits of the mean log p(x) of these examples: both bounds, moved out by two standard errors."""
        return interval_of(self.metrics())

    @property
    def shortfall(self) -> ValueAndStderr:
        """Return by how much the estimate lies too low at most: the mean of upper - estimate, with its error."""
        return mean_and_stderr(self.upper - self.estimate.value)

    @property
    def excess(self) -> ValueAndStderr:
        """Return by how much the estimate lies too high at most: the mean of estimate - lower, with its error."""
        return mean_and_stderr(self.estimate.value - self.lower)

    def metrics(self) -> dict[str, float]:
        """Return the figures under the names by which they are logged, in nats of log p(x)."""
        return {
            "enclosure/lower": self.lower.double().mean().item(),
            "enclosure/upper": self.upper.double().mean().item(),
            "enclosure/width": self.width[0],
            "enclosure/width_stderr": self.width[1],
            "enclosure/log_px": self.estimate.mean()[0],
            "enclosure/shortfall": self.shortfall[0],
            "enclosure/shortfall_stderr": self.shortfall[1],
            "enclosure/excess": self.excess[0],
            "enclosure/excess_stderr": self.excess[1],
            "enclosure/unresolved": float(self.estimate.unresolved),
            "enclosure/examples": float(len(self.lower)),
        }

    def __str__(self) -> str:
        return describe(self.metrics())


@torch.no_grad()
def enclose(
    model: GenerativeModel,
    examples: int = EXAMPLES,
    *,
    seed: int = 0,
    temperatures: int = TEMPERATURES,
    chains: int = CHAINS,
    policy: Policy = DEFAULT,
    progress: bool = False,
) -> Enclosure:
    """Simulate examples from the model, and enclose their log p(x) by annealing in both directions.

    The bounds judge the estimate of this policy: give it the `eval.samples` of the run. With a posterior flow all of it
    takes place in the space of z0, to which the flow maps the code that made x.
    """
    if examples < 2:
        raise InputError(f"an enclosure needs at least 2 examples, for its standard error, got {examples}.")
    if not model.has_codes:
        raise InputError("log p(x) of a flow as a model of its own is exact: there is nothing to enclose.")
    model.eval()
    like = next(itertools.chain(model.parameters(), model.buffers()))
    generator = evaluation_generator(seed, like.device)
    x, exact = simulate(model, like.new_zeros(examples, model.latent), generator)
    log_joint, q = model.base_joint(x)
    joint, bounds = CountedJoint(log_joint, q.mu, codes_at_once(x)), []
    with tqdm(total=examples, desc="enclosure", unit="example", leave=False, disable=not progress) as bar:
        for rows in joint.rows.split(joint.data_at_once(chains)):
            start = fit_laplace(joint, rows, GaussianProposal(q.mu, q.logvar).select(rows)).widen(ais.START_WIDTH)
            drawn = exact[rows].expand(chains, -1, -1)
            bounds.append(_anneal_both_ways(joint, rows, start, drawn, temperatures, generator, progress))
            bar.update(len(rows))
    estimate = model_log_likelihood(model, x, policy=policy, generator=generator, progress=progress)
    lower, upper = (torch.cat(parts) for parts in zip(*bounds, strict=True))
    return Enclosure(lower, upper, estimate, joint.spent.mean().item())


@torch.no_grad()
def simulate(model: GenerativeModel, like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return examples x and the codes z0 of a model that made them: one for each row of `like` `(B, K)`.

    z ~ p(z), x ~ p(x|z); without a posterior flow z0 is z. Given x, z0 is a draw from the posterior p(z0|x).
    """
    z = model.prior(like).rsample(generator)
    x = model.decode(z).sample(generator)
    if model.posterior_flow is None:
        return x, z
    _, context = model.encode_with_context(x)
    return x, model.posterior_flow.forward_and_log_det(z, context)[0]


def _anneal_both_ways(
    joint: CountedJoint,
    rows: Tensor,
    start: FullGaussianProposal,
    exact: Tensor,
    temperatures: int,
    generator: torch.Generator,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper bounds of the indexed examples, `(b,)`, from exact posterior draws `(C, b, K)`."""
    path = ais.whitened_path(lambda z: joint.differentiable(z, rows), start, temperatures)
    steps = ais.tune_steps(path, generator=generator, progress=progress)
    lower = ais.anneal(path, steps, chains=len(exact), generator=generator, progress=progress)
    upper = ais.anneal_back(path, steps, start.whiten(exact), generator=generator, progress=progress)
    return lower.value, upper.value


def mean_and_stderr(values: Tensor) -> ValueAndStderr:
    """Return the mean over independent examples `(B,)` and its standard error."""
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def interval_of(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Return both bounds of logged figures, moved out by two standard errors."""
    margin = STDERRS * metrics["enclosure/width_stderr"]
    return metrics["enclosure/lower"] - margin, metrics["enclosure/upper"] + margin


def describe(metrics: Mapping[str, float]) -> str:
    """Return a sentence on logged figures: the interval, and the estimate beside it, which may be a lower bound."""
    (low, high), examples = interval_of(metrics), metrics["enclosure/examples"]
    unresolved, estimate = metrics["enclosure/unresolved"], f"{metrics['enclosure/log_px']:.3f}"
    if unresolved:
        estimate = f">= {estimate} ({unresolved:.0f} of {examples:.0f} examples unresolved)"
    shortfall, upper = metrics["enclosure/shortfall"], metrics["enclosure/upper"]
    return (
        f"on simulated data log p(x) lies within [{low:.3f}, {high:.3f}]: the mean of {examples:.0f} examples, "
        f"{STDERRS:g} standard errors included; the estimate is {estimate}, and the upper bound without its error, "
        f"{upper:.3f}, lies {abs(shortfall):.3f} ± {metrics['enclosure/shortfall_stderr']:.3f} nats "
        f"{'above' if shortfall >= 0 else 'below'} it"
    )


def find_estimate_outside(metrics: Mapping[str, float]) -> str:
    """Return how far the estimate of logged figures lies outside its bounds, beyond the errors; empty if it does not.

    An estimate below the lower bound is no surprise where some examples are unresolved, which is told elsewhere. The
    standard error of a few examples is itself in doubt, so that nothing is said of fewer than eight.
    """
    if metrics.get("enclosure/examples", math.inf) < FEWEST_JUDGED:
        return ""
    judged = [("shortfall", "above", "upper", "low")]
    if metrics.get("enclosure/unresolved") == 0:
        judged.insert(0, ("excess", "below", "lower", "high"))
    for figure, side, bound, error in judged:
        distance = -metrics.get(f"enclosure/{figure}", math.nan)
        stderr = metrics.get(f"enclosure/{figure}_stderr", math.nan)
        if distance > STDERRS_OF_DOUBT * stderr:
            return f"{distance:.2f} ± {stderr:.2f} nats {side} the {bound} bound, so that nll is too {error}"
    return ""
