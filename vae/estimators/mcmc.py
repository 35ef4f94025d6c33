"""Markov chains that leave a given density invariant, and what tells whether they have arrived.

Densities are callables `log_density(z)`, up to a constant, for z `(C, B, K)`: C chains for each of B targets, K
dimensions, all run at once; samples are `(T, C, B, K)`, T draws. Whatever adapts does so in a warm-up whose draws are
thrown away, and is frozen afterwards: a chain that adapts while it is sampled has another stationary distribution.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vaebench.vae.prob.draws import normal_like, uniform_like

LogDensity = Callable[[Tensor], Tensor]
Propose = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor]]
State = TypeVar("State")
Update = Callable[[State, torch.Generator | None], State]

STEP_JITTER = 0.2


@dataclass(frozen=True)
class Chains:
    """Draws `(T, C, B, K)` and the share of proposals accepted, `(C, B)`."""

    samples: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Point:
    """A state z `(C, B, K)` with its log density `(C, B)` and the gradient of that, `(C, B, K)`."""

    z: Tensor
    log_p: Tensor
    grad: Tensor

    @classmethod
    def at(cls, log_density: LogDensity, z: Tensor) -> "Point":
        """Evaluate the density and its gradient at z."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_p = log_density(z)
            (grad,) = torch.autograd.grad(log_p.sum(), z)
        return cls(z.detach(), log_p.detach(), grad)


