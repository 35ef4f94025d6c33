"""`fit(config, report=...) -> Result`: train one model, resumably, knowing neither tracker nor searcher."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench.kernels import Backend, backends
from vaebench.vae.config.run import Run, Train
from vaebench.vae.data import Split, Splits
from vaebench.vae.data import load as load_data
from vaebench.vae.errors import DivergedError, InputError
from vaebench.vae.model import autoencoder as models
from vaebench.vae.objective import terms as objectives
from vaebench.vae.prob.draws import uniform_like
from vaebench.vae.training import distributed
from vaebench.vae.training.state import State
from vaebench.vae.training.step_log import Step, mean, refuse_non_finite, settled

Metrics = dict[str, float]
Report = Callable[[int, Metrics], None]

STEPS_BETWEEN_CHECKS = 128
INITIAL_ROWS = 1024
VALIDATION_ROWS = 1024
VALIDATION_SEED, SEED_OF_LAYERS = 1, 2


@dataclass(frozen=True)
class Result:
    """A trained model, on the device that trained it, and how it got there.

    Attributes:
        config: what was run, every automatic choice resolved.
        model: the weights of the best epoch where early stopping was on, else of the last; with `train.ema`, averages.
        splits: the data, on the model's device.
        history: one dict of metrics an epoch.
        best_epoch: the epoch, from 1, with the highest validation ELBO.
        error: what ended it before its time, in `vae.ensemble.fit_many.fit_many`; `fit` raises it.
    """

    config: Run
    model: models.VAE
    splits: Splits
    history: list[Metrics]
    best_epoch: int
    error: Exception | None = None


def fit(
    config: Run,
    *,
    data: Splits | None = None,
    model: models.VAE | None = None,
    report: Report | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> Result:
    """Train to the last epoch, or until the validation ELBO has not improved for `train.patience` epochs.

    Args:
        data: your own splits, see `vae.data.from_tensors`; `config.data` names them otherwise.
        model: your own networks, see `vae.model.autoencoder.VAE` and `FlowModel`; `config.model` builds them otherwise.
        report: called after each epoch with its number, from 1, and its metrics; what it raises ends the run.
        folder: keeps checkpoints; a run found there goes on as if it had not stopped, on a CPU bit for bit.
        progress: show a bar with the ELBO and images/s.
    """
    device = pick_device(config.train)
    with own_random_state(config.train.seed, device):
        splits = load_data(config.data, data).to(device)
        config = resolve(config, device, model, splits.shape)
        folder = open_folder(folder) if folder is not None else None
        built = models.place(model, device) if model is not None else initial_model(config, splits, device)
        torch.manual_seed(
            config.train.seed + SEED_OF_LAYERS
        )  # critics and dropout are the same, whoever built the model
        require_match(built, splits)
        state = State.start(built, config, device)
        if folder is not None:
            state.resume(config, splits, folder)
        if not distributed.leads():
            folder, report, progress = None, None, False
        if isinstance(built, models.FlowModel) and not state.epoch:
            initialise(built, splits.train, state.noise)
        with tqdm(total=config.train.epochs, initial=state.epoch, unit="epoch", disable=not progress) as bar:
            while not state.finished(config):
                metrics = _epoch(state, config, splits)
                bar.set_postfix_str(_postfix(metrics), refresh=False)
                bar.update()
                if folder is not None and state.due(config):
                    state.save(config, splits, folder)
                if report is not None:
                    report(state.epoch, dict(metrics))
    return finish(state, config, splits)


def finish(state: State, config: Run, splits: Splits, error: Exception | None = None) -> Result:
    """Return the result of a run that has ended, with its best weights where early stopping was on."""
    if config.train.patience and state.best:
        state.model.load_state_dict(state.best)
    state.model.eval()
    return Result(config, state.model, splits, state.history, state.best_epoch, error)


def pick_device(config: Train) -> torch.device:
    """Return the device that a configuration names; `auto` is the GPU where there is one."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise InputError("train.device = cuda needs a GPU that torch can see, and there is none; use auto or cpu.")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def resolve(config: Run, device: torch.device, model: models.VAE | None, shape: Sequence[int] = ()) -> Run:
    """Return what will be run on data of a shape: automatic choices settled, the facts of a given model filled in."""
    if model is not None:
        config = config.replace(model.facts)
    backend = backends.choose("reparam_kl", config.train.backend, device)
    reason = backends.why_not("reparam_kl", backend, device)
    if reason is not None:
        raise InputError(f"train.backend = {backend} cannot run here: {reason}.")
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    chosen = {"train.device": device.type, "train.precision": precision, "train.backend": backend}
    return config.replace(chosen).resolved(shape)


