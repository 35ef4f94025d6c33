"""Which runs can be trained together: what a stack knows of a model's own, and what all of its models share."""

from collections.abc import Sequence

from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused

OWN = (
    *("model.latent", "model.sigma", "objective.name", "objective.beta", "objective.alpha", "objective.lambda"),
    *("objective.divergence", "objective.kernel", "objective.bandwidth", "objective.estimator"),
    *("objective.w_mi", "objective.w_tc", "objective.w_dim", "objective.gamma", "objective.capacity"),
    *("objective.capacity_epochs", "train.epochs", "train.learning_rate", "train.schedule", "train.weight_decay"),
    *("train.warmup_epochs", "train.clip_norm", "train.patience", "train.checkpoint_epochs", "train.seed"),
)
SHARED = (
    *("model.kind", "model.network", "model.hidden", "model.dropout", "model.likelihood", "model.components"),
    *("model.learn_sigma", "model.prior", "model.posterior"),
    *("train.batch_size", "train.precision", "train.device", "train.backend"),
)
KNOWN_VALUES = {
    "model.kind": ("vae",),
    "model.network": ("mlp", "linear"),
    "model.prior": ("normal",),
    "model.posterior": ("gaussian",),
    "objective.name": ("infovae", "tc_vae", "capacity"),
    "objective.divergence": ("mmd", "kl"),
}


def can_stack(configs: Sequence[Run]) -> str | None:
    """Return None where `fit_many` can train these runs together, and otherwise a reason against it, one sentence.

    Together go VAEs of Gaussians with networks mlp or linear that share data, batch size, precision and all of the
    model but its latent size and sigma. Convolutions fill a core one model at a time and gain nothing from company.
    """
    if not configs:
        return "there is no run to train."
    defaults, first = Run().flat(), configs[0].flat()
    for config in configs:
        idle = unused(config)
        for name, value in config.flat().items():
            known = KNOWN_VALUES.get(name, (value,))
            if value not in known:
                return f"{name} = {value} cannot be trained in a stack; {' and '.join(map(str, known))} can."
            if name in OWN or name in idle or name.startswith("eval."):
                continue
            shared = name in SHARED or name.startswith("data.")
            if shared and value != first[name]:
                return f"{name} must be the same for all runs of a stack, got {first[name]} and {value}."
            if not shared and value != defaults[name]:
                return f"{name} = {value} is nothing that a stack knows of; leave it at {defaults[name]}."
    return None
