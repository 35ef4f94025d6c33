"""The separated attribute predictability (SAP) score: does exactly one latent predict each factor?"""

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.vae.metrics.labels import varying_factors

PENALTY = 0.01


def sap_score(
    train_codes: Tensor,
    train_labels: Tensor,
    test_codes: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
    progress: bool = False,
) -> float:
    """Return the accuracy gap between the two latents that predict a factor best on their own, averaged over factors.

        SAP = 1/F sum_f [ A_1f - A_2f ],    A_kf the test accuracy of a linear classifier of v_f from z_k

    The classifiers are support vector machines with C = 0.01 and classes weighted inversely to their frequency. From
    one latent they can only tell the outermost values of a factor, so the factors themselves score far below 1. The
    penalty makes the score depend on the scale of the codes. Locatello et al. have 10 000 points to train and 5 000 to
    test. A code of one latent gets a second, constant one.

    Shapes: codes `(N, K)`, labels `(N, F)`.

    Reference: Kumar et al., Variational Inference of Disentangled Latent Concepts, 2018; Locatello et al., 2019.
    """
    if train_codes.shape[1] == 1:
        train_codes, test_codes = (
            torch.cat([codes, torch.zeros_like(codes)], 1) for codes in (train_codes, test_codes)
        )
    latents = tqdm(range(train_codes.shape[1]), desc="SAP latents", leave=False, disable=not progress)
    accuracy = [
        [
            _accuracy(train_codes[:, k], train_labels[:, f], test_codes[:, k], test_labels[:, f], seed)
            for f in varying_factors(train_labels)
        ]
        for k in latents
    ]
    first, second = torch.tensor(accuracy, dtype=torch.float64).topk(2, dim=0).values
    return (first - second).mean().item()


def _accuracy(codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor, seed: int) -> float:
    """Return the test accuracy of a linear classifier from one latent."""
    from sklearn.svm import LinearSVC  # the import takes a second, and only labels need it

    model = LinearSVC(C=PENALTY, class_weight="balanced", dual=False, random_state=seed)
    model.fit(codes[:, None].double().cpu().numpy(), labels.cpu().numpy())
    return float(model.score(test_codes[:, None].double().cpu().numpy(), test_labels.cpu().numpy()))
