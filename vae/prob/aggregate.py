"""The aggregated posterior q(z) = 1/N sum_n q(z|x_n): its information measures over a set, its weights in a minibatch.

Axes: B codes or rows of a minibatch, N data, K latent size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench import kernels
from vaebench.vae.prob.densities import DiagonalGaussian, log_standard_normal
from vaebench.vae.prob.divergences import gaussian_kl

CODES_AT_ONCE = 1024


@dataclass(frozen=True)
class Aggregate:
    """The parts of the mean KL over a set of N data, in nats, each with its standard error.

        E KL(q(z|x) || p(z)) = mi + kl_aggregate,    kl_aggregate = tc + sum(dim_kl)

    Attributes:
        mean_kl: the left side, in closed form.
        mi: mutual information I_q(x; z) between the index of a datum and its code.
        kl_aggregate: KL(q(z) || p(z)).
        tc: total correlation KL(q(z) || prod_k q(z_k)).
        dim_kl: KL(q(z_k) || p(z_k)), `(K,)`.
        log_n: log N, which the mutual information cannot exceed.
    """

    mean_kl: float
    mi: float
    mi_stderr: float
    kl_aggregate: float
    kl_aggregate_stderr: float
    tc: float
    tc_stderr: float
    dim_kl: Tensor
    dim_kl_stderr: Tensor
    log_n: float

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is within one nat of its limit log N, which then decides its value."""
        return self.mi > self.log_n - 1


@torch.no_grad()
def aggregate(
    mu: Tensor,
    logvar: Tensor,
    *,
    samples: int = 1,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Aggregate:
    """Measure the aggregated posterior of a whole set at `samples` codes from the posterior of each datum.

        mi           = E [log q(z|x) - log q(z)]
        kl_aggregate = E [log q(z) - log p(z)]
        tc           = E [log q(z) - sum_k log q(z_k)]
        dim_kl       = E [log q(z_k) - log p(z_k)]

    with q(z) and its marginals summed over all N posteriors. Standard errors treat the data as a random sample, so they
    are too large for one fixed set. p(z) is N(0, I). Another prior, given by its log density `log_prior`
    `(B, K) -> (B,)`, replaces N(0, I) in kl_aggregate only, not in mean_kl and dim_kl.

    Shapes: mu, logvar `(N, K)` with N >= 2. Cost: `samples * N * N * K` density evaluations; memory grows with N * K.

    Reference: Hoffman and Johnson, ELBO surgery, 2016; Chen et al., Isolating Sources of Disentanglement, 2018.

    Example:
        >>> apart = torch.tensor([[-9.0], [9.0]])
        >>> found = aggregate(apart, torch.zeros(2, 1), generator=torch.Generator().manual_seed(0))
        >>> round(found.mi, 4) == round(math.log(2), 4), found.saturated
        (True, True)
    """
    if mu.ndim != 2 or mu.shape != logvar.shape or mu.shape[0] < 2:
        raise ValueError(f"mu and logvar must be (N, K) with N >= 2, got {tuple(mu.shape)} and {tuple(logvar.shape)}.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    chunks = [slice(start, start + CODES_AT_ONCE) for start in range(0, mu.shape[0], CODES_AT_ONCE)]
    draws = []
    for _ in range(samples):
        bar = tqdm(chunks, desc="aggregated posterior", leave=False, disable=not progress)
        draws.append(torch.cat([_measure_codes(rows, mu, logvar, log_prior, generator) for rows in bar]))
    per_datum = torch.stack(draws).mean(0)
    value = per_datum.mean(0)
    stderr = per_datum.std(0) / math.sqrt(mu.shape[0])
    mi, kl_aggregate, tc = value[:3].tolist()
    mi_stderr, kl_aggregate_stderr, tc_stderr = stderr[:3].tolist()
    return Aggregate(
        mean_kl=gaussian_kl(mu.double(), logvar.double()).mean().item(),
        mi=mi,
        mi_stderr=mi_stderr,
        kl_aggregate=kl_aggregate,
        kl_aggregate_stderr=kl_aggregate_stderr,
        tc=tc,
        tc_stderr=tc_stderr,
        dim_kl=value[3:],
        dim_kl_stderr=stderr[3:],
        log_n=math.log(mu.shape[0]),
    )


def stratified_log_weights(B: int, N: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the log weights of the posteriors of a minibatch of M + 1 data in an estimate of q(z), `(B, B)`.

        1/N on the diagonal,    (N - 1) / (N M) elsewhere,    M = B - 1

    The estimate of q(z_b) is unbiased over the other members of the batch, in any order, and exact at B = N.
    """
    if not 2 <= B <= N:
        raise ValueError(f"a batch of B data out of N needs 2 <= B <= N, got B = {B} and N = {N}.")
    weights = torch.full((B, B), math.log((N - 1) / (N * (B - 1))), device=device)
    return weights.fill_diagonal_(-math.log(N))


def _measure_codes(
    rows: slice,
    mu: Tensor,
    logvar: Tensor,
    log_prior: Callable[[Tensor], Tensor] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Return mi, kl_aggregate, tc and dim_kl at one code for each of the data in `rows`, `(B, 3 + K)`."""
    z, _ = kernels.reparam_kl(mu[rows], logvar[rows], generator=generator)
    joint, marginals = kernels.log_aggregate(z, mu, logvar)
    log_p = log_prior(z) if log_prior is not None else None
    z = z.to(joint.dtype)
    log_q_x = DiagonalGaussian(mu[rows].to(z.dtype), logvar[rows].to(z.dtype)).log_prob(z)
    log_normal = log_standard_normal(z)
    log_p = log_normal.sum(-1) if log_p is None else log_p.to(z.dtype)
    parts = torch.stack([log_q_x - joint, joint - log_p, joint - marginals.sum(-1)], dim=-1)
    return torch.cat([parts, marginals - log_normal], dim=-1).double()
