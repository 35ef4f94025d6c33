"""Data whose log p(x) is known: of exact models in closed form, of a trained VAE by a long annealing."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.estimators import ais
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.exact import ProbabilisticPCA
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.log_likelihood import CODES_AT_ONCE
from vaebench.vae.estimators.posterior_fit import fit_posterior
from vaebench.vae.objective import infovae
from vaebench.vae.prob.densities import IndexedLogDensity
from vaebench.vae.prob.proposals import GaussianProposal
from vaebench.vae.training.fit import Result, fit

PARTS = 4
PPCA_NOISE, MIXTURE_NOISE = 0.5, 1.0
TEMPERATURES, CHAINS, WIDTH = 1000, 32, 1.5
DIGITS = Run(
    model=Model(latent=16, hidden=(128,)),
    objective=infovae(0.5, 10.0),
    train=Train(epochs=30, patience=0, device="cpu"),
)


@dataclass(frozen=True)
class Problem:
    """Data of a model, an approximate posterior for each of them, and the best estimate of their log p(x).

    `truth` has a standard error of 0 where it is exact. `log_joint` is that of `log_likelihood`.
    """

    name: str
    log_joint: IndexedLogDensity
    q: GaussianProposal
    truth: Estimate

    def count(self) -> CountedJoint:
        """Return log p(x, z) with a count of its evaluations that starts at 0."""
        return CountedJoint(self.log_joint, self.q.mu, CODES_AT_ONCE)


def build_ppca(K: int, data: int) -> Problem:
    """Return probabilistic PCA of 2K dimensions, and the diagonal q that is closest to its posterior."""
    generator = torch.Generator().manual_seed(K)
    model = draw_ppca(K, 2 * K, PPCA_NOISE, generator)
    x, _ = model.sample(data, generator)

    def log_joint(z: Tensor, rows: Tensor) -> Tensor:
        return model.log_joint(x[rows], z)

    q = GaussianProposal(*model.best_diagonal(x))
    return Problem(f"probabilistic PCA, K = {K}", log_joint, q, exactly(model.log_prob(x)))


def build_mixture(K: int, data: int) -> Problem:
    """Return a mixture of probabilistic PCAs that share one z, and the best diagonal q that gradients find.

    p(x) = 1/4 sum_c N(x; m_c, W_c W_c^T + s^2 I), and the posterior of z has a mode for each c that may have made x.
    """
    generator = torch.Generator().manual_seed(0)
    parts = [draw_ppca(K, K, MIXTURE_NOISE, generator) for _ in range(PARTS)]
    samples = torch.stack([part.sample(data, generator)[0] for part in parts])
    x = samples[torch.randint(PARTS, (data,), generator=generator), torch.arange(data)]

    def log_joint(z: Tensor, rows: Tensor) -> Tensor:
        return torch.stack([part.log_joint(x[rows], z) for part in parts]).logsumexp(0) - math.log(PARTS)

    log_p = torch.stack([part.log_prob(x) for part in parts]).logsumexp(0) - math.log(PARTS)
    start = GaussianProposal.prior(x.new_zeros(data, K))
    q = fit_posterior(lambda z: log_joint(z, torch.arange(data)), start, generator=generator)
    return Problem(f"mixture of {PARTS} such models, K = {K}", log_joint, q, exactly(log_p))


def draw_ppca(K: int, D: int, noise: float, generator: torch.Generator) -> ProbabilisticPCA:
    """Return probabilistic PCA with a random weight and mean; its posterior is correlated."""
    weight = torch.randn(D, K, generator=generator, dtype=torch.float64) / math.sqrt(K)
    return ProbabilisticPCA(weight, torch.randn(D, generator=generator, dtype=torch.float64), noise)


def exactly(log_p: Tensor) -> Estimate:
    """Return log p(x) as an estimate without an error."""
    return Estimate(log_p, torch.zeros_like(log_p), "exact", 0)


def build_vae(images: int) -> Problem:
    """Train a VAE on the digits, and anneal from its widened q for a long time."""
    return problem_of(fit(DIGITS), images, TEMPERATURES, CHAINS)


def problem_of(result: Result, images: int, temperatures: int, chains: int) -> Problem:
    """Return the problem of a trained VAE, whose truth is an annealing of this length."""
    x = result.splits.test.subsample(images).batch()
    with torch.no_grad():
        log_joint, posterior = result.model.requires_grad_(requires_grad=False).base_joint(x)
    q = GaussianProposal(posterior.mu, posterior.logvar)
    problem = Problem(f"VAE of the digits, K = {q.mu.shape[1]}", log_joint, q, exactly(q.mu[:, 0]))
    generator = torch.Generator().manual_seed(1)
    return replace(problem, truth=anneal(problem, q.widen(WIDTH), temperatures, chains, generator))


def anneal(
    problem: Problem, start: GaussianProposal, temperatures: int, chains: int, generator: torch.Generator
) -> Estimate:
    """Anneal from a start; the cost includes the run that tunes the step sizes."""
    joint = problem.count()
    path = ais.Path(lambda z: joint.differentiable(z, joint.rows), start, ais.sigmoid_schedule(temperatures))
    found = ais.anneal(path, ais.tune_steps(path, generator=generator), chains=chains, generator=generator)
    return replace(found, cost=mean_cost(joint))


def mean_cost(joint: CountedJoint) -> int:
    """Return the evaluations spent on a datum, rounded up."""
    return math.ceil(joint.spent.mean().item())


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "ppca 2": lambda data: build_ppca(2, data),
    "ppca 16": lambda data: build_ppca(16, data),
    "ppca 64": lambda data: build_ppca(64, data),
    "mixture": lambda data: build_mixture(8, data),
    "vae": build_vae,
}
