"""Free-form inference: a posterior fitted to each datum by itself, and what amortisation and the family cost.

    log p(x) - ELBO(amortised) = [log p(x) - ELBO(best of the family)] + [ELBO(best of the family) - ELBO(amortised)]
                                  gap of the family                       gap of amortisation

Reference: Cremer et al., Inference Suboptimality in Variational Autoencoders, 2018.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.estimators.elbo_gradients import pathwise
from vaebench.vae.estimators.evidence import Estimate, LogDensity, elbo
from vaebench.vae.prob.proposals import GaussianProposal


@dataclass(frozen=True)
class InferenceGaps:
    """What inference loses for each datum, in nats, `(B,)`, each with its standard error."""

    amortisation: Tensor
    amortisation_stderr: Tensor
    family: Tensor
    family_stderr: Tensor


def fit_posterior(
    log_joint: LogDensity,
    start: GaussianProposal,
    *,
    steps: int = 500,
    samples: int = 16,
    learning_rate: float = 0.1,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> GaussianProposal:
    """Return the diagonal Gaussian of the highest ELBO for each datum, by stochastic ascent from `start`.

    Adam on the pathwise gradient, its rate falling to zero along a cosine; all data are fitted side by side.
    """
    mu, logvar = start.mu.detach().clone(), start.logvar.detach().clone()
    optimizer = torch.optim.Adam([mu, logvar], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for _ in tqdm(range(steps), desc="fitting posteriors", leave=False, disable=not progress):
        gradient = pathwise(log_joint, mu, logvar, samples=samples, generator=generator)
        mu.grad, logvar.grad = -gradient.mu.mean(0), -gradient.logvar.mean(0)
        optimizer.step()
        schedule.step()
    return GaussianProposal(mu, logvar)


def inference_gaps(
    log_joint: LogDensity,
    amortised: GaussianProposal,
    fitted: GaussianProposal,
    evidence: Estimate,
    *,
    samples: int,
    generator: torch.Generator | None = None,
) -> InferenceGaps:
    """Measure the gap of amortisation, ELBO(fitted) - ELBO(amortised), and of the family, log p(x) - ELBO(fitted)."""
    best = elbo(log_joint, fitted, samples=samples, generator=generator)
    bound = elbo(log_joint, amortised, samples=samples, generator=generator)
    return InferenceGaps(
        amortisation=best.value - bound.value,
        amortisation_stderr=torch.hypot(best.stderr, bound.stderr),
        family=evidence.value - best.value,
        family_stderr=torch.hypot(evidence.stderr, best.stderr),
    )
