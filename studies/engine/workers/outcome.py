"""The outcome of a trial: figures that are means over its seeds with their spread, and the model of its best seed."""

import hashlib
import math
import statistics
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.search.states import WORDS, Word
from vaebench.studies.engine.study.paired import ExampleLikelihoods
from vaebench.studies.engine.study.plan import Plan
from vaebench.vae.config import run as configs
from vaebench.vae.data import Splits
from vaebench.vae.errors import DivergedError
from vaebench.vae.evaluation.evaluate import estimate_log_px, measure
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import Result
from vaebench.vae.training.state import save_model

ERROR = "error.txt"
SPREAD = "_seed_sd"
WITHOUT_SPREAD = ("nll_", "_stderr", "/log_n", "_floor", "_ceiling")


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        values: of the target, where the trial is complete.
        metrics: means over the seeds, with their standard deviations.
        best: the training of the seed that is best by the first target, where the trial was measured.
        log_px: log p(x) of each validation example that `valid/nll` is the mean of; a mean over the seeds too.
        data: the data, as the configuration has them.
        error: why the trial failed.
        repeats: the number of an earlier trial with the same setting, whose values these are.
    """

    state: TrialState
    values: list[float] | None = None
    metrics: Metrics = field(default_factory=dict)
    best: Result | None = None
    log_px: ExampleLikelihoods | None = None
    data: Splits | None = None
    error: Exception | None = None
    repeats: int | None = None

    @classmethod
    def of_repeat(cls, earlier: FrozenTrial, plan: Plan) -> "Outcome":
        """Return the outcome of a trial with the setting of an earlier one, without values while that one runs."""
        if earlier.state != TrialState.COMPLETE:
            state = TrialState.FAIL if earlier.state == TrialState.RUNNING else earlier.state
            return cls(state, repeats=earlier.number)
        metrics = dict(zip(plan.target.metrics, earlier.values, strict=True))
        return cls(earlier.state, earlier.values, metrics, repeats=earlier.number)

    @property
    def word(self) -> Word:
        """Return what became of the trial."""
        if self.repeats is not None:
            return "repeated"
        return "failed" if self.state == TrialState.FAIL else WORDS[self.state]

    def save(self, folder: Path) -> list[Path]:
        """Write weights, for `vae.training.state.load_model`, config and log p(x) of each example; return the files.

        The file of a trial that failed is the traceback of its error.
        """
        if self.error is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR).write_text("".join(traceback.format_exception(self.error)))
            return [folder / ERROR]
        if self.best is None or self.data is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "config.toml"
        configs.write_toml(self.best.config, written)
        examples = [] if self.log_px is None else [self.log_px.save(folder)]
        return [save_model(self.best.model, self.best.config, self.data, folder), written, *examples]


def measure_seeds(results: Sequence[Result], data: Splits, plan: Plan, *, pruned: bool) -> Outcome:
    """Measure the model of every seed on the validation split; a target that is not finite cannot be ranked."""
    estimates = [estimate_log_px(one.model, one.splits.valid, one.config) for one in results]
    measured = [
        measure(one.model, one.splits, one.config, split="valid", log_px=log_px)
        for one, log_px in zip(results, estimates, strict=True)
    ]
    metrics = average_seeds(measured)
    values = [metrics[name] for name in plan.target.metrics]
    if not all(map(math.isfinite, values)):
        raise DivergedError(f"the target is not finite: {', '.join(plan.target.metrics)} = {values}.")
    likelihoods = [ExampleLikelihoods.from_estimate(estimate, data.digest) for estimate in estimates]
    pick = max if plan.target.directions[0] == "maximize" else min
    best = pick(range(len(results)), key=lambda i: measured[i][plan.target.metrics[0]])
    state = TrialState.PRUNED if pruned else TrialState.COMPLETE
    log_px = ExampleLikelihoods.average(likelihoods)
    return Outcome(state, None if pruned else values, metrics, results[best], log_px, data)


def average_seeds(seeds: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over the seeds, and of the model's own figures their standard deviation.

    The noise of `nll_stderr` differs between models, so that the standard error of a mean of S is sqrt(sum s^2) / S.
    The other standard errors are over examples, which are the same for all seeds: of these the mean is taken. A metric
    that a seed lacks is left out, such as `nll_stderr` where the seed's examples are not all resolved.
    """
    if len(seeds) == 1:
        return dict(seeds[0])
    found: Metrics = {}
    for name in seeds[0]:
        if not all(name in metrics for metrics in seeds):
            continue
        values = [metrics[name] for metrics in seeds]
        found[name] = math.hypot(*values) / len(values) if name.endswith("nll_stderr") else statistics.fmean(values)
        if not any(part in name for part in WITHOUT_SPREAD):
            found[name + SPREAD] = statistics.stdev(values)
    return found


def hash_weights(model: GenerativeModel) -> str:
    """Return the SHA-256 of the weights: of two settings with the same weights, one was not applied."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
