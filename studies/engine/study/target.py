"""What a study optimises: figures that do not depend on the weights being searched, nor on the test split."""

from dataclasses import dataclass
from typing import Literal

from vaebench.studies.engine.study.space import Space
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.evaluate import importance_nll
from vaebench.vae.model import VAE

QUICK_EXAMPLES, QUICK_SAMPLES = 64, 32

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Target:
    """The metrics that a study moves, and which way.

    Attributes:
        metrics: names that `vae.evaluation.evaluate.measure` gives with the validation split, the one to rank by first.
        directions: minimize or maximize, for each.
        pruned: whether `quick` can stop a trial early.
        checked: whether it stands on log p(x), which is estimated a second time for the best trials.
    """

    name: str
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    pruned: bool = False
    checked: bool = True


TARGETS = {
    "nll": Target("nll", ("valid/nll",), ("minimize",), pruned=True),
    "rate-distortion": Target("rate-distortion", ("valid/distortion", "valid/rate"), ("minimize", "minimize")),
    "mig": Target("mig", ("latent/mig",), ("maximize",), checked=False),
}


def quick_nll(model: VAE, split: Split, config: Run) -> float:
    """Estimate -log p(x) like the target itself, of so few examples that it can be asked for every few epochs.

    Fewer samples bias it upwards, alike for trials of one age, and all trials meet the same examples and noise: so it
    ranks trials against each other, and nothing else.
    """
    model.eval()
    few = {"eval.samples": QUICK_SAMPLES, "eval.examples": min(QUICK_EXAMPLES, config.eval.examples)}
    return importance_nll(model, split, config.replace(few))["nll"]


def check(target: Target, space: Space, base: Run, splits: Splits) -> None:
    """Refuse a target that these data, or some of the models in the space, cannot give."""
    if target.name != "mig":
        return
    if len(splits.label_names) < 2:
        raise InputError(
            f"target mig needs factors of variation, which the data set {splits.name} does not give; use --target nll."
        )
    chosen = next((dimension.choices for dimension in space.dimensions if dimension.name == "model.kind"), ())
    flows = [kind for kind in (*chosen, base.model.kind) if kind != "vae"]
    if flows:
        raise InputError(f"target mig needs codes, which model.kind = {flows[0]} does not have; use --target nll.")
    if base.eval.labels == "none":
        raise InputError("target mig needs eval.labels = fast or all, got none.")
