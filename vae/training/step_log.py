"""What training steps leave behind, on the device, and what is made of it: means, or an error that names the step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench.vae.errors import DivergedError


class Step(NamedTuple):
    """What one step leaves behind, on the device: scalars, but log_px and kl `(B,)`."""

    objective: Tensor
    log_px: Tensor
    kl: Tensor
    grad_norm: Tensor
    divergence: Tensor | None
    critic_loss: Tensor | None = None


def settled(step: Step, room: Tensor) -> Step:
    """Return a step whose numbers lie in `room`, which is there for the whole epoch.

    A small tensor that stays takes a piece of where a large one was, and the next large one no longer fits: on a CPU an
    epoch would come to hold a batch for each step.
    """
    kept = {name: part.detach() for name, part in step._asdict().items() if part is not None}
    sizes = [part.numel() for part in kept.values()]
    places = torch.cat([part.flatten() for part in kept.values()], out=room[: sum(sizes)]).split(sizes)
    return step._replace(**{name: place.view(kept[name].shape) for name, place in zip(kept, places, strict=True)})


def mean(steps: Sequence[Step], name: str) -> float:
    """Return the mean over the examples of one entry of the steps, which is per batch or per example."""
    sizes = torch.tensor([float(len(step.log_px)) for step in steps])
    values = torch.stack([getattr(step, name).detach().float().mean() for step in steps]).cpu()
    return float((values * sizes).sum() / sizes.sum())


def refuse_non_finite(steps: Sequence[Step], epoch: int, last: int) -> None:
    """Raise at the first step whose objective or gradient norm is not finite; the last one has number `last`."""
    bad = (~torch.stack([step.objective + step.grad_norm for step in steps]).isfinite()).nonzero()
    if len(bad):
        step = steps[int(bad[0])]
        means = [x.mean().item() for x in (step.objective, step.log_px, step.kl, step.grad_norm)]
        raise DivergedError.at_step(epoch, last - len(steps) + int(bad[0]) + 1, *means)
