"""Markov chains that leave a given density invariant, and diagnostics of their convergence.

Densities are callables `log_density(z)`, up to a constant, for z `(C, B, K)`: C chains for each of B targets, K
dimensions, all run at once; samples are `(T, C, B, K)`, T draws. Step sizes adapt only in a warm-up whose draws are
discarded: a chain that adapts while it is sampled has another stationary distribution.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vaebench.vae.prob.densities import LogDensity
from vaebench.vae.prob.draws import normal_like, uniform_like

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
class ChainState:
    """Positions z `(C, B, K)` with their log density `(C, B)` and its gradient `(C, B, K)`."""

    z: Tensor
    log_p: Tensor
    grad: Tensor

    @classmethod
    def at(cls, log_density: LogDensity, z: Tensor) -> "ChainState":
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
    kept, acceptances = [], torch.zeros_like(log_p)
    for draw in range(warmup + samples):
        proposed, correction = propose(z, generator)
        proposed_log_p = log_density(proposed)
        accepted = _accept(proposed_log_p - log_p + correction, generator)
        z, log_p = torch.where(accepted[..., None], proposed, z), torch.where(accepted, proposed_log_p, log_p)
        if draw >= warmup:
            kept.append(z)
            acceptances += accepted
    return Chains(torch.stack(kept), acceptances / samples)


@torch.no_grad()
def gibbs(
    updates: Sequence[Update[State]],
    start: State,
    *,
    samples: int,
    warmup: int = 0,
    generator: torch.Generator | None = None,
) -> list[State]:
    """Run a Gibbs sampler: in each sweep every update redraws its part of the state given all other parts.

    The state is a tensor or a tuple of tensors, as the updates take and return it.

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
    state, kept, acceptance = ChainState.at(log_density, start), [], start.new_zeros(start.shape[:2])
    for _ in range(samples):
        state, probability = hmc_transition(log_density, state, step, leapfrog_steps, generator)
        kept.append(state.z)
        acceptance += probability
    return Chains(torch.stack(kept), acceptance / samples)


def hmc_transition(
    log_density: LogDensity, state: ChainState, step: Tensor, leapfrog_steps: int, generator: torch.Generator | None
) -> tuple[ChainState, Tensor]:
    """Return the next state and the acceptance probability, `(C, B)`.

    Momenta v ~ N(0, I), leapfrog steps of H(z, v) = -log p(z) + |v|^2 / 2, acceptance min(1, exp(H - H')). Step sizes
    are jittered by a fifth, since on a Gaussian target a trajectory of one full period returns to its start.
    """
    jitter = 1 + STEP_JITTER * (2 * torch.rand((), generator=generator, dtype=step.dtype, device=step.device) - 1)
    size = (step * jitter)[:, None]
    v = normal_like(state.z, generator)
    end, w = state, v + 0.5 * size * state.grad
    for _ in range(leapfrog_steps):
        end = ChainState.at(log_density, end.z + size * w)
        w = w + size * end.grad
    w = w - 0.5 * size * end.grad
    log_ratio = end.log_p - state.log_p + 0.5 * (v.square() - w.square()).sum(-1)
    log_ratio = torch.nan_to_num(log_ratio, nan=-torch.inf)
    accepted = _accept(log_ratio, generator)
    moved = ChainState(
        torch.where(accepted[..., None], end.z, state.z),
        torch.where(accepted, end.log_p, state.log_p),
        torch.where(accepted[..., None], end.grad, state.grad),
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
    """Tune HMC in a warm-up: return the step size of each target, `(B,)`, and the last positions of the chains.

    Dual averaging drives the acceptance, averaged over the chains of a target, to `target`:

        log s_t = log 10 s_0 - sqrt(t) / (0.05 (t + 10)) sum_{i<=t} (target - a_i),    averaged with weights t^-0.75

    Reference: Hoffman and Gelman, The No-U-Turn Sampler, 2014, section 3.2.
    """
    state = ChainState.at(log_density, start)
    initial = start.new_full(start.shape[1:2], 0.1)
    step, log_average, shortfall = initial, initial.log(), torch.zeros_like(initial)
    for t in range(1, warmup + 1):
        state, probability = hmc_transition(log_density, state, step, leapfrog_steps, generator)
        shortfall = shortfall + target - probability.mean(0)
        log_step = (10 * initial).log() - math.sqrt(t) / (0.05 * (t + 10)) * shortfall
        log_average = torch.lerp(log_average, log_step, t**-0.75)
        step = log_step.exp()
    return log_average.exp(), state.z


def r_hat(samples: Tensor) -> Tensor:
    """Return the split potential scale reduction factor, `(T, C, ...) -> (...)`; near 1 once the chains agree.

        sqrt( ((n - 1)/n W + V) / W ),    over 2C half chains: W mean of their variances, V variance of their means

    Reference: Gelman et al., Bayesian Data Analysis, 3rd edition, section 11.4.
    """
    half = len(samples) // 2
    if half < 2:
        raise ValueError(f"r_hat needs at least 4 draws of each chain, got {len(samples)}.")
    halves = torch.cat([samples[:half], samples[-half:]], dim=1)
    within = halves.var(0).mean(0)
    return (((half - 1) / half * within + halves.mean(0).var(0)) / within).sqrt()


def effective_sample_size(samples: Tensor) -> Tensor:
    """Return the number of independent draws that estimate a mean as well as all chains, `(T, C, ...) -> (...)`.

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


def _accept(log_ratio: Tensor, generator: torch.Generator | None) -> Tensor:
    return uniform_like(log_ratio, generator).log() < log_ratio
