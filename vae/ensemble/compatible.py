"""Which runs can be trained together."""

from collections.abc import Sequence

from vaebench.vae.config.objective import Objective
from vaebench.vae.config.run import FAMILIES, SECTIONS, SETTINGS, Run
from vaebench.vae.config.unused import unused

KNOWN_VALUES = {
    "model.kind": ("vae",),
    "model.network": ("mlp", "linear"),
    "model.prior": ("normal",),
    "model.posterior": ("gaussian",),
}


def can_stack(configs: Sequence[Run]) -> str | None:
    """Return None if `fit_many` can train these runs together, and otherwise a reason against it, one sentence.

    VAEs with a Gaussian posterior and a normal prior can train together if their networks are mlp or linear and they
    share data, batch size, precision and every setting of the model but its latent size and sigma. Convolutional
    networks are excluded because one of them already keeps a core busy, so that a stack would gain nothing.
    """
    if not configs:
        return "there is no run to train."
    defaults, first = Run().flat(), configs[0].flat()
    for config in configs:
        if not _is_stackable(config.objective, config.model.latent):
            stackable = " and ".join(name for name, family in FAMILIES.items() if _is_stackable(family(), 1))
            return f"{config.objective.kind} cannot be trained in a stack; the defaults of {stackable} can."
        idle = unused(config)
        for name, value in config.flat().items():
            known = KNOWN_VALUES.get(name, (value,))
            if value not in known:
                return f"{name} = {value} cannot be trained in a stack; {' and '.join(map(str, known))} can."
            section, declared = SETTINGS[name]
            stack = declared.metadata["stack"] or SECTIONS[section].stack
            if stack == "own" or name in idle:
                continue
            if stack == "shared" and value != first[name]:
                return f"{name} must be the same for all runs of a stack, got {first[name]} and {value}."
            if stack is None and value != defaults[name]:
                return f"{name} = {value} is nothing that a stack knows of; leave it at {defaults[name]}."
    return None


def _is_stackable(objective: Objective, latent: int) -> bool:
    """Whether the objective is computed for many models at once; a step of a stack has one draw and no critic."""
    if objective.draws > 1 or objective.critic is not None:
        return False
    return objective.resolve(latent).stacking(latent) is not None