def random_walk(step: float) -> Propose:
    """Return the proposal z + step * eps, which is symmetric."""

    def propose(z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return z + step * normal_like(z, generator), z.new_zeros(z.shape[:-1])

    return propose


def independent(sample: Callable[[int, torch.Generator | None], Tensor], log_prob: LogDensity) -> Propose:
    """Return the proposal that ignores where the chain stands: `sample(C, generator)`, of density `log_prob`."""

    def propose(z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        fresh = sample(len(z), generator)
        return fresh, log_prob(z) - log_prob(fresh)

    return propose


@torch.no_grad()
def metropolis_hastings(
    log_density: LogDensity,
    start: Tensor,
    propose: Propose,
    *,
    samples: int,
    warmup: int = 0,
    generator: torch.Generator | None = None,
) -> Chains:
    """Run Metropolis-Hastings: move from z to z' ~ r(z'|z) with probability

        min(1, p(z') r(z|z') / (p(z) r(z'|z)))

    `propose(z, generator)` returns z' and `log r(z|z') - log r(z'|z)`.

    Reference: Hastings, Monte Carlo Sampling Methods Using Markov Chains, 1970.
    """
    z, log_p = start, log_density(start)
    kept, accepted = [], torch.zeros_like(log_p)
    for draw in range(warmup + samples):
        fresh, correction = propose(z, generator)
        fresh_log_p = log_density(fresh)
        taken = _accepts(fresh_log_p - log_p + correction, generator)
        z, log_p = torch.where(taken[..., None], fresh, z), torch.where(taken, fresh_log_p, log_p)
        if draw >= warmup:
            kept.append(z)
            accepted += taken
    return Chains(torch.stack(kept), accepted / samples)


@torch.no_grad()
def gibbs(
    updates: Sequence[Update[State]],
    start: State,
    *,
    samples: int,
    warmup: int = 0,
    generator: torch.Generator | None = None,
) -> list[State]:
    """Run a Gibbs sampler: in each sweep every update redraws its part of the state given all the others.

    The state is whatever the updates take and return: a tensor, or a tuple of tensors.

    Reference: Geman and Geman, Stochastic Relaxation, Gibbs Distributions and the Restoration of Images, 1984.
    """
    state, kept = start, []
    for sweep in range(warmup + samples):
        for update in updates:
            state = update(state, generator)
        if sweep >= warmup:
            kept.append(state)
    return kept


def hmc(
    log_density: LogDensity,
    start: Tensor,
    step: Tensor,
    *,
    samples: int,
    leapfrog_steps: int = 10,
    generator: torch.Generator | None = None,
) -> Chains:
    """Run Hamiltonian Monte Carlo with a fixed step size for each target, `(B,)`: see `tune_step` for one.

    Reference: Neal, MCMC Using Hamiltonian Dynamics, 2011.
    """
    point, kept, acceptance = Point.at(log_density, start), [], start.new_zeros(start.shape[:2])
    for _ in range(samples):
        point, probability = hmc_transition(log_density, point, step, leapfrog_steps, generator)
        kept.append(point.z)
        acceptance += probability
    return Chains(torch.stack(kept), acceptance / samples)


def hmc_transition(
    log_density: LogDensity, point: Point, step: Tensor, leapfrog_steps: int, generator: torch.Generator | None
) -> tuple[Point, Tensor]:
    """Return the next state and the probability of having moved to it, `(C, B)`.

    Momenta v ~ N(0, I), leapfrog steps of H(z, v) = -log p(z) + |v|^2 / 2, acceptance min(1, exp(H - H')). Steps are
    jittered by a fifth, since on a Gaussian target a trajectory of a full period goes nowhere.
    """
    jitter = 1 + STEP_JITTER * (2 * torch.rand((), generator=generator, dtype=step.dtype, device=step.device) - 1)
    size = (step * jitter)[:, None]
    v = normal_like(point.z, generator)
    end, w = point, v + 0.5 * size * point.grad
    for _ in range(leapfrog_steps):
        end = Point.at(log_density, end.z + size * w)
        w = w + size * end.grad
    w = w - 0.5 * size * end.grad
    log_ratio = end.log_p - point.log_p + 0.5 * (v.square() - w.square()).sum(-1)
    log_ratio = torch.nan_to_num(log_ratio, nan=-torch.inf)
    taken = _accepts(log_ratio, generator)
    moved = Point(
        torch.where(taken[..., None], end.z, point.z),
        torch.where(taken, end.log_p, point.log_p),
        torch.where(taken[..., None], end.grad, point.grad),
    )
    return moved, log_ratio.clamp_max(0).exp()


def tune_step(
    log_density: LogDensity,
    start: Tensor,
    *,
    warmup: int,
    target: float = 0.8,
    leapfrog_steps: int = 10,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Warm HMC up: return the step size of each target, `(B,)`, to be kept fixed, and where the chains have come to.

    Dual averaging drives the acceptance, averaged over the chains of a target, to `target`:

        log s_t = log 10 s_0 - sqrt(t) / (0.05 (t + 10)) sum_{i<=t} (target - a_i),    averaged with weights t^-0.75

    Reference: Hoffman and Gelman, The No-U-Turn Sampler, 2014, section 3.2.
    """
    point = Point.at(log_density, start)
    initial = start.new_full(start.shape[1:2], 0.1)
    step, log_average, shortfall = initial, initial.log(), torch.zeros_like(initial)
    for t in range(1, warmup + 1):
        point, probability = hmc_transition(log_density, point, step, leapfrog_steps, generator)
        shortfall = shortfall + target - probability.mean(0)
        log_step = (10 * initial).log() - math.sqrt(t) / (0.05 * (t + 10)) * shortfall
        log_average = torch.lerp(log_average, log_step, t**-0.75)
        step = log_step.exp()
    return log_average.exp(), point.z


def r_hat(samples: Tensor) -> Tensor:
    """Return the split potential scale reduction, `(T, C, ...) -> (...)`; near 1 once the chains agree.

        sqrt( ((n - 1)/n W + V) / W ),    W the mean variance within, V the variance of the means of, 2C half chains

    Reference: Gelman et al., Bayesian Data Analysis, 3rd edition, section 11.4.
    """
    half = len(samples) // 2
    if half < 2:
        raise ValueError(f"r_hat needs at least 4 draws of each chain, got {len(samples)}.")
    halves = torch.cat([samples[:half], samples[-half:]], dim=1)
    within = halves.var(0).mean(0)
    return (((half - 1) / half * within + halves.mean(0).var(0)) / within).sqrt()


def effective_sample_size(samples: Tensor) -> Tensor:
    """Return how many independent draws all chains together are worth for a mean, `(T, C, ...) -> (...)`.

        C T / (1 + 2 sum_t rho_t)

    with autocorrelations rho_t from all chains, summed in pairs while these are positive, and made non-increasing.

    Reference: Geyer, Practical Markov Chain Monte Carlo, 1992; Gelman et al., Bayesian Data Analysis, section 11.5.
    """
    T, C = samples.shape[:2]
    if T < 4:
        raise ValueError(f"effective_sample_size needs at least 4 draws of each chain, got {T}.")
    means = samples.mean(0)
    spectrum = torch.fft.rfft(samples - means, n=2 * T, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * T, dim=0)[:T].mean(1) / T
    between = means.var(0) if C > 1 else torch.zeros_like(covariance[0])
    total = covariance[0] + between
    rho = 1 - (covariance[0] - covariance) / total
    pairs = rho[0 : T // 2 * 2 : 2] + rho[1 : T // 2 * 2 : 2]
    positive = (pairs > 0).cumprod(0)
    tau = 2 * (pairs.cummin(0).values * positive).sum(0) - 1
    return C * T / tau.clamp_min(1 / math.log10(C * T))


def _accepts(log_ratio: Tensor, generator: torch.Generator | None) -> Tensor:
    return uniform_like(log_ratio, generator).log() < log_ratio
