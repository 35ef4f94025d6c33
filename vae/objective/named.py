"""Objectives by the names of the literature."""

from typing import Literal

from vaebench.vae.objective.capacity import Capacity
from vaebench.vae.objective.factor_vae import FactorVAE
from vaebench.vae.objective.infovae import InfoVAE
from vaebench.vae.objective.tc_vae import TCVAE


def vae() -> InfoVAE:
    """Return the evidence lower bound: beta 1, alpha 0, lambda 1."""
    return InfoVAE()


def beta_vae(beta: float) -> InfoVAE:
    """Return E_q[log p(x|z)] - beta KL(q(z|x)||p(z))."""
    return InfoVAE(beta=beta)


def infovae(
    alpha: float,
    lambda_: float,
    *,
    divergence: Literal["mmd", "kl", "sliced", "stein", "adversarial"] = "mmd",
    estimator: Literal["u", "v"] = "u",
) -> InfoVAE:
    """Return E_q[log p(x|z)] - (1 - alpha) KL(q(z|x)||p(z)) - (alpha + lambda - 1) D(q(z)||p(z))."""
    return InfoVAE(alpha=alpha, lambda_=lambda_, divergence=divergence, estimator=estimator)


def mmd_vae(lambda_: float) -> InfoVAE:
    """Return E_q[log p(x|z)] - lambda MMD^2(q(z), p(z)): alpha 1, no KL."""
    return InfoVAE(alpha=1.0, lambda_=lambda_)


def tc_vae(*, w_mi: float = 1.0, w_tc: float = 1.0, w_dim: float = 1.0) -> TCVAE:
    """Return E_q[log p(x|z)] - (w_mi I + w_tc TC + w_dim sum_k KL_k); all three weights 1 give the ELBO."""
    return TCVAE(w_mi=w_mi, w_tc=w_tc, w_dim=w_dim)


def beta_tcvae(beta: float) -> TCVAE:
    """Return E_q[log p(x|z)] - (I + beta TC + sum_k KL_k), with the exact stratified weights for q(z).

    Reference: Chen et al., Isolating Sources of Disentanglement in Variational Autoencoders, 2018.
    """
    return tc_vae(w_tc=beta)


def factor_vae(gamma: float) -> FactorVAE:
    """Return E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z), the TC by a critic of codes and permuted codes.

    Reference: Kim and Mnih, Disentangling by Factorising, 2018.
    """
    return FactorVAE(gamma=gamma)


def capacity_vae(gamma: float, capacity: float, capacity_epochs: int) -> Capacity:
    """Return E_q[log p(x|z)] - gamma |KL(q(z|x)||p(z)) - C|, with C rising linearly from 0 to `capacity` nats.

    With a flow as prior or posterior the estimate of |KL - C| is biased upward near C, on digits by 0.1 nats.

    Reference: Burgess et al., Understanding Disentangling in beta-VAE, 2018.
    """
    return Capacity(gamma=gamma, capacity=capacity, capacity_epochs=capacity_epochs)
