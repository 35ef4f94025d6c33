"""Kernel launches, the devices on which they run, and the division of a long loop into strips."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton

from .noise import normal_tile

# Sixteen for each multiprocessor of a large GPU.
ENOUGH_WARPS = 2112


class Launch(NamedTuple):
    """A kernel with its grid, its arguments and its compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int = 4
    fuse_multiply_add: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The options of Triton's compiler."""
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": self.fuse_multiply_add}

    def run(self) -> None:
        """Launch the kernel on the device of its tensors."""
        tensor = next(value for value in self.arguments.values() if isinstance(value, torch.Tensor))
        with _device_of(tensor):
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def _device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def why_not_on(device: torch.device) -> str | None:
    """Return None if the kernels can run on the device, otherwise the reason as a clause."""
    if device.type not in ("cpu", "cuda"):
        return f"its kernels are for CUDA and ROCm devices, not for {device.type}"
    if device.type == "cpu" and isinstance(normal_tile, triton.JITFunction):
        return "on a CPU it runs only interpreted, with TRITON_INTERPRET=1 set before it is first used"
    return None


def cut(length: int, warps: int, chunk: int) -> tuple[int, int]:
    """Divide a loop of `length` steps into strips, and return the length of a strip and the number of strips.

    `warps` is the number of warps of all programs without strips. Each strip multiplies it. There are as many strips
    as a large GPU runs at once: with a few more, the last ones would need as much time again. The length of a strip is
    a multiple of `chunk`.
    """
    chunks = triton.cdiv(length, chunk)
    strip_length = triton.cdiv(chunks, min(chunks, max(1, ENOUGH_WARPS // warps))) * chunk
    return strip_length, triton.cdiv(length, strip_length)
