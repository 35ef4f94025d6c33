"""Proposals that improve with the draws made from them, each estimate from draws that no proposal has seen.

    r(z) = (1 - a) N(z; m, s^2 C) + a q_w(z)

N(m, C) is fitted to the posterior, q_w is the guard: q(z|x), widened. The guard finds posterior mass that N(m, C) does
not reach, and bounds the weights there. Axes: S samples, b data, K latent size.

Reference: Oh and Berger, Adaptive Importance Sampling in Monte Carlo Integration, 1992.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaebench.vae.estimators import ais
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.prob.draws import normal_like
from vaebench.vae.prob.proposals import DefensiveMixture, FullGaussianProposal, GaussianProposal

WIDTHS = (1.0, 1.1, 1.2)
PILOT_WIDTH = 1.1
PILOT_DRAWS, PILOT_GUARDS = 64, 32
GUARD_WIDTH = 1.5
GUARD_SHARES = (0.05, 0.2, 0.5)
LARGEST_SPREAD = 0.05
GRADIENT_STEPS, GRADIENT_PAIRS = 2, 32
MOST_CHANGE, LONGEST_STEP = 2.0, 1.0


@dataclass(frozen=True)
class FittedProposal:
    """The mixture r for b data: a Gaussian, its width s `(b,)`, the guard, and the guard's share a `(b,)`."""

    gaussian: FullGaussianProposal
    width: Tensor
    guard: GaussianProposal
    share: Tensor

    @property
    def mixture(self) -> DefensiveMixture:
        """Return r, to draw from and to weigh by: the density of all components whichever one a draw came from."""
        return DefensiveMixture(self.gaussian.widen(self.width), self.guard, self.share)

    def select(self, rows: Tensor) -> "FittedProposal":
        """Return the proposals of the indexed data."""
        return FittedProposal(self.gaussian.select(rows), self.width[rows], self.guard.select(rows), self.share[rows])


def calibrate(
    joint: CountedJoint,
    rows: Tensor,
    fitted: FullGaussianProposal,
    q: GaussianProposal,
    generator: torch.Generator | None,
) -> FittedProposal:
    """Choose mean, width and share of the guard for each datum by draws that serve no other purpose.

    The mean moves from the mode to the mean of the posterior; they differ where the posterior is skewed. Of three
    widths and three shares the pair with the smallest second moment of the weights is taken. All moments are estimated
    from the same draws, of the fit and of the guard together:

        E_r w^2 = E_pilot [ p^2 / (r pilot) ],    p = p(x, z),    pilot = 2/3 N(m, 1.1^2 C) + 1/3 q_w

    Where all these draws have the same weight p / N(m, C), within 5 %, the posterior is the fitted Gaussian, which then
    serves alone: no sample is lost to a guard.
    """
    guard, pilot = q.widen(GUARD_WIDTH), fitted.widen(PILOT_WIDTH)
    drawn = pilot.sample(PILOT_DRAWS, generator)
    z = torch.cat([drawn, guard.sample(PILOT_GUARDS, generator)])
    log_p = joint(z, rows)
    log_ratio = log_p - fitted.log_prob(z)
    gaussian = log_ratio.amax(0) - log_ratio.amin(0) < LARGEST_SPREAD
    moved = _move_mean(fitted, pilot, drawn, log_p[:PILOT_DRAWS])
    moved = replace(moved, mu=torch.where(gaussian[:, None], fitted.mu, moved.mu))
    mixed = DefensiveMixture(pilot, guard, PILOT_GUARDS / (PILOT_DRAWS + PILOT_GUARDS))
    width, share = _least_moment(moved, guard, z, 2 * log_p - mixed.log_prob(z))
    return FittedProposal(moved, torch.where(gaussian, 1.0, width), guard, torch.where(gaussian, 0.0, share))


