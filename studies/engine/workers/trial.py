"""One trial: train the run of a point of the space, report to the pruner on the way, measure at the end.

A trial is a generator that yields a `TrainingRequest` for each training, and continues when the training is done. An
error that ended the training is thrown into it. So a trial is the same whether it trains alone or stacked with others.
"""

import hashlib
import math
import statistics
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna

from vaebench.studies.engine.study.paired import ExampleLikelihoods
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.target import quick_nll
from vaebench.vae.config import run as configs
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, load
from vaebench.vae.errors import DivergedError
from vaebench.vae.evaluation.evaluate import active_units, estimate_log_px, measure
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import Report, fit
from vaebench.vae.training.setup import initial_model, pick_device, resolve
from vaebench.vae.training.state import save_model
from vaebench.vae.training.streams import evaluation_generator

QUICK = "valid/nll_quick"
CURVES = (
    *("valid/elbo", "valid/bound", "valid/distortion", "valid/rate", "perf/images_per_s"),
    *("train/divergence", "train/critic_loss"),
)

Log = Callable[[int, Metrics], None]


@dataclass(frozen=True)
class TrainingRequest:
    """A training that a trial asks for.

    Attributes:
        config: the run, with every automatic choice resolved.
        model: receives the weights.
        report: called after each epoch; an exception that it raises ends the training.
    """

    config: Run
    model: GenerativeModel
    report: Report


T = TypeVar("T")
TrainingRequests = Generator[TrainingRequest, None, T]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial: the model of its first seed, and metrics that are means over its seeds.

    Attributes:
        log_px: log p(x) of each validation example that `valid/nll` is the mean of; a mean over its seeds too.
    """

    config: Run
    model: GenerativeModel
    metrics: Metrics
    pruned: bool
    log_px: ExampleLikelihoods | None = None


@dataclass(frozen=True)
class Training:
    """One seed of a trial, whose epochs go to `log` and, for a single seed, to the pruner.

    Attributes:
        raw: the data before `data.binarise`, which the trial applies.
    """

    plan: Plan
    raw: Splits
    trial: optuna.Trial
    log: Log

    def request(self, config: Run, *, prune: bool) -> TrainingRequests[Outcome]:
        """Train, and measure on the validation split; a pruned run is measured as it is when pruned."""
        device = pick_device(config.train)
        loaded = load(config.data, self.raw)
        splits = loaded.to(device)
        model = initial_model(config, splits, device)
        config = resolve(config, device, model, splits.shape)

        def report(epoch: int, metrics: Metrics) -> None:
            self._report(model, splits, config, epoch, metrics, prune=prune)

        pruned = False
        try:
            yield TrainingRequest(config, model, report)
        except optuna.TrialPruned:
            pruned = True
        log_px = estimate_log_px(model.eval(), splits.valid, config)
        metrics = measure(model, splits, config, split="valid", log_px=log_px)
        return Outcome(config, model, metrics, pruned, ExampleLikelihoods.from_estimate(log_px, loaded.digest))

    def _report(
        self, model: GenerativeModel, splits: Splits, config: Run, epoch: int, metrics: Metrics, *, prune: bool
    ) -> None:
        logged = {name: metrics[name] for name in (*CURVES, *config.objective.figures(epoch)) if name in metrics}
        if model.has_codes:
            generator = evaluation_generator(config.eval.seed, splits.valid.device)
            logged["latent/active_units"] = active_units(model.eval(), splits.valid, generator)
        due = prune and epoch % self.plan.report_epochs == 0
        if due:
            logged[QUICK] = quick_nll(model, splits.valid, config)
            self.trial.report(logged[QUICK], epoch)
        self.log(epoch, logged)
        if due and epoch < config.train.epochs and self.trial.should_prune():
            raise optuna.TrialPruned


def advance(requests: TrainingRequests[None], error: Exception | None = None) -> TrainingRequest | None:
    """Continue a trial after a training, or after the error that ended it; return its next request, None at its end."""
    try:
        return next(requests) if error is None else requests.throw(error)
    except StopIteration:
        return None


def train(request: TrainingRequest, raw: Splits) -> Exception | None:
    """Train one model by itself; return the exception that ended the training early, if any."""
    try:
        fit(request.config, data=raw, model=request.model, report=request.report)
    except Exception as error:
        return error
    return None


def run_alone(requests: TrainingRequests[T], raw: Splits) -> T:
    """Train every request of a trial by itself, and return the trial's result."""
    results: list[T] = []

    def keep_result() -> TrainingRequests[None]:
        results.append((yield from requests))

    trial, error = keep_result(), None
    while (request := advance(trial, error)) is not None:
        error = train(request, raw)
    return results[0]


