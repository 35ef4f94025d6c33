"""The centre about which mmd2 measures distances: the median of a few rows."""

import math

import torch
from torch import Tensor

MOST_ROWS = 31  # whose median is the centre: more rows would take longer to sort than few distances take


def row_stride(n: int) -> int:
    """Return the distance between two rows of the median, modulo n.

    It is about the golden ratio of n, because outliers may recur with a period, and visits no row twice.
    """
    return next(s for s in range(round(0.618 * n), n + 1) if math.gcd(s, n) == 1)


def centre(p: Tensor) -> Tensor:
    """Return a point in the middle of the rows, `(..., N, K) -> (..., 1, K)`: about it distances have small errors.

    It is the median of each column over at most MOST_ROWS rows, because a mean would follow outliers. The median is
    found by sorting, because torch.median has no deterministic version on a GPU.
    """
    n = p.shape[-2]
    if n > MOST_ROWS:
        rows = torch.arange(MOST_ROWS, device=p.device).mul_(row_stride(n)).remainder_(n)
        p = p.index_select(-2, rows)
    middle = p.shape[-2] // 2
    return p.sort(-2).values[..., middle : middle + 1, :]
