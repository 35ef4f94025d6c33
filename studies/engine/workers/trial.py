"""One trial: train what a point of the space says, report on the way, measure at the end.

A trial does not train itself. It yields what it wants trained, and goes on where that is done, or where what ended it
before its time is thrown into it: so it is the same trial alone and in company, see `stacks`.
"""

import hashlib
import math
import statistics
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna
import torch

from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.target import quick_nll
from vaebench.vae.config import run as configs
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, load
from vaebench.vae.errors import DivergedError
from vaebench.vae.evaluation.evaluate import active_units, measure
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.training import checkpoint
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import Report, fit
from vaebench.vae.training.setup import initial_model, pick_device, resolve

QUICK = "valid/nll_quick"
SEED_SPREAD = "seeds/std"
CURVES = (
    *("valid/elbo", "valid/distortion", "valid/rate", "perf/images_per_s"),
    *("train/divergence", "train/critic_loss", "train/capacity"),
)

Log = Callable[[int, Metrics], None]


@dataclass(frozen=True)
class Demand:
    """What a trial wants trained.

    Attributes:
        config: what to run, every automatic choice settled.
        model: takes the weights.
        report: called after each epoch; what it raises ends the training.
    """

    config: Run
    model: VAE
    report: Report


T = TypeVar("T")
Steps = Generator[Demand, None, T]


@dataclass(frozen=True)
class Outcome:
    """What a trial leaves: the model of its first seed, and metrics that are means over its seeds."""

    config: Run
    model: VAE
    metrics: Metrics
    pruned: bool


@dataclass(frozen=True)
class Training:
    """One seed of a trial, whose epochs go to `log` and, for a single seed, to the pruner.

    Attributes:
        raw: the data as they are before `data.binarise` of a trial.
    """

    plan: Plan
    raw: Splits
    trial: optuna.Trial
    log: Log

    def steps(self, config: Run, *, prune: bool) -> Steps[Outcome]:
        """Train and measure on the validation split; a pruned run is measured as it is."""
        device = pick_device(config.train)
        splits = load(config.data, self.raw).to(device)
        model = initial_model(config, splits, device)
        config = resolve(config, device, model, splits.shape)

        def report(epoch: int, metrics: Metrics) -> None:
            self._report(model, splits, config, epoch, metrics, prune=prune)

        pruned = False
        try:
            yield Demand(config, model, report)
        except optuna.TrialPruned:
            pruned = True
        return Outcome(config, model, measure(model, splits, config, split="valid"), pruned)

    def _report(self, model: VAE, splits: Splits, config: Run, epoch: int, metrics: Metrics, *, prune: bool) -> None:
        logged = {name: metrics[name] for name in CURVES if name in metrics}
        if not isinstance(model, FlowModel):
            generator = torch.Generator(splits.valid.device).manual_seed(config.eval.seed)
            logged["latent/active_units"] = active_units(model.eval(), splits.valid, generator)
        due = prune and epoch % self.plan.report_epochs == 0
        if due:
            logged[QUICK] = quick_nll(model, splits.valid, config)
            self.trial.report(logged[QUICK], epoch)
        self.log(epoch, logged)
        if due and epoch < config.train.epochs and self.trial.should_prune():
            raise optuna.TrialPruned


def advance(steps: Steps[None], error: Exception | None = None) -> Demand | None:
    """Let a trial go on after a training, or what ended that; return what it wants trained next, None at its end."""
    try:
        return next(steps) if error is None else steps.throw(error)
    except StopIteration:
        return None


def train(demand: Demand, raw: Splits) -> Exception | None:
    """Train one model by itself, and return what ended it before its time."""
    try:
        fit(demand.config, data=raw, model=demand.model, report=demand.report)
    except Exception as error:
        return error
    return None


def alone(steps: Steps[T], raw: Splits) -> T:
    """Train all that a trial wants trained, and return what it leaves."""
    left: list[T] = []

    def whole() -> Steps[None]:
        left.append((yield from steps))

    kept, error = whole(), None
    while (demand := advance(kept, error)) is not None:
        error = train(demand, raw)
    return left[0]


def steps(trial: optuna.Trial, plan: Plan, config: Run, raw: Splits, log: Log) -> Steps[Outcome]:
    """Train a setting once for each seed; the pruner sees epochs of one seed, or one value a seed."""
    if plan.seeds == 1:
        return (yield from Training(plan, raw, trial, log).steps(config, prune=plan.target.pruned))
    outcomes: list[Outcome] = []
    pruned = False
    for i in range(plan.seeds):
        seeded = config.replace({"train.seed": config.train.seed + i})
        training = Training(plan, raw, trial, log if i == 0 else _silent)
        outcomes.append((yield from training.steps(seeded, prune=False)))
        if plan.target.pruned:
            trial.report(outcomes[-1].metrics[plan.target.metrics[0]], i)
            pruned = i + 1 < plan.seeds and trial.should_prune()
        if pruned:
            break
    return Outcome(outcomes[0].config, outcomes[0].model, over_seeds(outcomes, plan.target.metrics[0]), pruned)


def values(plan: Plan, outcome: Outcome) -> list[float]:
    """Return the target's figures; one that is not finite cannot be ranked."""
    found = [outcome.metrics[name] for name in plan.target.metrics]
    if not all(map(math.isfinite, found)):
        raise DivergedError(f"the target is not finite: {', '.join(plan.target.metrics)} = {found}.")
    return found


def over_seeds(outcomes: list[Outcome], target: str) -> Metrics:
    """Return the mean of each metric over the seeds, their number, and the target's standard deviation."""
    means = {name: statistics.fmean(outcome.metrics[name] for outcome in outcomes) for name in outcomes[0].metrics}
    targets = [outcome.metrics[target] for outcome in outcomes]
    spread = statistics.stdev(targets) if len(targets) > 1 else 0.0
    return means | {"seeds/count": float(len(outcomes)), SEED_SPREAD: spread}


def fingerprint(model: VAE) -> str:
    """Return the SHA-256 of the weights: two settings that end in the same ones were not both applied."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save(outcome: Outcome, raw: Splits, folder: Path) -> list[Path]:
    """Write the weights as `vae.training.state.load_model` reads them, without the optimiser, and the config."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = load(outcome.config.data, raw)
    prefix = "best" if outcome.config.train.patience else "model"
    tensors = {f"{prefix}.{name}": tensor for name, tensor in outcome.model.state_dict().items()}
    meta = {
        "config": outcome.config.flat(),
        "data": splits.digest,
        "shape": splits.shape,
        "levels": splits.levels,
    }
    written = folder / "config.toml"
    written.write_text(configs.to_toml(outcome.config))
    return [checkpoint.write(folder, tensors, meta), written]


def save_error(text: str, folder: Path) -> Path:
    """Write what a trial raised."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "error.txt"
    path.write_text(text)
    return path


def _silent(epoch: int, metrics: Metrics) -> None:
    """Log nothing."""
