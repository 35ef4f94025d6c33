"""log p(x) by one policy: fit a proposal to the posterior, weigh draws from it, and try harder where they do not do.

1. Fit a Gaussian to the posterior of each datum (`laplace`), and choose its mean, width and guard on separate draws
   (`adaptive.calibrate`).
2. Weigh S draws from it, and judge the proposal by them. Where it passes, estimate from S new draws: draws that miss
   the tail look good, so that an estimate from the draws that were judged would lie too low.
3. Escalate the data whose weights fail: refit the proposal to their draws, or to gradients where few draws have all
   the weight, and judge it by twice as many new draws, for a few rounds; then anneal from the last proposal, and where
   that fails anneal four times as slowly.
4. Tell which data did not pass. Their estimates lie too low, so that the mean over all data is a lower bound.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.errors import InputError
from vaebench.vae.estimators import adaptive
from vaebench.vae.estimators.adaptive import FittedProposal
from vaebench.vae.estimators.evidence import FEWEST_WITH_TAIL, Estimate, estimate_from_log_weights, require_two
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import fit_laplace
from vaebench.vae.prob.densities import IndexedLogDensity
from vaebench.vae.prob.proposals import GaussianProposal

CODES_AT_ONCE = 8192
DATA_AT_ONCE = 256
MIN_ESS = 100
MAX_TAIL = 0.7
LOW_SHARE = 0.2
FEW = 32
LONGER = 4


@dataclass(frozen=True)
class Policy:
    """How much is spent on a datum.

    Attributes:
        samples: importance samples S of the first attempt; at least 25 are drawn, the fewest whose tail can be judged.
        rounds: further attempts for data that failed, with 2 S, 4 S, ... samples.
        annealed: share of the data that may be annealed after them, or 32 of few data; 0 is none. Where more have
            failed none is annealed: the mean stays a bound, and a cheap one.
        temperatures: temperatures of the annealing; four times as many where it fails.
        chains: chains for each datum; with fewer than 25 no datum passes, since their tail cannot be judged.
    """

    samples: int = 200
    rounds: int = 3
    annealed: float = 0.25
    temperatures: int = 50
    chains: int = 32


DEFAULT = Policy()


@dataclass(frozen=True, kw_only=True)
class CheckedEstimate(Estimate):
    """An estimate of log p(x) that tells for which data it holds.

    `cost` is the mean over the data, rounded up.

    Attributes:
        passed: `(B,)`, whether the effective sample size is at least 100, or half of the draws if they are few, and the
            tail at most 0.7. A tail that cannot be judged does not pass.
        rounds: `(B,)`, attempts: 1 where the first one passed.
        evaluations: `(B,)`, evaluations of log p(x, z): one at a code; two for a gradient; 2 + 2 K for a Hessian.
    """

    passed: Tensor
    rounds: Tensor
    evaluations: Tensor

    @property
    def resolved(self) -> Tensor:
        return self.passed


def log_likelihood(
    log_joint: IndexedLogDensity,
    q: GaussianProposal,
    *,
    policy: Policy = DEFAULT,
    codes_at_once: int = CODES_AT_ONCE,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> CheckedEstimate:
    """Estimate log p(x_b) of each datum, and tell whether the estimate can be trusted.

    Args:
        log_joint: maps codes `(S, b, K)` and the indices `(b,)` of their data to log p(x_b, z_sb), `(S, b)`.
        q: an approximate posterior for each of the B data: where the climb to the mode starts, and the guard.
        codes_at_once: codes in one call of log_joint, which bounds the memory.

    Example:
        >>> x = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
        >>> def log_joint(z, rows):
        ...     return GaussianProposal(x[rows], torch.zeros_like(x[rows])).log_prob(z)
        >>> found = log_likelihood(log_joint, GaussianProposal.prior(x))
        >>> found.passed, found.value.abs().max() < 1e-5
        (tensor([True, True]), tensor(True))
    """
    require_two("samples", policy.samples)
    if torch.is_inference_mode_enabled():
        raise InputError(
            "log p(x) needs gradients of the model, which torch.inference_mode forbids: use torch.no_grad."
        )
    if q.mu.numel() == 0:
        raise InputError(f"log p(x) needs at least one datum and one latent, got codes of shape {tuple(q.mu.shape)}.")
    q = GaussianProposal(q.mu.detach(), q.logvar.detach())
    joint, record = CountedJoint(log_joint, q.mu, codes_at_once), _Record.empty(q.mu)
    failed: list[tuple[Tensor, FittedProposal]] = []
    with tqdm(total=len(q), desc="log p(x)", unit="example", leave=False, disable=not progress) as bar:
        for rows in joint.rows.split(DATA_AT_ONCE):
            failed.append(_sample(joint, rows, q.select(rows), policy, record, generator))
            bar.update(len(rows))
    most = max(FEW, policy.annealed * len(q)) if policy.annealed else 0
    if sum(len(rows) for rows, _ in failed) <= most:
        for rows, proposal in failed:
            _anneal(joint, rows, proposal, policy, record, generator, progress)
    return record.estimate(joint)


@dataclass(frozen=True)
class _Record:
    """The last estimate of each datum, `(B,)`."""

    value: Tensor
    stderr: Tensor
    ess: Tensor
    tail: Tensor
    rounds: Tensor
    passed: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> "_Record":
        value, stderr, ess, tail = torch.full((4, len(like)), torch.nan, dtype=like.dtype, device=like.device)
        rounds = torch.zeros(len(like), dtype=torch.long, device=like.device)
        return cls(value, stderr, ess, tail, rounds, torch.zeros_like(rounds, dtype=torch.bool))

    def judge(self, rows: Tensor, estimate: Estimate, draws: int) -> Tensor:
        """Keep the estimates of some data from so many draws each, count a round, and return which of them passed."""
        assert estimate.ess is not None
        assert estimate.tail is not None
        self.put(rows, estimate)
        self.ess[rows], self.tail[rows] = estimate.ess, estimate.tail
        enough = self.ess[rows] >= min(MIN_ESS, draws / 2)
        self.passed[rows] = enough & (self.tail[rows] <= MAX_TAIL) & estimate.value.isfinite()
        self.rounds[rows] += 1
        return self.passed[rows]

    def put(self, rows: Tensor, estimate: Estimate) -> None:
        """Keep the estimates of some data. Their ess and tail stay those of the draws that were judged."""
        self.value[rows], self.stderr[rows] = estimate.value, estimate.stderr

    def estimate(self, joint: CountedJoint) -> CheckedEstimate:
        return CheckedEstimate(
            self.value,
            self.stderr,
            "unbiased" if bool(self.passed.all()) else "lower",
            math.ceil(joint.spent.mean().item()),
            self.ess,
            self.tail,
            passed=self.passed,
            rounds=self.rounds,
            evaluations=joint.spent,
        )


def _sample(
    joint: CountedJoint,
    rows: Tensor,
    q: GaussianProposal,
    policy: Policy,
    record: _Record,
    generator: torch.Generator | None,
) -> tuple[Tensor, FittedProposal]:
    """Fit, weigh and refit; return the data that failed to the last, with the proposals of their next attempt."""
    proposal = adaptive.calibrate(joint, rows, fit_laplace(joint, rows, q), q, generator)
    for attempt in range(policy.rounds + 1):
        draws = max(policy.samples, FEWEST_WITH_TAIL) * 2**attempt
        z, log_w = _weigh(joint, rows, proposal, draws, generator)
        passed = record.judge(rows, estimate_from_log_weights(log_w, "unbiased", draws), draws)
        if bool(passed.any()):
            _, fresh = _weigh(joint, rows[passed], proposal.select(passed), draws, generator)
            record.put(rows[passed], estimate_from_log_weights(fresh, "unbiased", draws))
        failed = ~passed
        rows, proposal = rows[failed], proposal.select(failed)
        if len(rows) == 0:
            break
        proposal = adaptive.refit(proposal, z[:, failed], log_w[:, failed])
        low = record.ess[rows] < LOW_SHARE * draws
        if bool(low.any()):
            better = adaptive.follow_gradients(joint, rows[low], proposal.select(low), generator)
            proposal.gaussian.put(low, better.gaussian)
    return rows, proposal


def _weigh(
    joint: CountedJoint, rows: Tensor, proposal: FittedProposal, draws: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return codes `(S, b, K)` and their log weights `(S, b)`."""
    z = proposal.mixture.sample(draws, generator)
    return z, joint(z, rows) - proposal.mixture.log_prob(z)


def _anneal(
    joint: CountedJoint,
    rows: Tensor,
    proposal: FittedProposal,
    policy: Policy,
    record: _Record,
    generator: torch.Generator | None,
    progress: bool,
) -> None:
    """Anneal the data that failed, a few at a time where all chains of all data would be too many codes for a graph."""
    if len(rows) == 0:
        return
    anneal = partial(adaptive.anneal, joint, chains=policy.chains, generator=generator, progress=progress)
    for part in torch.arange(len(rows), device=rows.device).split(joint.data_at_once(policy.chains)):
        for temperatures in (policy.temperatures, LONGER * policy.temperatures):
            tried = anneal(rows[part], proposal.gaussian.select(part), temperatures=temperatures)
            passed = record.judge(rows[part], tried, policy.chains)
            if bool(passed.any()):
                chosen = part[passed]
                fresh = anneal(rows[chosen], proposal.gaussian.select(chosen), temperatures=temperatures)
                record.put(rows[chosen], fresh)
            part = part[~passed]
            if len(part) == 0:
                break
