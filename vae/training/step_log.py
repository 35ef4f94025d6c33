"""The log of an epoch's steps, kept on the device, and its mean over the examples, or the error of a diverged step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench.vae.errors import DivergedError


class Step(NamedTuple):
    """The figures of one step, on the device: scalars, but log_px and kl `(B,)`."""

    objective: Tensor
    log_px: Tensor
    kl: Tensor
    grad_norm: Tensor
    divergence: Tensor | None
    critic_loss: Tensor | None = None


def copy_into(step: Step, buffer: Tensor) -> Step:
    """Copy the figures of a step into its part of one buffer allocated per epoch, and return views of them.

    Otherwise each small tensor pins part of a freed block, the allocator cannot reuse it, and memory grows by about one
    batch per step.
    """
    kept = {name: part.detach() for name, part in step._asdict().items() if part is not None}
    sizes = [part.numel() for part in kept.values()]
    views = torch.cat([part.flatten() for part in kept.values()], out=buffer[: sum(sizes)]).split(sizes)
    return step._replace(**{name: view.view(kept[name].shape) for name, view in zip(kept, views, strict=True)})


def mean(steps: Sequence[Step], name: str) -> float:
    """Return the mean over all examples of one figure of the steps, which is per batch or per example."""
    sizes = torch.tensor([float(len(step.log_px)) for step in steps])
    values = torch.stack([getattr(step, name).float().mean() for step in steps]).cpu()
    return float((values * sizes).sum() / sizes.sum())


def refuse_non_finite(steps: Sequence[Step], epoch: int, last: int) -> None:
    """Raise at the first step whose objective or gradient norm is not finite; the last one has number `last`."""
    bad = (~torch.stack([step.objective + step.grad_norm for step in steps]).isfinite()).nonzero()
    if len(bad):
        step = steps[int(bad[0])]
        means = [x.mean().item() for x in (step.objective, step.log_px, step.kl, step.grad_norm)]
        raise DivergedError.at_step(epoch, last - len(steps) + int(bad[0]) + 1, *means)
