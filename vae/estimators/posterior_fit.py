"""Per-datum inference: fit a posterior to each datum by itself, and measure the amortisation and the family gap.

    log p(x) - ELBO(amortised) = [log p(x) - ELBO(best of the family)] + [ELBO(best of the family) - ELBO(amortised)]
                                  gap of the family                       gap of amortisation

Reference: Cremer et al., Inference Suboptimality in Variational Autoencoders, 2018.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.estimators.elbo_gradients import pathwise
from vaebench.vae.estimators.evidence import Estimate, elbo
from vaebench.vae.prob.densities import LogDensity
from vaebench.vae.prob.proposals import GaussianProposal


@dataclass(frozen=True)
class InferenceGaps:
    """The amortisation gap and the family gap of each datum, in nats, `(B,)`, each with its standard error."""

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
    """Return the diagonal Gaussian with the highest ELBO for each datum, by stochastic ascent from `start`.

    Adam follows the pathwise gradient, with a learning rate that falls to zero along a cosine; all data are fitted in
    one batch.
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
    """Estimate the amortisation gap ELBO(fitted) - ELBO(amortised) and the family gap log p(x) - ELBO(fitted)."""
    best = elbo(log_joint, fitted, samples=samples, generator=generator)
    bound = elbo(log_joint, amortised, samples=samples, generator=generator)
    return InferenceGaps(
        amortisation=best.value - bound.value,
        amortisation_stderr=torch.hypot(best.stderr, bound.stderr),
        family=evidence.value - best.value,
        family_stderr=torch.hypot(evidence.stderr, best.stderr),
    )
