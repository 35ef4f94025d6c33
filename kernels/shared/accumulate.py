"""The dtype of sums, and the reductions of the KL."""

import torch
from torch import Tensor


def accumulator(x: Tensor) -> torch.dtype:
    """Return the dtype in which x is summed: float64 for float64, float32 for every other dtype."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def reduce_kl(kl: Tensor, reduction: str) -> Tensor:
    """Reduce elementwise terms `(B, ...)`: `none` as they are, `dim` -> `(...)`, `sample` -> `(B,)`, `batch` -> ()."""
    if reduction == "none":
        return kl
    if reduction == "dim":
        return kl.mean(0)
    sample = kl.flatten(1).sum(1) if kl.ndim > 1 else kl
    return sample if reduction == "sample" else sample.mean()
