"""Which latents are needed to tell a factor: disentanglement, completeness and informativeness by boosted trees."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.metrics.labels import varying

TREES, DEPTH = 100, 3
ALMOST_NOTHING = 1e-11


@dataclass(frozen=True)
class Dci:
    """Three scores from 0 to 1.

    Attributes:
        disentanglement: 1 - the entropy of what a latent is needed for, in units of log F, weighted by need.
        completeness: 1 - the entropy of what a factor needs, in units of log K, weighted by need.
        informativeness: share of the test points whose factor is told right, averaged over the factors.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(
    train_codes: Tensor,
    train_labels: Tensor,
    test_codes: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Dci:
    """Return the scores of Eastwood and Williams, with one classifier a factor of boosted trees.

        R_kf = gain of all splits on latent k in telling factor f, its sum over k 1
        disentanglement = sum_k w_k (1 - H(R_k. / sum_f R_kf) / log F),    w_k = sum_f R_kf / F
        completeness    = 1/F sum_f (1 - H(R_.f) / log K)

    100 rounds of trees of depth 3 as in Locatello et al., who have 10 000 points to train and 5 000 to test, but grown
    from histograms of 255 bins with second-order gains: many times faster, and within a fifth of theirs where codes mix
    factors (docs/metrics.md). Factors of one value are left out; a code of one latent has a second that is constant.

    Shapes: codes `(N, K)`, labels `(N, F)` with F >= 2.

    Reference: Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled Representations, 2018.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second, and only labels need it

    needs, right = [], []
    for f in tqdm(varying(train_labels), desc="DCI trees", leave=False, disable=not progress):
        model = HistGradientBoostingClassifier(
            max_iter=TREES, max_depth=DEPTH, early_stopping=False, random_state=seed
        ).fit(train_codes.cpu().numpy(), train_labels[:, f].cpu().numpy())
        needs.append(split_gains(model, train_codes.shape[1]))
        right.append(float(model.score(test_codes.cpu().numpy(), test_labels[:, f].cpu().numpy())))
    matrix = torch.stack(needs, dim=1)
    if matrix.shape[0] == 1:
        matrix = torch.cat([matrix, torch.zeros_like(matrix)])
    return Dci(disentanglement(matrix), completeness(matrix), sum(right) / len(right))


def split_gains(model: Any, latents: int) -> Tensor:
    """Return each latent's share in the gain of all splits of boosted trees, zeros where there was none, `(K,)`.

    scikit-learn keeps these gains, and offers no importance made of them.
    """
    gains = torch.zeros(latents, dtype=torch.float64)
    for tree in (tree for trees in model._predictors for tree in trees):
        splits = tree.nodes[tree.nodes["is_leaf"] == 0]
        gains.index_add_(
            0, torch.from_numpy(splits["feature_idx"].astype("int64")), torch.tensor(splits["gain"]).double()
        )
    return gains / gains.sum().clamp(min=torch.finfo(gains.dtype).tiny)


def disentanglement(needs: Tensor) -> float:
    """Return how little each latent is needed for more than one factor, from needs `(K, F)`."""
    return _concentration(needs)


def completeness(needs: Tensor) -> float:
    """Return how little each factor needs more than one latent, from needs `(K, F)`."""
    return _concentration(needs.T)


def _concentration(needs: Tensor) -> float:
    """Return 1 - the entropy of each row, in units of its largest, averaged by the rows' sums; 0 without any need."""
    shares = (needs + ALMOST_NOTHING) / (needs + ALMOST_NOTHING).sum(1, keepdim=True)
    largest = torch.tensor(float(needs.shape[1])).double().log()
    concentration = 1 + torch.special.xlogy(shares, shares).sum(1) / largest
    weights = needs.sum(1)
    return (concentration * weights).sum().div(weights.sum()).nan_to_num().item()
