"""How well q(z|x) infers: the gap of the ELBO taken apart, and the width and place of q beside the posterior's.

    log p(x) - ELBO = [ELBO(best diagonal Gaussian) - ELBO(q)] + [log p(x) - ELBO(best diagonal Gaussian)]
                      amortisation                               family

The posterior's mean and standard deviations come from weighted draws of a Gaussian fitted to it, `estimators.laplace`.
With a posterior flow all of it takes place in the space of z0. Axes: B examples, K latent size.

Reference: Cremer et al., Inference Suboptimality in Variational Autoencoders, 2018.
"""

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from vaebench.vae.estimators.ais import START_WIDTH
from vaebench.vae.estimators.evidence import Estimate, elbo
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import fit_laplace
from vaebench.vae.estimators.posterior_fit import fit_posterior, inference_gaps
from vaebench.vae.evaluation.enclosure import mean_and_stderr
from vaebench.vae.evaluation.likelihood import codes_at_once
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.densities import IndexedLogDensity, LogDensity
from vaebench.vae.prob.proposals import FullGaussianProposal, GaussianProposal

STEPS, DRAWS_PER_STEP, DRAWS = 300, 8, 200
WEIGHTED_DRAWS, LEAST_ESS = 400, 50
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Inference:
    """The inference of each example.

    Attributes:
        amortisation, family: the parts of the gap, in nats, `(B,)`.
        narrowness: log of the posterior's standard deviation over q's, `(B, K)`: above 0 q is too narrow.
        narrowness_of_best: the same of the best diagonal Gaussian: what no encoder with such a q can avoid.
        offset: distance of q's mean from the posterior's, in the posterior's standard deviations, `(B, K)`.
        resolved: whether the estimate of log p(x) holds, `(B,)`; where it does not, `family` is in doubt.
    """

    amortisation: Tensor
    family: Tensor
    narrowness: Tensor
    narrowness_of_best: Tensor
    offset: Tensor
    resolved: Tensor

    @classmethod
    def join(cls, parts: list["Inference"]) -> "Inference":
        """Return the inference of the examples of all parts."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def metrics(self, active: Tensor) -> dict[str, float]:
        """Return the means over the examples, and over the active latents `(K,)` or all if none is active.

        The means of the standard deviations' ratios are geometric.
        """
        chosen = active if bool(active.any()) else torch.ones_like(active)
        found = {"gap/examples": float(len(self.family)), "gap/unresolved": float((~self.resolved).sum())}
        for name in ("amortisation", "family"):
            found[f"gap/{name}"], found[f"gap/{name}_stderr"] = mean_and_stderr(getattr(self, name))
        return found | {
            "q/narrowness": self.narrowness[:, chosen].mean().exp().item(),
            "q/narrowness_of_best": self.narrowness_of_best[:, chosen].mean().exp().item(),
            "q/offset": self.offset[:, chosen].square().mean().sqrt().item(),
        }


@torch.no_grad()
def measure_inference(
    model: GenerativeModel,
    x: Tensor,
    log_px: Estimate,
    *,
    steps: int = STEPS,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Inference:
    """Compare q with the posterior of each example `(B, *shape)`, and with the best Gaussian of q's family.

    Args:
        log_px: the estimate of log p(x) of these examples.
        steps: steps of the search for the best diagonal Gaussian.
    """
    log_joint, encoded = model.base_joint(x)
    q = GaussianProposal(encoded.mu.detach(), encoded.logvar.detach())
    joint, parts = CountedJoint(log_joint, q.mu, codes_at_once(x)), []
    for rows in joint.rows.split(max(1, joint.codes_in_graph // DRAWS_PER_STEP)):
        own = q.select(rows)
        laplace = fit_laplace(joint, rows, own)
        mean, std = _posterior_moments(joint, rows, laplace, generator)
        best = fit_posterior(
            partial(_swap, log_joint, rows),
            _choose_start(partial(_swap, joint, rows), own, laplace, generator),
            steps=steps,
            samples=DRAWS_PER_STEP,
            learning_rate=LEARNING_RATE,
            generator=generator,
            progress=progress,
        )
        evidence = Estimate(log_px.value[rows], log_px.stderr[rows], log_px.kind, log_px.cost)
        gaps = inference_gaps(partial(_swap, joint, rows), own, best, evidence, samples=DRAWS, generator=generator)
        parts.append(
            Inference(
                gaps.amortisation,
                gaps.family,
                std.log() - 0.5 * own.logvar,
                std.log() - 0.5 * best.logvar,
                (own.mu - mean).abs() / std,
                log_px.resolved[rows],
            )
        )
    return Inference.join(parts)


def _posterior_moments(
    joint: CountedJoint, rows: Tensor, fitted: FullGaussianProposal, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviations of the posterior of the indexed examples, `(b, K)` each.

    They are moments of weighted draws: a skewed posterior is wider than the curvature at its mode says. Where few draws
    have all the weight, the moments are those of the fitted Gaussian.
    """
    proposal = fitted.widen(START_WIDTH)
    z = proposal.sample(WEIGHTED_DRAWS, generator)
    w = torch.softmax(joint(z, rows) - proposal.log_prob(z), dim=0)[..., None]
    mean = (w * z).sum(0)
    variance = (w * (z - mean).square()).sum(0)
    usable = w.square().sum(0) < 1 / LEAST_ESS
    curvature = fitted.covariance.diagonal(dim1=-2, dim2=-1)
    return torch.where(usable, mean, fitted.mu), torch.where(usable, variance, curvature).sqrt()


def _choose_start(
    log_joint: LogDensity, own: GaussianProposal, fitted: FullGaussianProposal, generator: torch.Generator | None
) -> GaussianProposal:
    """Return the start of the search for each example: q, or N(m, diag(1 / P_kk)), whichever has the higher ELBO.

    For a Gaussian posterior the second is the best diagonal Gaussian. From a q whose width is wrong by far the search
    does not come there in its steps.
    """
    diagonal = GaussianProposal(fitted.mu, -(fitted.axes / fitted.std[:, None]).square().sum(-1).log())
    first, second = (elbo(log_joint, q, samples=DRAWS, generator=generator).value for q in (own, diagonal))
    better = (second >= first)[:, None]
    return GaussianProposal(torch.where(better, diagonal.mu, own.mu), torch.where(better, diagonal.logvar, own.logvar))


def _swap(log_joint: IndexedLogDensity, rows: Tensor, z: Tensor) -> Tensor:
    """Return log p(x, z) of the indexed examples, as a function of z in the last place."""
    return log_joint(z, rows)
