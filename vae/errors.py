"""The two ways in which a run ends early, each with one sentence for the person at the terminal."""


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what was required and what arrived."""


class DivergedError(RuntimeError):
    """Training met a loss that is not finite; the message names the step, the terms and the gradient norm."""
