"""Annealed importance sampling: log p(x) along a path of densities from a tractable start to the joint.

    log f_t(z) = (1 - b_t) log start(z) + b_t log p(x, z),    0 = b_0 < b_1 < ... < b_T = 1

Forwards it gives a lower bound of log p(x) in expectation, backwards from an exact posterior sample an upper bound:
bidirectional Monte Carlo (BDMC). Axes: C chains, B data, K latent size, T temperatures; z is `(C, B, K)`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.estimators.evidence import Estimate, estimate_from_log_weights, require_two
from vaebench.vae.estimators.mcmc import ChainState, hmc_transition
from vaebench.vae.prob.densities import LogDensity
from vaebench.vae.prob.proposals import FullGaussianProposal, GaussianProposal, Proposal

START_WIDTH = 1.2
LEAPFROG_STEPS = 4
TARGET_ACCEPTANCE = 0.65
TUNING_GAIN = 0.3
TUNING_CHAINS = 4


@dataclass(frozen=True)
class Path:
    """An annealing path with one HMC transition at each intermediate temperature.

    Attributes:
        log_joint: log p(x, z) for the data x in its closure.
        start: the prior, or a q(z|x), which is closer to the posterior.
        schedule: b, `(T + 1,)`, rising from 0 to 1.
        leapfrog_steps: leapfrog steps of each transition.
    """

    log_joint: LogDensity
    start: Proposal
    schedule: Tensor
    leapfrog_steps: int = 5

    def __post_init__(self) -> None:
        ends = self.schedule[[0, -1]].tolist()
        if len(self.schedule) < 2 or ends != [0.0, 1.0] or not bool((self.schedule.diff() > 0).all()):
            raise ValueError(f"schedule must rise from 0 to 1, got {len(self.schedule)} values from {ends}.")

    @property
    def temperatures(self) -> int:
        """Return T, the number of steps from start to joint."""
        return len(self.schedule) - 1

    def state(self, t: int, z: Tensor) -> ChainState:
        """Return the chain state at z: log f_t and its gradient."""
        return ChainState.at(self.log_density(t), z)

    def log_density(self, t: int) -> LogDensity:
        """Return log f_t."""
        b = self.schedule[t].item()
        return lambda z: (1 - b) * self.start.log_prob(z) + b * self.log_joint(z)

    def log_increment(self, t: int, state: ChainState) -> Tensor:
        """Return log f_t(z) - log f_{t-1}(z), `(C, B)`, from a state at f_t, so that the model is not run again.

        log f_t - log f_{t-1} = (b_t - b_{t-1}) (log p(x, z) - log start(z)) = (1 - b_{t-1} / b_t) (log f_t - log start)
        """
        share = 1 - (self.schedule[t - 1] / self.schedule[t]).item()
        return share * (state.log_p - self.start.log_prob(state.z))


def sigmoid_schedule(temperatures: int, sharpness: float = 4.0) -> Tensor:
    """Return b_t, `(T + 1,)`, which moves slowly near both ends.

        b_t = (s(t) - s(0)) / (s(T) - s(0)),    s(t) = sigmoid(sharpness * (2 t / T - 1))

    Reference: Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models, 2017.
    """
    if temperatures < 1:
        raise ValueError(f"temperatures must be at least 1, got {temperatures}.")
    s = torch.sigmoid(sharpness * torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])


def whitened_path(log_joint: LogDensity, start: FullGaussianProposal, temperatures: int) -> Path:
    """Return the path from a Gaussian fitted to the posterior, in the coordinates u in which it is N(0, I).

        log p(x, u) = log p(x, z) + sum_k log std_k,    z = start.colour(u)

    There one step size suits every direction. The integral over u is p(x), as that over z is. Widen the fit by
    START_WIDTH first, so that the start covers the posterior.
    """
    log_volume = start.std.log().sum(-1)
    return Path(
        lambda u: log_joint(start.colour(u)) + log_volume,
        GaussianProposal.prior(start.mu),
        sigmoid_schedule(temperatures),
        LEAPFROG_STEPS,
    )


def tune_steps(path: Path, *, generator: torch.Generator | None = None, progress: bool = False) -> Tensor:
    """Return HMC step sizes for each temperature and datum, `(T + 1, B)`, tuned on a separate run.

    After each transition the log step changes in proportion to the acceptance's distance from 0.65. Annealing is
    unbiased only with steps that do not depend on its own chains, so `anneal` and `anneal_back` keep them fixed.
    """
    z = path.start.sample(TUNING_CHAINS, generator)
    log_step = z.new_full((z.shape[1],), 0.2).log()
    steps = [log_step]
    for t in _show_progress(range(1, path.temperatures + 1), "tuning step sizes", progress):
        steps.append(log_step)
        moved, acceptance = hmc_transition(
            path.log_density(t), path.state(t, z), log_step.exp(), path.leapfrog_steps, generator
        )
        z, log_step = moved.z, log_step + TUNING_GAIN * (acceptance.mean(0) - TARGET_ACCEPTANCE)
    return torch.stack(steps).exp()


def anneal(
    path: Path, steps: Tensor, *, chains: int, generator: torch.Generator | None = None, progress: bool = False
) -> Estimate:
    """Estimate log p(x) by annealed importance sampling from the start to the joint.

        log w = sum_t [log f_t(z_{t-1}) - log f_{t-1}(z_{t-1})],    z_0 ~ start,    z_t ~ HMC that leaves f_t invariant

    E w = p(x), so log (1/C sum_c w_c) is a lower bound of log p(x) in expectation.

    Reference: Neal, Annealed Importance Sampling, 2001.
    """
    require_two("chains", chains)
    z = path.start.sample(chains, generator)
    log_w_CB = z.new_zeros(z.shape[:2])
    for t in _show_progress(range(1, path.temperatures + 1), "annealing", progress):
        state = path.state(t, z)
        log_w_CB += path.log_increment(t, state)
        if t < path.temperatures:
            moved, _ = hmc_transition(path.log_density(t), state, steps[t], path.leapfrog_steps, generator)
            z = moved.z
    return estimate_from_log_weights(log_w_CB, "unbiased", cost=chains * _count_model_runs(path))


def anneal_back(
    path: Path, steps: Tensor, exact: Tensor, *, generator: torch.Generator | None = None, progress: bool = False
) -> Estimate:
    """Estimate log p(x) from above, annealing exact posterior samples `(C, B, K)` from the joint to the start.

        - log (1/C sum_c 1 / w_c),    E 1/w = 1/p(x)

    Exact samples exist for data simulated from the model: the code that made x is one draw from p(z|x).

    Reference: Grosse et al., Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, 2015.
    """
    require_two("chains", len(exact))
    z = exact
    log_w_CB = z.new_zeros(z.shape[:2])
    for t in _show_progress(range(path.temperatures, 0, -1), "annealing back", progress):
        state = path.state(t, z)
        if t < path.temperatures:
            state, _ = hmc_transition(path.log_density(t), state, steps[t], path.leapfrog_steps, generator)
        log_w_CB += path.log_increment(t, state)
        z = state.z
    inverse = estimate_from_log_weights(-log_w_CB, "upper", cost=len(exact) * _count_model_runs(path))
    return replace(inverse, value=-inverse.value)


def _count_model_runs(path: Path) -> int:
    return 1 + (path.temperatures - 1) * (1 + path.leapfrog_steps)


def _show_progress(temperatures: range, task: str, progress: bool) -> Iterable[int]:
    bar: Iterable[int] = tqdm(temperatures, desc=task, unit="temperature", leave=False, disable=not progress)
    return bar
