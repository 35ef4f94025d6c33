"""Which factors there is anything to tell of."""

import torch
from torch import Tensor


def varying(labels: Tensor) -> list[int]:
    """Return the columns of labels `(N, F)` that have more than one value."""
    return (labels.amax(0) > labels.amin(0)).nonzero().flatten().tolist()


def ranked(labels: Tensor) -> Tensor:
    """Return labels with each column's values counted from 0 without a gap, `(N, F)`."""
    return torch.stack([known.unique(return_inverse=True)[1] for known in labels.T], dim=1)
