"""A Gaussian fitted to the posterior: its mode, and the curvature there.

    log p(x, z) ~ log p(x, m) - 1/2 (z - m)^T P (z - m),    m = argmax_z log p(x, z),    P = -d^2/dz^2 log p(x, m)

so p(z|x) is about N(m, P^-1), exactly where p(x, z) is Gaussian in z. A diagonal q ignores the correlations in P^-1.
Its best variances, 1 / P_kk, are smaller than those of the posterior, (P^-1)_kk.

Axes: b data, K latent size.

Reference: Tierney and Kadane, Accurate Approximations for Posterior Moments and Marginal Densities, 1986.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.prob.proposals import FullGaussianProposal, GaussianProposal

MOST_STEPS = 60
CLOSE = 1e-3
SUFFICIENT_SHARE = 1e-4
SHORTER = 0.4
SHORTEST = 1e-3
PRIOR_PRECISION = 1.0
FAR = 0.05


def fit_laplace(joint: CountedJoint, rows: Tensor, q: GaussianProposal) -> FullGaussianProposal:
    """Return N(m, P^-1) for each datum, found from q's mean; q itself where the climb or P is not finite.

    Eigenvalues of P are raised to at least 1, the precision of a standard normal prior, or to the least precision of q
    where q is wider. A last Newton step makes the fit exact for a Gaussian posterior; its Hessian is needed anyway. If
    that step gains much, but not what a quadratic would, the climb was not at its end, as may happen from a q that is
    far too narrow. Such data climb a second time, with P^-1 in place of q's covariance.
    """
    climbed = find_mode(joint, rows, q.mu, torch.diag_embed(q.logvar.exp()))
    fitted, early = _expand(joint, rows, climbed, q)
    again = early.nonzero()[:, 0]
    if len(again) == 0:
        return fitted
    climbed = find_mode(joint, rows[again], fitted.mu[again], fitted.covariance[again])
    second, _ = _expand(joint, rows[again], climbed, q.select(again))
    fitted.put(again, second)
    return fitted


def _expand(joint: CountedJoint, rows: Tensor, z: Tensor, q: GaussianProposal) -> tuple[FullGaussianProposal, Tensor]:
    """Fit a Gaussian by the derivatives at z; return it, and which data are far from their mode."""
    value, gradient, precision = joint.curvature(z, rows)
    finite = value.isfinite() & gradient.isfinite().all(-1) & precision.isfinite().all(-1).all(-1)
    narrow = torch.exp(-q.logvar)
    least = narrow.amin(-1).clamp(max=PRIOR_PRECISION)
    precision = torch.where(finite[:, None, None], precision, torch.diag_embed(narrow))
    fitted = FullGaussianProposal.from_precision(torch.where(finite[:, None], z, q.mu), precision, least)
    step = fitted.std * torch.einsum("bi,bij->bj", gradient, fitted.axes)
    newton = fitted.colour(torch.where(finite[:, None], step, 0.0))
    gain, expected = joint(newton[None], rows)[0] - value, 0.5 * step.square().sum(-1)
    kept = finite & (gain >= -_rounding(value))
    early = finite & (expected > FAR) & ~((gain - expected).abs() < 0.1 * expected)
    return FullGaussianProposal(torch.where(kept[:, None], newton, fitted.mu), fitted.std, fitted.axes), early


@dataclass
class _Climb:
    """The state of a climb: codes, log p(x, z), its gradient, the approximate P^-1, and the length of the next step."""

    z: Tensor
    value: Tensor
    gradient: Tensor
    inverse: Tensor
    length: Tensor

    def select(self, rows: Tensor) -> "_Climb":
        return _Climb(self.z[rows], self.value[rows], self.gradient[rows], self.inverse[rows], self.length[rows])

    def put(self, rows: Tensor, part: "_Climb") -> None:
        for name in ("z", "value", "gradient", "inverse", "length"):
            getattr(self, name)[rows] = getattr(part, name)


def find_mode(joint: CountedJoint, rows: Tensor, start: Tensor, inverse: Tensor, *, steps: int = MOST_STEPS) -> Tensor:
    """Climb log p(x, z) to its mode by the method of Broyden, Fletcher, Goldfarb and Shanno, `(b, K)`.

    `inverse` `(b, K, K)` is the first guess of P^-1. A datum stops where the next step would gain less than 0.0005
    nats, and the others go on without it. A step that gains too little is tried again at two fifths of its length.

    Reference: Nocedal and Wright, Numerical Optimization, 2006, section 6.1.
    """
    z = start.clone()
    state = _Climb(z, *joint.gradient(z, rows), inverse.clone(), torch.ones_like(z[:, 0]))
    climbing = torch.arange(len(rows), device=rows.device)
    for _ in range(steps):
        part = state.select(climbing)
        direction = torch.einsum("bij,bj->bi", part.inverse, part.gradient)
        slope = (direction * part.gradient).sum(-1)
        going = (slope > CLOSE) & (part.length > SHORTEST) & slope.isfinite()
        climbing = climbing[going]
        if len(climbing) == 0:
            break
        risen = _take_step(joint, rows[climbing], part.select(going), direction[going], slope[going])
        state.put(climbing, risen)
    return state.z


def _take_step(joint: CountedJoint, rows: Tensor, at: _Climb, direction: Tensor, slope: Tensor) -> _Climb:
    """Return the state after one step, or with a shorter one to try where log p(x, z) did not rise enough."""
    step = at.length[:, None] * direction
    value, gradient = joint.gradient(at.z + step, rows)
    required = SUFFICIENT_SHARE * at.length * slope - _rounding(at.value)
    risen = (value >= at.value + required) & value.isfinite() & gradient.isfinite().all(-1)
    inverse = _update_inverse(at.inverse, step, at.gradient - gradient, risen)
    return _Climb(
        torch.where(risen[:, None], at.z + step, at.z),
        torch.where(risen, value, at.value),
        torch.where(risen[:, None], gradient, at.gradient),
        inverse,
        torch.where(risen, 1.0, SHORTER * at.length),
    )


def _rounding(value: Tensor) -> Tensor:
    """Return the error that a sum of about this value may have: near -2000, 0.002 in single precision."""
    return 8 * torch.finfo(value.dtype).eps * value.abs()


def _update_inverse(inverse: Tensor, step: Tensor, change: Tensor, risen: Tensor) -> Tensor:
    """Return the P^-1 nearest to the last one that maps the change of the gradient to the step, where s^T y > 0.

    (I - s y^T / s^T y) H (I - y s^T / s^T y) + s s^T / s^T y,    s step, y = -change of the gradient of log p(x, z)
    """
    product = (step * change).sum(-1)
    curved = risen & (product > 1e-6 * step.norm(dim=-1) * change.norm(dim=-1)) & product.isfinite()
    scale = torch.where(curved, product, 1.0)[:, None, None]
    left = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device) - step[:, :, None] * change[:, None] / scale
    updated = left @ inverse @ left.mT + step[:, :, None] * step[:, None] / scale
    return torch.where(curved[:, None, None], updated, inverse)
