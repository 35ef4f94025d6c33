"""Estimators of log p(x), labelled by their kind: exact, unbiased for p(x), a lower or an upper bound.

All take callables: `log_joint(z)` returns log p(x_b, z_sb) for the data x in its closure; a `Proposal` draws z and
knows its density. Axes: S samples, B data, K latent size; z is `(S, B, K)`, log weights `log_w_SB`.

    log w_sb = log p(x_b, z_sb) - log q(z_sb | x_b),    z_sb ~ q(z | x_b),    E w = p(x)
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaebench.vae.errors import InputError
from vaebench.vae.prob.densities import LogDensity, log_standard_normal
from vaebench.vae.prob.proposals import GaussianProposal, Proposal

Kind = Literal["exact", "unbiased", "lower", "upper"]

ROWS_AT_ONCE = 8192
WIDTHS = (1.0, 1.5, 2.0, 3.0)
MAX_CELLS = 20_000_000
MAX_BEYOND = 0.01
NEGLIGIBLE_EXCESS = 1e-6
ROUNDINGS = 16
FEWEST_WITH_TAIL = 25  # samples: a fifth of them are the tail, and a fit to it needs five

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """Estimates of log p(x_b), in nats.

    Attributes:
        value: `(B,)`.
        stderr: `(B,)`, the standard error of `value`; by the delta method where `value` is the logarithm of a mean.
        kind: `exact`; `unbiased` for exp(value), whose logarithm is biased downwards; `lower` or `upper`, a bound in
            expectation.
        cost: evaluations of the model per datum.
        ess: `(B,)`, the effective sample size `(sum w)^2 / sum w^2`; None without weights.
        tail: `(B,)`, the shape k of the weights' tail (see `tail_shape`); None without weights.
    """

    value: Tensor
    stderr: Tensor
    kind: Kind
    cost: int
    ess: Tensor | None = None
    tail: Tensor | None = None

    @property
    def resolved(self) -> Tensor:
        """Return for which data the estimate holds, `(B,)`: for all, where nothing has checked it."""
        return torch.ones_like(self.value, dtype=torch.bool)

    @property
    def unresolved(self) -> int:
        """Return the number of data for which the estimate is a lower bound alone."""
        return int((~self.resolved).sum())

    def mean(self) -> tuple[float, float]:
        """Return the mean over the data and its standard error, for these data and not for their population."""
        return self.value.mean().item(), (self.stderr.square().sum().sqrt() / self.stderr.numel()).item()


def with_standard_prior(log_likelihood: LogDensity) -> LogDensity:
    """Return the joint `log p(x|z) + log N(z; 0, I)` of a likelihood."""
    return lambda z: log_likelihood(z) + log_standard_normal(z).sum(-1)


def elbo(
    log_joint: LogDensity, proposal: Proposal, *, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """Estimate the evidence lower bound `E_q log w <= log p(x)` by the mean of `samples` log weights."""
    log_w_SB = log_weights(log_joint, proposal, samples, generator)
    return Estimate(log_w_SB.mean(0), _stderr_of_mean(log_w_SB), "lower", samples)


def iwae(
    log_joint: LogDensity, proposal: Proposal, *, k: int, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """Estimate the importance-weighted bound of order k from `samples` draws, in groups of k.

        IWAE_k = E log (1/k sum_{s<=k} w_s),    ELBO = IWAE_1 <= IWAE_k <= IWAE_{k+1} <= log p(x)

    Reference: Burda et al., Importance Weighted Autoencoders, 2016.
    """
    if k < 1 or samples % k or samples < 2 * k:
        raise ValueError(f"samples must be at least two groups of k >= 1 draws, got k = {k} and samples = {samples}.")
    log_w_SB = log_weights(log_joint, proposal, samples, generator)
    bounds_GB = _log_mean_exp(log_w_SB.reshape(samples // k, k, -1), dim=1)
    return Estimate(bounds_GB.mean(0), _stderr_of_mean(bounds_GB), "lower", samples)


def importance_sampling(
    log_joint: LogDensity, proposal: Proposal, *, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """Estimate log p(x) by the logarithm of the mean weight under any proposal.

        log p(x) ~ log (1/S sum_s w_s)

    The mean weight is unbiased for p(x). The standard error is valid where the weights have a finite variance, which a
    proposal narrower than the posterior does not give: check `ess` (above 100) and `tail` (below 0.7).

    Example:
        >>> prior = GaussianProposal.prior(torch.zeros(1, 2))
        >>> importance_sampling(prior.log_prob, prior, samples=8).value
        tensor([0.])
    """
    return estimate_from_log_weights(log_weights(log_joint, proposal, samples, generator), "unbiased", samples)


@torch.no_grad()
def riemann_sum(log_joint: LogDensity, like: Tensor, *, points: int, radius: float = 6.0) -> Estimate:
    """Integrate the joint over the grid of `points` nodes per axis on [-radius, radius]^K.

        p(x) ~ sum_i p(x, z_i) h^K,    h = 2 radius / (points - 1)

    over the nodes of each axis from -radius to radius. `like` `(B, K)` gives the size, dtype and device of the codes;
    the sum is in float64. The cost of points^K evaluations is logged first and refused above MAX_CELLS.

    `stderr` is the distance to the sum over every second node of each axis, plus log(1 + r), where r bounds the mass
    beyond the grid as a share of the mass inside. With f_1 and f_2 the sums over the outermost plane of nodes and over
    the next one, a log-concave density falls beyond by at least q = f_1 / f_2 from plane to plane:

        r = sum over the 2 K sides of f_1 q / (1 - q),    refused above MAX_BEYOND

    A Gaussian p(x, z), centred anywhere, is so refused or has an error below stderr + 1e-7, if K <= 4 and h is at most
    the standard deviation of each z_k given the other latents. In a narrower one, the distance is an estimate. Mass
    beyond the grid that is separate from the mass inside, as in a mixture, is not seen.
    """
    if like.ndim != 2:
        raise ValueError(f"like must be of shape (B, K), got {tuple(like.shape)}.")
    B, K = like.shape
    cells = points**K
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and at least 3, got {points}.")
    if cells > MAX_CELLS:
        raise ValueError(
            f"a Riemann sum with {points} points in each of {K} dimensions has {cells:.3g} cells, "
            f"more than the {MAX_CELLS} allowed; use fewer points or importance sampling."
        )
    _log.info("Riemann sum: %d^%d = %d cells for each of %d data.", points, K, cells, B)
    axis = torch.linspace(-radius, radius, points, dtype=torch.float64, device=like.device).to(like.dtype)
    log_cell = K * math.log(2 * radius / (points - 1))
    fine, coarse, planes = [], [], []
    at_once = max(1, ROWS_AT_ONCE // B)
    for start in range(0, cells, at_once):
        cell = torch.arange(start, min(start + at_once, cells), device=like.device)
        index = torch.stack([cell // points**k % points for k in range(K)], dim=-1)
        log_p_SB = log_joint(axis[index][:, None].expand(-1, B, -1)).double()
        fine.append(log_p_SB.logsumexp(0))
        coarse.append(log_p_SB[(index % 2 == 0).all(-1)].logsumexp(0))
        on_plane = [index[:, k] == i for k in range(K) for i in (0, 1, points - 1, points - 2)]
        planes.append(torch.stack([log_p_SB[chosen].logsumexp(0) for chosen in on_plane]))
    log_sum = torch.stack(fine).logsumexp(0)
    value = log_sum + log_cell
    halved = torch.stack(coarse).logsumexp(0) + log_cell + K * math.log(2)
    beyond = _share_beyond(torch.stack(planes).logsumexp(0).unflatten(0, (2 * K, 2)) - log_sum, points)
    outside = int((beyond > MAX_BEYOND).sum())
    if outside:
        raise InputError(
            f"a Riemann sum needs a grid that holds p(x, z), and for {outside} of {B} data more than {MAX_BEYOND:.0%} "
            f"of it may lie beyond +-{radius:g}; raise radius, and points with it, or use importance sampling."
        )
    return Estimate(value, (value - halved).abs() + beyond.log1p(), "exact", cells)


def _share_beyond(log_planes: Tensor, points: int) -> Tensor:
    """Bound the mass beyond a grid by its two outermost planes on each side, `(sides, 2, B)`, all as shares of its sum.

    A density that does not fall at a border has at least about 1 / points of its mass in the last plane, if it is
    log-concave. So q is at most 1 - 1 / points, and the bound stays far above MAX_BEYOND there.
    """
    last, next_to_last = log_planes.unbind(1)
    q = (last - next_to_last).exp().nan_to_num(0.0).clamp(max=1 - 1 / points)
    return (last.exp() * q / (1 - q)).sum(0)


def choose_width(
    log_joint: LogDensity,
    proposal: GaussianProposal,
    *,
    samples: int,
    widths: Sequence[float] = WIDTHS,
    generator: torch.Generator | None = None,
) -> float:
    """Return the factor by which to widen a proposal on these data, chosen on separate draws.

    `E log (1/S sum_s w_s)` never exceeds log p(x) and falls short of it where the weights vary. So among the widths
    whose mean bound is within two standard errors of the highest, take the one of the largest effective sample size.
    Separate draws, since an estimate from the draws that chose its proposal is biased upwards. Costs
    `len(widths) * samples` evaluations.
    """
    estimates = [
        importance_sampling(log_joint, proposal.widen(width), samples=samples, generator=generator) for width in widths
    ]
    bound, stderr = max(estimate.mean() for estimate in estimates)
    ess = [
        estimate.ess.mean().item() if estimate.ess is not None and estimate.mean()[0] >= bound - 2 * stderr else 0.0
        for estimate in estimates
    ]
    return widths[ess.index(max(ess))]


@torch.no_grad()
def log_weights(log_joint: LogDensity, proposal: Proposal, samples: int, generator: torch.Generator | None) -> Tensor:
    """Return `log p(x, z) - log q(z|x)` at draws from the proposal, `(S, B)`, in calls of about ROWS_AT_ONCE rows."""
    require_two("samples", samples)
    at_once = max(1, ROWS_AT_ONCE // len(proposal))
    blocks = []
    for done in range(0, samples, at_once):
        z = proposal.sample(min(at_once, samples - done), generator)
        blocks.append(log_joint(z) - proposal.log_prob(z))
    return torch.cat(blocks)


def tail_shape(log_w_SB: Tensor) -> Tensor:
    """Estimate the shape k of a generalised Pareto distribution fitted to the largest weights of each datum, `(B,)`.

    The weights have 1/k finite moments: below 0.5 their variance is finite, above 0.7 no practical number of samples
    gives a trustworthy mean. NaN with fewer than `FEWEST_WITH_TAIL` samples; minus infinity where the largest weights
    are all equal, to within what rounding does to log weights of their size.

    Reference: Vehtari et al., Pareto Smoothed Importance Sampling, 2024, with the fit of Zhang and Stephens, 2009.
    """
    S = log_w_SB.shape[0]
    if S < FEWEST_WITH_TAIL:
        return torch.full_like(log_w_SB[0], torch.nan)
    tail = min(S // 5, math.ceil(3 * math.sqrt(S)))
    largest = log_w_SB.double().topk(tail + 1, dim=0).values
    weights = torch.exp(largest - largest[0])
    excess_MB = (weights[:-1] - weights[-1]).flip(0)
    rounding = ROUNDINGS * torch.finfo(log_w_SB.dtype).eps * largest[0].abs()
    varied = excess_MB[-1] > rounding.clamp(min=NEGLIGIBLE_EXCESS)
    shape = torch.where(varied, _pareto_shape(excess_MB), -torch.inf)
    return shape.to(log_w_SB.dtype)


def _pareto_shape(excess_MB: Tensor) -> Tensor:
    """Return the shape fitted to sorted excesses: the mean over 30 + sqrt(M) values of shape / scale, by likelihood."""
    M = excess_MB.shape[0]
    G = 30 + math.isqrt(M)
    grid = 1 - (G / (torch.arange(1, G + 1, dtype=excess_MB.dtype, device=excess_MB.device) - 0.5)).sqrt()
    quartile, top = excess_MB[(M + 2) // 4 - 1].clamp_min(1e-300), excess_MB[-1].clamp_min(1e-300)
    theta_GB = grid[:, None] / (3 * quartile) + 1 / top
    k_GB = torch.stack([torch.log1p(-theta_B * excess_MB).mean(0) for theta_B in theta_GB])
    profile_GB = M * (torch.log(-theta_GB / k_GB) - k_GB - 1)
    theta_B = (torch.softmax(profile_GB, 0) * theta_GB).sum(0)
    k_B = torch.log1p(-theta_B * excess_MB).mean(0)
    return (k_B * M + 5) / (M + 10)


def estimate_from_log_weights(log_w_SB: Tensor, kind: Kind, cost: int) -> Estimate:
    """Return log (1/S sum_s w_s) with its standard error, effective sample size and tail shape.

    By the delta method the error of the logarithm is the relative error of the mean, `sqrt((S / ess - 1) / (S - 1))`.
    """
    S = len(log_w_SB)
    require_two("log weights of each datum", S)
    ess = torch.exp(2 * log_w_SB.logsumexp(0) - (2 * log_w_SB).logsumexp(0))
    stderr = ((S / ess - 1).clamp_min(0) / (S - 1)).sqrt()
    return Estimate(_log_mean_exp(log_w_SB, dim=0), stderr, kind, cost, ess, tail_shape(log_w_SB))


def require_two(what: str, count: int) -> None:
    """Raise unless there are at least two draws for each datum."""
    if count < 2:
        raise ValueError(f"{what} must be at least 2, since one draw has no standard error, got {count}.")


def _stderr_of_mean(values_SB: Tensor) -> Tensor:
    return values_SB.std(0) / math.sqrt(values_SB.shape[0])


def _log_mean_exp(values: Tensor, dim: int) -> Tensor:
    return values.logsumexp(dim) - math.log(values.shape[dim])