def open_folder(folder: Path) -> Path:
    """Create the folder of a run and make sure that it can be written to."""
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same training may have been faster
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); give another folder.") from error
    return folder


def require_match(model: models.VAE, splits: Splits) -> None:
    """Raise unless the model's likelihood describes data of this shape and these levels."""
    likelihood = model.likelihood
    if likelihood.shape != splits.shape:
        raise InputError(f"the likelihood is of data of shape {likelihood.shape}, {splits.name} has {splits.shape}.")
    if likelihood.discrete and likelihood.levels != splits.levels:
        raise InputError(
            f"likelihood {likelihood.name} is of {likelihood.levels} levels, {splits.name} has "
            f"{splits.levels or 'continuous data'}."
        )


def initial_model(config: Run, splits: Splits, device: torch.device) -> models.VAE:
    """Return the model that `fit` starts from, for a report that looks at it while it trains."""
    with own_random_state(config.train.seed, device):
        return models.place(models.build(config.model, splits.shape, splits.levels), device)


@contextlib.contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators inside the block and restore them after it.

    Initial weights, and layers such as dropout, can draw from nothing else.
    """
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def initialise(model: models.FlowModel, split: Split, generator: torch.Generator) -> None:
    """Let the layers of a flow that start from data do so, from at most `INITIAL_ROWS` examples spread over a split."""
    rows = torch.linspace(0, len(split) - 1, min(len(split), INITIAL_ROWS), device=split.stored.device).long()
    x = split.batch(rows, generator)
    model.initialise(model.dequantise(x, uniform_like(x, generator)))


@torch.no_grad()
def validate(model: models.VAE, split: Split, config: Run) -> Metrics:
    """Return ELBO, distortion and rate of a split, in nats an example, always with the same noise."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    generator = torch.Generator(split.device).manual_seed(VALIDATION_SEED)
    rows = torch.arange(len(split), device=split.stored.device).split(VALIDATION_ROWS)
    for x in split.batches(rows, generator):
        with autocast(config.train, split.device):
            terms = objectives.terms(model, x, generator=generator)
        sums += torch.stack([terms.log_px.double().sum(), terms.kl.double().sum()]).cpu()
    log_px, rate = (sums / len(split)).tolist()
    return validated(log_px, rate)


def validated(log_px: float, rate: float) -> Metrics:
    """Return the metrics of a validation from its means."""
    return {"valid/elbo": log_px - rate, "valid/distortion": -log_px, "valid/rate": rate}


def _epoch(state: State, config: Run, splits: Splits) -> Metrics:
    """Train for one epoch, validate, remember."""
    state.epoch += 1
    started = time.perf_counter()
    with state.own_weights():
        trained = _train_epoch(state, config, splits)
    speed = len(splits.train) / (time.perf_counter() - started)
    with torch.no_grad():
        validation = state.through(lambda model: validate(model, splits.valid, config))
    return conclude(state, config, trained | {"perf/images_per_s": speed}, validation)


def conclude(state: State, config: Run, trained: Metrics, validation: Metrics) -> Metrics:
    """Put an epoch's metrics together, refuse those that are not finite, and remember them."""
    metrics = {**trained, "train/elbo": -trained["train/distortion"] - trained["train/rate"], **validation}
    if not math.isfinite(metrics["valid/elbo"]):
        raise DivergedError(
            f"the validation ELBO of epoch {state.epoch} is {metrics['valid/elbo']}; lower train.learning_rate, or "
            "look for values in the validation split that are far from those in the training split."
        )
    state.remember(metrics, config)
    return metrics