def request_trainings(trial: optuna.Trial, plan: Plan, config: Run, raw: Splits, log: Log) -> TrainingRequests[Outcome]:
    """Train a setting once for each seed; the pruner sees epochs of one seed, or one value for each seed."""
    if plan.seeds == 1:
        return (yield from Training(plan, raw, trial, log).request(config, prune=plan.target.prunable))
    outcomes: list[Outcome] = []
    pruned = False
    for i in range(plan.seeds):
        seeded = config.replace({"train.seed": (config.train.seed + i) % (configs.LARGEST_SEED + 1)})
        training = Training(plan, raw, trial, log if i == 0 else lambda epoch, metrics: None)
        outcomes.append((yield from training.request(seeded, prune=False)))
        if plan.target.prunable:
            trial.report(outcomes[-1].metrics[plan.target.metrics[0]], i)
            pruned = i + 1 < plan.seeds and trial.should_prune()
        if pruned:
            break
    means = average_seeds(outcomes, plan.target.metrics[0])
    log_px = ExampleLikelihoods.average([outcome.log_px for outcome in outcomes if outcome.log_px is not None])
    return Outcome(outcomes[0].config, outcomes[0].model, means, pruned, log_px)


def target_values(plan: Plan, outcome: Outcome) -> list[float]:
    """Return the values of the target; a value that is not finite cannot be ranked, and is refused."""
    found = [outcome.metrics[name] for name in plan.target.metrics]
    if not all(map(math.isfinite, found)):
        raise DivergedError(f"the target is not finite: {', '.join(plan.target.metrics)} = {found}.")
    return found


def average_seeds(outcomes: list[Outcome], target: str) -> Metrics:
    """Return the mean of each metric over the seeds, their number, and the target's standard deviation.

    The standard error of a mean of S figures is sqrt(sum s^2) / S, since their sampling errors are independent. A
    metric that a seed lacks is left out, such as `nll_stderr` where the seed's examples are not all resolved.
    """
    common = [name for name in outcomes[0].metrics if all(name in outcome.metrics for outcome in outcomes)]
    values = {name: [outcome.metrics[name] for outcome in outcomes] for name in common}
    means = {
        name: math.hypot(*found) / len(found) if name.endswith("_stderr") else statistics.fmean(found)
        for name, found in values.items()
    }
    targets = [outcome.metrics[target] for outcome in outcomes]
    spread = statistics.stdev(targets) if len(targets) > 1 else 0.0
    return means | {"seeds/count": float(len(outcomes)), "seeds/std": spread}


def hash_weights(model: GenerativeModel) -> str:
    """Return the SHA-256 of the weights: of two settings with the same weights, one was not applied."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save(outcome: Outcome, raw: Splits, folder: Path) -> list[Path]:
    """Write weights, for `vae.training.state.load_model`, config and log p(x) of each example; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "config.toml"
    written.write_text(configs.to_toml(outcome.config))
    examples = [] if outcome.log_px is None else [outcome.log_px.save(folder)]
    return [save_model(outcome.model, outcome.config, load(outcome.config.data, raw), folder), written, *examples]
