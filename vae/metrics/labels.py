"""Which factors there is anything to tell of."""

from torch import Tensor


def varying(labels: Tensor) -> list[int]:
    """Return the columns of labels `(N, F)` that have more than one value."""
    return (labels.amax(0) > labels.amin(0)).nonzero().flatten().tolist()
