"""Where fused kernels can run, how one is launched, and into how many strips a walk is cut."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton

from .noise import normal_tile

# Sixteen for each multiprocessor of a large GPU.
ENOUGH_WARPS = 2112


class Launch(NamedTuple):
    """A kernel with its grid, its arguments and its compile-time constants.

    Attributes:
        fuses: whether a product and the sum that it goes into are rounded once.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int = 4
    fuses: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """What Triton compiles it with, beside the constants."""
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": self.fuses}

    def run(self) -> None:
        """Launch it on the device of its tensors."""
        tensor = next(value for value in self.arguments.values() if isinstance(value, torch.Tensor))
        with _current(tensor.device):
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def why_not_on(device: torch.device) -> str | None:
    """Return None where fused kernels can run on the device, and otherwise the reason, as a clause."""
    if device.type not in ("cpu", "cuda"):
        return f"its kernels are for CUDA and ROCm devices, not for {device.type}"
    if device.type == "cpu" and isinstance(normal_tile, triton.JITFunction):
        return "on a CPU it runs only interpreted, with TRITON_INTERPRET=1 set before it is first used"
    return None


def cut(walk: int, warps: int, chunk: int) -> tuple[int, int]:
    """Return the steps of a strip, a multiple of `chunk`, and how many strips of them make up a walk.

    The programs, of so many warps together, become as many times more as there are strips: enough for a GPU, but no
    more than it runs at once, for a few that are left over would take as long again.
    """
    chunks = triton.cdiv(walk, chunk)
    steps = triton.cdiv(chunks, min(chunks, max(1, ENOUGH_WARPS // warps))) * chunk
    return steps, triton.cdiv(walk, steps)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
