"""log p(x) of data under a model, in blocks that bound the memory."""

import math

import torch
from torch import Tensor

from vaebench.vae.estimators import adaptive
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import fit_laplace
from vaebench.vae.estimators.log_likelihood import DEFAULT, CheckedEstimate, Policy, log_likelihood
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.proposals import GaussianProposal

# On a CPU, parameters of p(x|z) for so many elements stay in the cache: blocks of 2**24 elements took twice as long.
ELEMENTS_AT_ONCE = {"cpu": 2**19}
MOST_ELEMENTS_AT_ONCE = 2**24


@torch.no_grad()
def model_log_likelihood(
    model: GenerativeModel,
    x: Tensor,
    *,
    policy: Policy = DEFAULT,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> CheckedEstimate:
    """Estimate log p(x) of each example `(B, *shape)`, by sampling codes around the posterior's mode.

    Where a flow maps z0 to z, all of it takes place in the space of z0, and no flow is inverted.
    """
    log_joint, q = model.base_joint(x)
    return log_likelihood(
        log_joint,
        GaussianProposal(q.mu, q.logvar),
        policy=policy,
        codes_at_once=codes_at_once(x),
        generator=generator,
        progress=progress,
    )


@torch.no_grad()
def annealed_log_likelihood(
    model: GenerativeModel,
    x: Tensor,
    *,
    temperatures: int,
    chains: int,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Estimate:
    """Estimate log p(x) of each example `(B, *shape)` by annealing from a Gaussian fitted to its posterior.

    The chains move: they find codes near the fit that independent draws from it miss.
    """
    log_joint, posterior = model.base_joint(x)
    q = GaussianProposal(posterior.mu, posterior.logvar)
    joint, value, stderr = CountedJoint(log_joint, q.mu, codes_at_once(x)), [], []
    for rows in joint.rows.split(joint.data_at_once(chains)):
        fitted = fit_laplace(joint, rows, q.select(rows))
        part = adaptive.anneal(
            joint, rows, fitted, temperatures=temperatures, chains=chains, generator=generator, progress=progress
        )
        value.append(part.value)
        stderr.append(part.stderr)
    return Estimate(torch.cat(value), torch.cat(stderr), "unbiased", math.ceil(joint.spent.mean().item()))


def codes_at_once(x: Tensor) -> int:
    """Return for how many codes p(x|z) is computed in one call, for examples `(B, *shape)`."""
    elements = ELEMENTS_AT_ONCE.get(x.device.type, MOST_ELEMENTS_AT_ONCE)
    return max(1, elements // x[0].numel())
