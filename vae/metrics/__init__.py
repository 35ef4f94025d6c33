"""Scores of codes as pure functions of tensors: no model, no data set, no state.

Axes: N points, K latents, F factors, V values of a factor. Codes are `(N, K)`, labels `(N, F)` in int64.
`reference_codes` are codes with known scores, to compare others with.
"""

from vaebench.vae.metrics.classes import class_mismatch, sampling_mismatch, svm_error
from vaebench.vae.metrics.covariance import (
    gaussian_total_correlation,
    independent_total_correlation,
    log_det_covariance,
)
from vaebench.vae.metrics.dci import Dci, dci
from vaebench.vae.metrics.factor_vae import factor_vae_score
from vaebench.vae.metrics.labels import renumber, varying_factors
from vaebench.vae.metrics.mig import binned_information, binned_mig, posterior_information, posterior_mig
from vaebench.vae.metrics.reference_codes import reference_codes
from vaebench.vae.metrics.sap import sap_score

__all__ = [
    "Dci",
    "binned_information",
    "binned_mig",
    "class_mismatch",
    "dci",
    "factor_vae_score",
    "gaussian_total_correlation",
    "independent_total_correlation",
    "log_det_covariance",
    "posterior_information",
    "posterior_mig",
    "reference_codes",
    "renumber",
    "sampling_mismatch",
    "sap_score",
    "svm_error",
    "varying_factors",
]
