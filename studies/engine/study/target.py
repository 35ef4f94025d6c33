"""What a study optimises: metrics that depend neither on the weights being searched nor on the test split."""

from dataclasses import dataclass
from typing import Literal

import torch

from vaebench.studies.engine.study.space import Space
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits
from vaebench.vae.errors import InputError
from vaebench.vae.estimators import evidence
from vaebench.vae.evaluation.evaluate import importance_nll
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.proposals import GaussianProposal
from vaebench.vae.training.streams import evaluation_generator

QUICK_EXAMPLES, QUICK_SAMPLES = 64, 32

NLL = "valid/nll"

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Target:
    """The metrics that a study optimises, and in which direction.

    Attributes:
        metrics: names that `vae.evaluation.evaluate.measure` gives for the validation split; the first one ranks.
        directions: minimize or maximize, for each.
        prunable: whether `quick_nll` estimates it early enough to stop a trial.
        uses_nll: whether it depends on log p(x), whose estimator is then checked on the best trials.
    """

    name: str
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    prunable: bool = False
    uses_nll: bool = True

    @property
    def is_paired(self) -> bool:
        """Whether it is a mean over examples of log p(x), so that trials are compared example by example."""
        return self.metrics[0] == NLL


TARGETS = {
    "nll": Target("nll", (NLL,), ("minimize",), prunable=True),
    "rate-distortion": Target("rate-distortion", ("valid/distortion", "valid/rate"), ("minimize", "minimize")),
    "mig": Target("mig", ("latent/mig",), ("maximize",), uses_nll=False),
}


@torch.no_grad()
def quick_nll(model: GenerativeModel, split: Split, config: Run) -> float:
    """Estimate -log p(x) from so few examples and draws that every few epochs can afford it.

    The draws are from q(z|x), widened: a fit to each posterior would cost four times as much. The estimate is biased
    upwards, the more so the narrower q is. All trials get the same examples and noise, so the estimate ranks trials
    against each other. It serves no other purpose.
    """
    examples = min(QUICK_EXAMPLES, config.eval.examples)
    model.eval()
    if not model.has_codes:
        return importance_nll(model, split, config.replace({"eval.examples": examples}))["nll"]
    generator = evaluation_generator(config.eval.seed, split.device)
    x = split.subsample(examples).batch(generator=generator)
    log_joint, posterior = model.base_joint(x)
    q = GaussianProposal(posterior.mu, posterior.logvar)
    width = evidence.choose_width(log_joint, q, samples=QUICK_SAMPLES // 10, generator=generator)
    estimate = evidence.importance_sampling(log_joint, q.widen(width), samples=QUICK_SAMPLES, generator=generator)
    return -estimate.mean()[0]


def check_target(target: Target, space: Space, base: Run, splits: Splits) -> None:
    """Refuse a target that these data, or some of the models in the space, do not have."""
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
