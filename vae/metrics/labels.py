"""Labels of factors: which of them vary, and values without gaps."""

import torch
from torch import Tensor


def varying_factors(labels: Tensor) -> list[int]:
    """Return the columns of labels `(N, F)` that have more than one value."""
    return (labels.amax(0) > labels.amin(0)).nonzero().flatten().tolist()


def renumber(labels: Tensor) -> Tensor:
    """Return labels with the values of each column numbered 0, 1, ... in their order, `(N, F)`."""
    return torch.stack([column.unique(return_inverse=True)[1] for column in labels.T], dim=1)
