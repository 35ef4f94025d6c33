"""The covariance of codes: their total correlation and their volume."""

import torch
from torch import Tensor


def gaussian_total_correlation(codes: Tensor) -> float:
    """Return the total correlation of a Gaussian with the covariance of the codes, in nats.

        TC = -1/2 log det R,    R the correlation matrix

    Constant latents are left out. Shapes: codes `(N, K)`.

    Reference: Locatello et al., 2019, appendix C, with the posterior means as codes.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> gaussian_total_correlation(z) == 0.0
        True
    """
    codes = codes.double()
    codes = codes[:, codes.amax(0) > codes.amin(0)]
    if codes.shape[1] < 2:
        return 0.0
    return -0.5 * torch.linalg.slogdet(torch.corrcoef(codes.T)).logabsdet.item()


def independent_total_correlation(N: int, K: int) -> float:
    """Return the mean `gaussian_total_correlation` of N draws of K independent normals, N > K.

        E TC = 1/2 sum_k [ psi((N - 1) / 2) - psi((N - k) / 2) ],    psi the digamma function

    about K (K - 1) / 4N, by the distribution of the determinant of a Wishart matrix.
    """
    k = torch.arange(1, K + 1, dtype=torch.float64)
    all_data = torch.tensor((N - 1) / 2, dtype=torch.float64)
    return 0.5 * (torch.digamma(all_data) - torch.digamma((N - k) / 2)).sum().item()


def log_det_covariance(mu: Tensor, logvar: Tensor | None = None) -> float:
    """Return log det Cov[z] under q(z) = 1/N sum_n N(mu_n, diag exp(logvar_n)), in nats, summed over the latents.

        Cov[z] = Cov[mu] + E diag exp(logvar)

    It is 0 for a standard normal, positive for codes of a larger volume, negative for narrow or correlated codes.
    Without `logvar`, `mu` are draws of z. Shapes: mu, logvar `(N, K)`.

    Reference: Zhao et al., InfoVAE: Balancing Learning and Inference in Variational Autoencoders, 2019, section 5.
    """
    covariance = torch.cov(mu.double().T, correction=0).reshape(mu.shape[1], mu.shape[1])
    if logvar is not None:
        covariance = covariance + torch.diag(logvar.double().exp().mean(0))
    return torch.linalg.slogdet(covariance).logabsdet.item()
