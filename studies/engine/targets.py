"""What a study optimises: figures of the validation split that do not depend on the weights being searched."""

from dataclasses import dataclass
from typing import Literal

from vae.config import Run
from vae.data import Split, Splits
from vae.errors import InputError
from vae.evaluate import importance_nll
from vae.model import VAE

QUICK_SAMPLES = 32

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Target:
    """The metrics that a study moves, and which way.

    Attributes:
        metrics: names that `vae.evaluate.measure` gives for the validation split, the one to rank by first.
        directions: minimize or maximize, for each.
        pruned: whether `quick` can stop a trial early.
    """

    name: str
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    pruned: bool = False


TARGETS = {
    "nll": Target("nll", ("valid/nll",), ("minimize",), pruned=True),
    "rate-distortion": Target("rate-distortion", ("valid/distortion", "valid/rate"), ("minimize", "minimize")),
    "mig": Target("mig", ("latent/mig",), ("maximize",)),
}


def quick_nll(model: VAE, split: Split, config: Run) -> float:
    """Estimate -log p(x) like the target itself, at so few samples that it can be asked for every few epochs.

    Fewer samples bias it upwards, alike for trials of one age: so it ranks trials against each other, and nothing else.
    """
    model.eval()
    return importance_nll(model, split, config.replace({"eval.samples": QUICK_SAMPLES}))["nll"]


def check(target: Target, splits: Splits) -> None:
    """Refuse a target that these data cannot give."""
    if target.name == "mig" and getattr(splits, "factors", None) is None:
        raise InputError(
            f"target mig needs factors of variation, which the data set {splits.name} does not give; use --target nll."
        )
