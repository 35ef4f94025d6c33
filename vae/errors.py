"""The errors that end a run early, each with one sentence for the user."""

import re

import torch


class InputError(ValueError):
    """An input of the user cannot be used; the message says what was required and what arrived."""


class DivergedError(RuntimeError):
    """The training loss is not finite; the message names the step, the terms and the gradient norm."""

    @classmethod
    def at_step(
        cls, epoch: int, step: int, objective: float, log_px: float, kl: float, grad_norm: float
    ) -> "DivergedError":
        """Return the error of a step with a value that is not finite, with the means over its batch."""
        return cls(
            f"training diverged in epoch {epoch} at step {step}: objective {objective:g}, log p(x|z) {log_px:g}, "
            f"KL {kl:g}, gradient norm {grad_norm:g}; lower train.learning_rate or train.clip_norm."
        )


def explain_memory(error: BaseException) -> str | None:
    """Return a sentence for an allocation of torch or NumPy that failed, None for any other error."""
    text = str(error)
    by_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not by_type and "DefaultCPUAllocator" not in text and "Storage size calculation overflowed" not in text:
        return None
    asked = re.search(r"allocate ([\d.]+ ?(?:bytes|[KMGTPE]iB))", text)
    size = asked[1] if asked else "more than can be counted"
    if size.endswith("bytes"):
        size = f"{int(size.split()[0]) / 1e9:.3g} GB"
    return f"there is not enough memory: {size} were needed at once; a smaller model, data set or batch needs less."


def sentence(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
