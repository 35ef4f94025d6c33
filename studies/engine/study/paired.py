"""log p(x) of each validation example, kept beside a trial's weights, and the difference of two trials over them.

All trials of a study are measured on the same examples. An example that is hard for every model shifts the means of all
trials alike and cancels in their difference. So the standard error of the difference is far below that of either mean.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vaebench.vae.estimators.evidence import Estimate

FILE = "log_px.safetensors"
TIED_STDERRS = 2


@dataclass(frozen=True)
class ExampleLikelihoods:
    """Estimates of log p(x) of B examples.

    Attributes:
        value: `(B,)`.
        stderr: `(B,)`, the standard error of `value` from the sampling.
        passed: `(B,)`, whether the estimate can be trusted; where it cannot, `value` is too low.
        data: digest of the data that the examples are taken from.
    """

    value: Tensor
    stderr: Tensor
    passed: Tensor
    data: str

    @property
    def unresolved(self) -> int:
        """Return the number of examples whose estimate is a lower bound alone."""
        return int((~self.passed).sum())

    @classmethod
    def from_estimate(cls, estimate: Estimate, data: str) -> "ExampleLikelihoods":
        """Keep the estimates on the CPU; an estimate without a check passes for all examples."""
        return cls(estimate.value.cpu(), estimate.stderr.cpu(), estimate.resolved.cpu(), data)

    @classmethod
    def average(cls, seeds: Sequence["ExampleLikelihoods"]) -> "ExampleLikelihoods":
        """Return the mean of each example over the seeds of one setting; it passes where it does for every seed."""
        value, stderr = (torch.stack([getattr(seed, name) for seed in seeds]) for name in ("value", "stderr"))
        passed = torch.stack([seed.passed for seed in seeds]).all(0)
        return cls(value.mean(0), stderr.square().sum(0).sqrt() / len(seeds), passed, seeds[0].data)

    @classmethod
    def read(cls, folder: Path) -> "ExampleLikelihoods | None":
        """Read the file of a trial's folder; return None if it is missing or damaged."""
        try:
            with safe_open(folder / FILE, framework="pt") as file:
                value, stderr, passed = (file.get_tensor(name) for name in ("value", "stderr", "passed"))
                return cls(value, stderr, passed, json.loads(file.metadata()["meta"])["data"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None

    def save(self, folder: Path) -> Path:
        """Write the file of a trial's folder, and return it."""
        tensors = {"value": self.value, "stderr": self.stderr, "passed": self.passed}
        save_file(tensors, folder / FILE, {"meta": json.dumps({"data": self.data})})
        return folder / FILE

    def is_comparable(self, other: "ExampleLikelihoods") -> bool:
        """Whether both are estimates for the same examples, at least two: a difference of one has no error."""
        return self.data == other.data and self.value.shape == other.value.shape and len(self.value) > 1


@dataclass(frozen=True)
class Difference:
    """The mean difference of two -log p(x) over the same examples, with its standard error.

    Attributes:
        too_high: whether the difference is an upper bound: some estimates of the first are not resolved.
        too_low: whether it is a lower bound: some estimates of the second are not resolved.
    """

    value: float
    stderr: float
    too_high: bool = False
    too_low: bool = False

    @property
    def tied(self) -> bool | None:
        """Whether the two cannot be told apart: the difference is at most two standard errors.

        A bound says only that they differ, where it lies beyond these errors on its own side of 0. Else it is None:
        the difference may be 0, or not.
        """
        margin = TIED_STDERRS * self.stderr
        if not self.too_high and not self.too_low:
            return abs(self.value) <= margin
        below, above = self.value < -margin, self.value > margin
        differs = (below or not self.too_high) and (above or not self.too_low)
        return False if differs else None

    def __str__(self) -> str:
        """Return `0.120 ± 0.050`, behind `<=` or `>=` where it is a bound, and `~` where it is neither."""
        sign = {(False, False): "", (True, False): "<= ", (False, True): ">= ", (True, True): "~ "}
        return f"{sign[self.too_high, self.too_low]}{self.value:.3f} ± {self.stderr:.3f}"


def nll_difference(first: ExampleLikelihoods, second: ExampleLikelihoods) -> Difference:
    """Return by how much the mean -log p(x) of the first exceeds that of the second.

        d_b = log p_second(x_b) - log p_first(x_b),    difference = mean of d,    stderr = sd(d) / sqrt(B)

    The sampling errors of the estimates are independent from example to example, so their variance is part of sd(d).
    The standard error holds them as well as the choice of the examples.
    """
    d = second.value.double() - first.value.double()
    stderr = d.std() / len(d) ** 0.5
    return Difference(d.mean().item(), stderr.item(), first.unresolved > 0, second.unresolved > 0)