def _least_moment(
    fitted: FullGaussianProposal, guard: GaussianProposal, z: Tensor, log_terms: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the width and the share `(b,)` with the least sum over the draws of exp(log_terms) / r(z)."""
    choices = list(itertools.product(WIDTHS, GUARD_SHARES))
    moments = [
        torch.logsumexp(log_terms - DefensiveMixture(fitted.widen(width), guard, share).log_prob(z), 0)
        for width, share in choices
    ]
    best = torch.tensor(choices, dtype=z.dtype, device=z.device)[torch.stack(moments).argmin(0)]
    return best[:, 0], best[:, 1]


def _move_mean(
    fitted: FullGaussianProposal, pilot: FullGaussianProposal, z: Tensor, log_p: Tensor
) -> FullGaussianProposal:
    """Move the mean of a fit towards that of the posterior by `E_p u - E_N u`, both from the same draws.

    The second mean is known to be 0, and its estimate takes most of the noise from the first one. The step is shrunk by
    ess / (ess + K / 2).
    """
    log_pilot = pilot.log_prob(z)
    weights, of_fit = (log_p - log_pilot).softmax(0), (fitted.log_prob(z) - log_pilot).softmax(0)
    ess = 1 / weights.square().sum(0)
    shift = torch.einsum("sb,sbk->bk", weights - of_fit, fitted.whiten(z))
    trusted = (ess / (ess + 0.5 * z.shape[-1]))[:, None]
    moved = fitted.colour(torch.nan_to_num(trusted * shift))
    return FullGaussianProposal(moved, fitted.std, fitted.axes)


def refit(proposal: FittedProposal, z: Tensor, log_w: Tensor) -> FittedProposal:
    """Return the proposal with the moments of weighted draws from it, `(S, b, K)` and `(S, b)`.

        m' = m + l_1 (E_w z - m),    C' = C + l_2 (E_w (z - m') (z - m')^T - C)

    The shares l_1 = ess / (ess + K / 2) and l_2 = ess / (ess + K (K + 1) / 2) fall with the number of moments that the
    draws have to determine: with few of them the proposal stays as it was.
    """
    K, weights, old = z.shape[-1], log_w.softmax(0), proposal.gaussian
    weights = torch.where(weights.isfinite().all(0), weights, 1 / len(z))
    ess = 1 / weights.square().sum(0)
    shift = torch.einsum("sb,sbk->bk", weights, z - old.mu)
    mean = old.mu + (ess / (ess + 0.5 * K))[:, None] * shift
    centred = z - mean
    spread = torch.einsum("sb,sbi,sbj->bij", weights, centred, centred)
    trusted = (ess / (ess + 0.5 * K * (K + 1)))[:, None, None]
    covariance = torch.lerp(old.covariance, spread, trusted)
    return replace(proposal, gaussian=FullGaussianProposal.from_covariance(mean, covariance))


def follow_gradients(
    joint: CountedJoint, rows: Tensor, proposal: FittedProposal, generator: torch.Generator | None
) -> FittedProposal:
    """Return the proposal after a few steps towards the Gaussian nearest to the posterior in KL(N || p(z|x)).

        E_N grad = 0,    C^-1 = -E_N Hessian,    both from gradients alone, in the coordinates u with N = N(0, I):
        d = E[h + u],    A = E[(h + u) u^T],    h = grad_u log p(x, z)

    by Bonnet's and Price's identities; the step is to the mean (I - A)^-1 d and to the precision I - A. A gradient
    tells K numbers of the posterior, a weight one. So these steps improve a proposal under which few draws have all the
    weight, from which `refit` learns little. From the posterior, if it is Gaussian, h = -u, and nothing moves.

    Reference: Opper and Archambeau, The Variational Gaussian Approximation Revisited, 2009.
    """
    gaussian = proposal.gaussian
    for _ in range(GRADIENT_STEPS):
        half = normal_like(gaussian.mu.expand(GRADIENT_PAIRS, *gaussian.mu.shape), generator)
        u = torch.cat([half, -half])
        _, slope = joint.gradient(gaussian.colour(u).flatten(0, 1), rows.repeat(len(u)))
        rest = torch.einsum("bij,sbi->sbj", gaussian.axes, slope.unflatten(0, u.shape[:2])) * gaussian.std + u
        gaussian = _step_towards(gaussian, u, rest)
    return replace(proposal, gaussian=gaussian)


def _step_towards(gaussian: FullGaussianProposal, u: Tensor, rest: Tensor) -> FullGaussianProposal:
    """Return the Gaussian of mean (I - A)^-1 d and precision I - A, in its own coordinates; each step is bounded."""
    S, _, K = u.shape
    matrix = torch.einsum("sbi,sbj->bij", rest, u) / S
    usable = matrix.isfinite().all(-1).all(-1) & rest.isfinite().all(-1).all(0)
    matrix = torch.where(usable[:, None, None], 0.5 * (matrix + matrix.mT) * S / (S + K), 0.0)
    mean = torch.where(usable[:, None], rest.mean(0), 0.0)
    values, turn = torch.linalg.eigh(torch.eye(K, dtype=torch.float64, device=u.device) - matrix.double())
    values, turn = values.clamp(1 / MOST_CHANGE, MOST_CHANGE).to(u.dtype), turn.to(u.dtype)
    step = torch.einsum("bij,bj->bi", turn, torch.einsum("bij,bi->bj", turn, mean) / values)
    step = step * (LONGEST_STEP / step.norm(dim=-1, keepdim=True).clamp(min=LONGEST_STEP))
    factor = gaussian.axes * gaussian.std[:, None] @ (turn * values.rsqrt()[:, None])
    return FullGaussianProposal.from_covariance(gaussian.colour(step), factor @ factor.mT)


def anneal(
    joint: CountedJoint,
    rows: Tensor,
    fitted: FullGaussianProposal,
    *,
    temperatures: int,
    chains: int,
    generator: torch.Generator | None,
    progress: bool,
) -> Estimate:
    """Estimate log p(x) of the indexed data by annealing from Gaussians fitted to their posteriors, widened."""
    start = fitted.widen(ais.START_WIDTH)
    path = ais.whitened_path(lambda z: joint.differentiable(z, rows), start, temperatures)
    steps = ais.tune_steps(path, generator=generator, progress=progress)
    return ais.anneal(path, steps, chains=chains, generator=generator, progress=progress)
