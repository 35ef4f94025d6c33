"""The two errors that end a run early, each with one sentence for the user."""


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


def sentence(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