def _train_epoch(state: State, config: Run, splits: Splits) -> Metrics:
    """Take one step for each batch of a fresh permutation and return the means over the examples."""
    state.model.train()
    batches = batch_indices(splits.train, config.train.batch_size, state.order)
    steps: list[Step] = []
    rooms = torch.empty(len(batches), len(Step._fields) * len(batches[0]), device=splits.train.device)
    for i, x in enumerate(splits.train.batches(batches, state.noise)):
        step = take_step(state, config, x, state.epoch - 1 + i / len(batches), len(splits.train))
        steps.append(settled(step, rooms[i]))
        if i % STEPS_BETWEEN_CHECKS == 0 or i == len(batches) - 1:
            refuse_non_finite(steps[-STEPS_BETWEEN_CHECKS:], state.epoch, i + 1)
    return summed_up(partial(mean, steps), config, state.epoch)


def summed_up(mean: Callable[[str], float], config: Run, epoch: int) -> Metrics:
    """Return an epoch's metrics from the mean over its examples of each thing that steps leave behind."""
    metrics = {
        "train/objective": mean("objective"),
        "train/distortion": -mean("log_px"),
        "train/rate": mean("kl"),
        "train/grad_norm": mean("grad_norm"),
    }
    objective = config.objective
    if objective.name == "capacity":
        metrics["train/capacity"] = objective.capacity * risen(epoch, objective.capacity_epochs)
    metrics |= {"train/divergence": mean("divergence")} if objective.uses_divergence else {}
    return metrics | ({"train/critic_loss": mean("critic_loss")} if objective.uses_critic else {})


def take_step(state: State, config: Run, x: Tensor, epochs_done: float, data_size: int) -> Step:
    """Ascend the objective on one batch, without waiting for the device."""
    with autocast(config.train, x.device):

        def ascended(model: models.VAE) -> tuple[objectives.Terms, Tensor, Tensor | None]:
            terms = objectives.terms(model, x, generator=state.noise, backend=cast(Backend, config.train.backend))
            return terms, *objectives.value(
                config.objective,
                terms,
                data_size=data_size,
                warmup=risen(epochs_done, config.train.warmup_epochs),
                capacity=risen(epochs_done, config.objective.capacity_epochs),
                critic=state.adversary,
                generator=state.noise,
            )

        terms, objective, divergence = state.through(ascended)
    state.optimizer.zero_grad()
    (-objective).backward()
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, config.train.clip_norm)
    state.set_learning_rate(config.train, epochs_done)
    state.optimizer.step()
    if state.average is not None:
        state.average.update()
    critic_loss = None
    if state.adversary is not None:
        critic_loss = state.adversary.step(terms.z, objectives.others(config.objective, terms, state.noise))
    divergence = divergence.detach() if divergence is not None else None
    return Step(objective.detach(), terms.log_px.detach(), terms.kl.detach(), norm, divergence, critic_loss)


def risen(epochs_done: float, epochs: int) -> float:
    """Return the share, up to 1, that a linear rise over `epochs` has come to."""
    return min(1.0, epochs_done / epochs) if epochs else 1.0


def batch_indices(split: Split, batch_size: int, order: torch.Generator) -> list[Tensor]:
    """Return index tensors of a random permutation; a last batch of one is left out, since it has no pairs."""
    permutation = torch.randperm(len(split), generator=order).to(split.stored.device)
    return [index for index in permutation.split(batch_size) if len(index) > 1]


def autocast(config: Train, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context of a step in the configured precision."""
    wanted = config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def _postfix(metrics: Metrics) -> str:
    return f"elbo {metrics['valid/elbo']:.2f}, {metrics['perf/images_per_s']:,.0f} images/s"
