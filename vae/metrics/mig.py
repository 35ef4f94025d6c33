"""The mutual information of latents and factors, in nats, and the mutual information gap (MIG), in two definitions.

    MIG = 1/F sum_f [ I(z_1; v_f) - I(z_2; v_f) ] / H(v_f),    z_1, z_2 the two latents with the largest I(z; v_f)

A code of one latent gets a second with information 0. A factor of one value has no entropy and is left out.
"""

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench import kernels

BINS = 20


def binned_mig(codes: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """Return the MIG of one code for each point, such as the posterior mean, as Locatello et al. measure it.

    Published figures have 10 000 points. The factors themselves score less than 1, since 20 bins cannot hold 40 values.

    Shapes: codes `(N, K)`, labels `(N, F)`.

    Reference: Locatello et al., Challenging Common Assumptions in the Unsupervised Learning of Disentangled
    Representations, 2019, appendix C.

    Example:
        >>> labels = torch.cartesian_prod(torch.arange(4), torch.arange(3))
        >>> round(binned_mig(labels.double(), labels), 6), binned_mig(labels.sum(1, keepdim=True).expand(-1, 2), labels)
        (1.0, 0.0)
    """
    return _mean_gap(binned_information(codes, labels, bins=bins), labels)


def posterior_mig(
    mu: Tensor, logvar: Tensor, labels: Tensor, *, generator: torch.Generator | None = None, progress: bool = False
) -> float:
    """Return the MIG of the posteriors q(z|x), as Chen et al. define it: see `posterior_information`.

    Shapes: mu, logvar `(N, K)`, labels `(N, F)`.

    Reference: Chen et al., Isolating Sources of Disentanglement in Variational Autoencoders, 2018, section 4.1.
    """
    return _mean_gap(posterior_information(mu, logvar, labels, generator=generator, progress=progress), labels)


def binned_information(codes: Tensor, labels: Tensor, *, bins: int = BINS) -> Tensor:
    """Return I(z_k; v_f) of the counts, with each latent cut into bins of equal width over its range, `(K, F)`.

        I(z; v) = H(z) + H(v) - H(z, v)

    Shapes: codes `(N, K)`, labels `(N, F)`.
    """
    rows = []
    for cells in _assign_bins(codes, bins).T:
        pairs = [_entropy(cells) + _entropy(factor) - _entropy(_join(cells, factor)) for factor in labels.T]
        rows.append(torch.stack(pairs))
    return torch.stack(rows)


def posterior_information(
    mu: Tensor, logvar: Tensor, labels: Tensor, *, generator: torch.Generator | None = None, progress: bool = False
) -> Tensor:
    """Estimate I(z_k; v_f) = E [log q(z_k|v_f) - log q(z_k)] at one draw from the posterior of each point, `(K, F)`.

    q(z_k|v) is the mixture of the posteriors of the points with value v, q(z_k) of all points, and both include the
    point's own posterior. So the N points are taken for the whole set: posteriors much narrower than the distance
    between points give every latent full information about every factor.

    Shapes: mu, logvar `(N, K)`, labels `(N, F)`. Cost: about N * N * K densities, and 1 / V of it for each factor.
    """
    z, _ = kernels.reparam_kl(mu, logvar, generator=generator)
    marginal = kernels.log_aggregate(z, mu, logvar)[1]
    columns = []
    for factor in tqdm(labels.T, desc="information of posteriors", leave=False, disable=not progress):
        conditional = torch.empty_like(marginal)
        for value in factor.unique():
            rows = factor == value
            conditional[rows] = kernels.log_aggregate(z[rows], mu[rows], logvar[rows])[1]
        columns.append((conditional - marginal).double().mean(0))
    return torch.stack(columns, dim=1)


def _mean_gap(information: Tensor, labels: Tensor) -> float:
    """Return the mean over the factors of the gap between the two largest of each column, in units of the entropy."""
    entropy = torch.stack([_entropy(factor) for factor in labels.T])
    no_information = torch.zeros_like(information[:1])
    first, second = torch.cat([information, no_information]).topk(2, dim=0).values
    return ((first - second) / entropy)[entropy > 0].mean().item()


def _assign_bins(codes: Tensor, bins: int) -> Tensor:
    """Return the bin of each code, 0 to bins - 1, over its latent's range; a code on an edge is in the bin above it."""
    codes = codes.double()
    low, high = codes.amin(0), codes.amax(0)
    shares = torch.arange(1, bins, dtype=codes.dtype, device=codes.device) / bins
    edges = low[:, None] + (high - low)[:, None] * shares
    return torch.searchsorted(edges, codes.T.contiguous(), right=True).T


def _join(a: Tensor, b: Tensor) -> Tensor:
    """Return one integer for each pair of integers."""
    return a * (b.max() - b.min() + 1) + b - b.min()


def _entropy(values: Tensor) -> Tensor:
    """Return the entropy of the counts of integers, a scalar in float64."""
    p = values.unique(return_counts=True)[1].double() / len(values)
    return -torch.special.xlogy(p, p).sum()
