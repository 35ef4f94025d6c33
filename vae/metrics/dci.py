"""Disentanglement, completeness and informativeness (DCI), by boosted trees that predict factors from latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.metrics.labels import varying_factors

TREES, DEPTH = 100, 3
SMALLEST_SHARE = 1e-11


@dataclass(frozen=True)
class Dci:
    """Three scores from 0 to 1.

    Attributes:
        disentanglement: 1 - the entropy of a latent's importances over the factors, in units of log F.
        completeness: 1 - the entropy of a factor's importances over the latents, in units of log K.
        informativeness: the share of test points whose factor is predicted correctly, averaged over the factors.
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
    """Return the scores of Eastwood and Williams, with one classifier of boosted trees for each factor.

        R_kf = gain of all splits on latent k in predicting factor f, normalised to sum_k R_kf = 1
        disentanglement = sum_k w_k (1 - H(R_k. / sum_f R_kf) / log F),    w_k = sum_f R_kf / F
        completeness    = 1/F sum_f (1 - H(R_.f) / log K)

    100 rounds of trees of depth 3 as in Locatello et al., who have 10 000 points to train and 5 000 to test. But these
    trees are grown from histograms of 255 bins with second-order gains: many times faster, with scores within a fifth
    where codes mix factors (docs/metrics.md). Factors of one value are left out.

    With F = 1 or K = 1 the definition is 0 / 0. A second factor without importances, or a second, constant latent, then
    replaces log 1 by log 2, and the score is 1, as it is for any number of these. So the disentanglement of one factor
    is 1 for every code that carries it, and the completeness of one latent is 1.

    Shapes: codes `(N, K)`, labels `(N, F)` with at least one factor that varies.

    Reference: Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled Representations, 2018.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # the import takes a second, and only labels need it

    importances, accuracies = [], []
    for f in tqdm(varying_factors(train_labels), desc="DCI trees", leave=False, disable=not progress):
        model = HistGradientBoostingClassifier(
            max_iter=TREES, max_depth=DEPTH, early_stopping=False, random_state=seed
        ).fit(train_codes.cpu().numpy(), train_labels[:, f].cpu().numpy())
        importances.append(split_gains(model, train_codes.shape[1]))
        accuracies.append(float(model.score(test_codes.cpu().numpy(), test_labels[:, f].cpu().numpy())))
    matrix = torch.stack(importances, dim=1)
    return Dci(concentration(matrix), concentration(matrix.T), sum(accuracies) / len(accuracies))


def split_gains(model: Any, latents: int) -> Tensor:
    """Return each latent's share in the gain of all splits of boosted trees, zeros where there is no split, `(K,)`.

    scikit-learn stores these gains, but offers no feature importances from them.
    """
    gains = torch.zeros(latents, dtype=torch.float64)
    for tree in (tree for trees in model._predictors for tree in trees):
        splits = tree.nodes[tree.nodes["is_leaf"] == 0]
        gains.index_add_(
            0, torch.from_numpy(splits["feature_idx"].astype("int64")), torch.tensor(splits["gain"]).double()
        )
    return gains / gains.sum().clamp(min=torch.finfo(gains.dtype).tiny)


def concentration(importances: Tensor) -> float:
    """Return 1 - the entropy of each row in units of the largest possible, averaged with the row sums as weights.

    Of importances `(K, F)` it is the disentanglement, of their transpose the completeness; 0 if all are zero. A single
    column gets a second one of zeros, since the largest entropy of one share is 0.
    """
    if importances.shape[1] == 1:
        importances = torch.cat([importances, torch.zeros_like(importances)], dim=1)
    shares = (importances + SMALLEST_SHARE) / (importances + SMALLEST_SHARE).sum(1, keepdim=True)
    largest = torch.tensor(float(importances.shape[1])).double().log()
    per_row = 1 + torch.special.xlogy(shares, shares).sum(1) / largest
    weights = importances.sum(1)
    return (per_row * weights).sum().div(weights.sum()).nan_to_num().item()
