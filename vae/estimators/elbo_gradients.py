"""Estimators of the gradient of the evidence lower bound, with one value per sample to show their variance.

    ELBO(theta, phi) = E_q(z; phi) [log p(x, z; theta) - log q(z; phi)],    q = N(mu, diag(exp(logvar)))

Axes: S samples, B data, K latent size; `log_joint(z)` maps `(S, B, K)` to `(S, B)`. The gradient with respect to the
weights of an encoder follows from that with respect to its outputs mu and logvar by the chain rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaebench.vae.prob.densities import LogDensity
from vaebench.vae.prob.draws import normal_like
from vaebench.vae.prob.proposals import GaussianProposal

Parameters = dict[str, Tensor]
ParametrisedJoint = Callable[[Parameters, Tensor], Tensor]
Baseline = Tensor | Literal["none", "leave_one_out"]


@dataclass(frozen=True)
class GaussianGradient:
    """Gradients with respect to mu and logvar for each sample, `(S, B, K)` each; the mean over S is the estimate."""

    mu: Tensor
    logvar: Tensor


def pathwise(
    log_joint: LogDensity, mu: Tensor, logvar: Tensor, *, samples: int, generator: torch.Generator | None = None
) -> GaussianGradient:
    """Differentiate the bound along the path z = mu + exp(logvar / 2) * eps.

        d/dmu = g,    d/dlogvar = 1/2 g exp(logvar / 2) eps + 1/2,    g = grad_z log p(x, z)

    The 1/2 is the gradient of the entropy of q, in closed form.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, section 2.4.
    """
    eps = normal_like(mu.expand(samples, *mu.shape), generator)
    noise = torch.exp(0.5 * logvar.detach()) * eps
    with torch.enable_grad():
        z = (mu.detach() + noise).requires_grad_()
        (g,) = torch.autograd.grad(log_joint(z).sum(), z)
    return GaussianGradient(g, 0.5 * g * noise + 0.5)


@torch.no_grad()
def score_function(
    log_joint: LogDensity,
    mu: Tensor,
    logvar: Tensor,
    *,
    samples: int,
    baseline: Baseline = "none",
    generator: torch.Generator | None = None,
) -> GaussianGradient:
    """Weight the score of q by the log weight minus a baseline; needs no gradient of the model.

        (f - b) grad_phi log q(z),    f = log p(x, z) - log q(z),    E grad_phi log q = 0

    The baseline b is a tensor `(B,)` independent of these samples, or with `leave_one_out` the mean of f over the other
    samples.

    Reference: Williams, Simple Statistical Gradient-Following Algorithms, 1992; Mnih and Rezende, Variational Inference
    for Monte Carlo Objectives, 2016.
    """
    q = GaussianProposal(mu, logvar)
    z = q.sample(samples, generator)
    f_SB = log_joint(z) - q.log_prob(z)
    centred_SB = f_SB - _baseline(f_SB, baseline)
    white = (z - mu) * torch.exp(-0.5 * logvar)
    weight = centred_SB[..., None]
    return GaussianGradient(weight * white * torch.exp(-0.5 * logvar), weight * 0.5 * (white.square() - 1))


def model_gradient(log_joint: ParametrisedJoint, parameters: Parameters, z: Tensor) -> Parameters:
    """Return the gradient of the mean over the data of log p(x, z; theta), for each sample, `(S, *theta.shape)` each.

        grad_theta ELBO = E_q grad_theta log p(x, z; theta)

    Args:
        log_joint: maps parameters by name, as for `torch.func.functional_call`, and codes to `(S, B)`.
        z: draws from q, `(S, B, K)`, independent of theta.
    """

    def mean_joint(parameters: Parameters, z_BK: Tensor) -> Tensor:
        return log_joint(parameters, z_BK[None]).mean()

    per_sample: Parameters = torch.func.vmap(torch.func.grad(mean_joint), in_dims=(None, 0))(parameters, z)
    return per_sample


def _baseline(f_SB: Tensor, baseline: Baseline) -> Tensor:
    if isinstance(baseline, Tensor):
        return baseline
    if baseline == "none":
        return torch.zeros_like(f_SB[0])
    if len(f_SB) < 2:
        raise ValueError(f"leave_one_out needs at least 2 samples, got {len(f_SB)}.")
    return (f_SB.sum(0) - f_SB) / (len(f_SB) - 1)
