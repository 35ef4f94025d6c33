"""E log 1/k sum_s w_s,    w_s = p(x, z_s) / q(z_s|x),    z_1 ... z_k ~ q(z|x): the bound of order k of log p(x).

It is the ELBO at k = 1, does not fall with k, and goes to log p(x). With the normalised weights v_s = w_s / sum_r w_r,
the gradient in the parameters of p is sum_s v_s grad log p(x, z_s). In those of q there are two unbiased estimators:

    plain: sum_s v_s grad log w_s
    dreg:  sum_s v_s^2 (d log w_s / dz_s) grad z_s,    where the parameters of the density q in w_s are constants

The signal-to-noise ratio of the plain one falls like 1 / sqrt(k), the one of dreg rises like sqrt(k), where
E_q w^4 is finite. It is not for a q that is much narrower than the posterior.

Reference: Burda et al., Importance Weighted Autoencoders, 2016; Rainforth et al., Tighter Variational Bounds Are Not
Necessarily Better, 2018; Tucker et al., Doubly Reparameterized Gradient Estimators, 2019.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vaebench.vae.config.fields import field
from vaebench.vae.config.objective import Batch, Density, Objective, Weight
from vaebench.vae.prob.terms import Terms


@dataclass(frozen=True)
class IWAE(Objective):
    """The importance-weighted bound of order `samples`.

    With a posterior flow z = T(z0), the gradient of q at a constant T and constant context needs the inverse of T,
    which takes as many passes of a network as there are latents; `plain` does not.
    """

    name: ClassVar[str] = "iwae"
    sentence: ClassVar[str] = "the importance-weighted bound of order k"

    samples: int = field(5, "k, the codes drawn for each example.", at_least=1)
    gradient: Literal["dreg", "plain"] = field(
        "dreg", "Estimator of the encoder's gradient: dreg's signal-to-noise rises with k, that of plain falls."
    )

    @property
    def draws(self) -> int:
        return self.samples

    @property
    def needs(self) -> Density | None:
        return "draw"

    def weights(self, epochs_done: float) -> dict[str, float]:
        return {}

    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the mean of the bound over the batch. With dreg, call it once for each `Terms`.

        A warm-up b makes w_s = p(x|z_s) (p(z_s) / q(z_s|x))^b. The factor v_s^2 of dreg is then v_s (1 - b + b v_s).
        """
        log_w = self.log_weights(terms, weights["warmup"])
        bound = (log_w.logsumexp(0) - math.log(len(log_w))).mean()
        if self.gradient == "dreg" and terms.z.requires_grad:
            shares = log_w.detach().softmax(0)
            factor = (1 - weights["warmup"] + weights["warmup"] * shares).reshape(terms.log_px.shape)
            terms.z.register_hook(lambda gradient: gradient * factor[..., None])
        return bound, None

    def log_weights(self, terms: Terms, warmup: Weight = 1.0) -> Tensor:
        """Return log w, `(k, B)`; with dreg, the density of q is a function of z alone."""
        log_q = terms.log_q(constant=self.gradient == "dreg" and terms.z.requires_grad)
        log_w = terms.log_px + warmup * (terms.log_prior(terms.z) - log_q)
        return log_w if log_w.ndim > 1 else log_w[None]

    def describe(self, epochs: int) -> str:
        return f"bound of {self.samples} draws, gradient {self.gradient}"
