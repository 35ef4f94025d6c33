"""One epoch: a step for each batch, then the validation."""

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.objective import ramp
from vaebench.vae.config.run import Run, Train
from vaebench.vae.data import Split, Splits
from vaebench.vae.errors import DivergedError
from vaebench.vae.training.state import State, learning_rate
from vaebench.vae.training.step_log import Step, copy_into, mean, refuse_non_finite
from vaebench.vae.training.streams import generator, streams

Metrics = dict[str, float]

STEPS_BETWEEN_CHECKS = 128
VALIDATION_ROWS = 1024


@torch.no_grad()
def validate(model: models.GenerativeModel, split: Split, config: Run, seed: int | None = None) -> Metrics:
    """Return ELBO, distortion, rate and, of `iwae` with k > 1, the bound of a split, always with the same noise.

    They are means over examples, in nats, and all but the bound over the k draws of each. The noise is that of
    the stream of a seed, the run's stream of validation if none is given.
    """
    model.eval()
    k = config.objective.draws
    sums = torch.zeros(3, dtype=torch.float64)
    noise = generator(streams(config.train.seed).validation if seed is None else seed, split.device)
    rows = torch.arange(len(split), device=split.stored.device).split(max(1, VALIDATION_ROWS // k))
    for x in split.batches(rows, noise):
        with autocast(config.train, split.device):
            terms = objectives.terms(model, x, generator=noise, samples=k)
            bound = objectives.value(config.objective, terms, data_size=len(split))[0] if k > 1 else x.new_zeros(())
        means = [values.double().sum() for values in mean_over_draws(terms)]
        sums += torch.stack([*means, bound.double() * len(x)]).cpu()
    log_px, rate, bound_mean = (sums / len(split)).tolist()
    return validation_metrics(log_px, rate) | ({"valid/bound": bound_mean} if k > 1 else {})


def mean_over_draws(terms: objectives.Terms) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) and the KL of each example, `(B,)`, as means over its draws."""
    return (terms.log_px, terms.kl) if terms.kl.ndim == 1 else (terms.log_px.mean(0), terms.kl.mean(0))


def validation_metrics(log_px: float, rate: float) -> Metrics:
    """Return the metrics of a validation from the means of log p(x|z) and of the KL."""
    return {"valid/elbo": log_px - rate, "valid/distortion": -log_px, "valid/rate": rate}


def run_epoch(state: State, config: Run, splits: Splits) -> Metrics:
    """Train for one epoch, validate, and record the metrics."""
    state.epoch += 1
    started = time.perf_counter()
    with state.hold_raw_weights():
        trained = _train_epoch(state, config, splits)
    speed = len(splits.train) / (time.perf_counter() - started)
    with torch.no_grad():
        validation = state.apply(lambda model: validate(model, splits.valid, config))
    return record_epoch(state, config, trained | {"perf/images_per_s": speed}, validation)


def record_epoch(state: State, config: Run, trained: Metrics, validation: Metrics) -> Metrics:
    """Merge an epoch's metrics, raise if the validation ELBO is not finite, and let the state remember them."""
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
    buffers = torch.empty(len(batches), len(Step._fields) * len(batches[0]), device=splits.train.device)
    for i, x in enumerate(splits.train.batches(batches, state.noise)):
        epochs_done = state.epoch - 1 + i / len(batches)
        steps.append(copy_into(take_step(state, config, x, epochs_done, len(splits.train)), buffers[i]))
        if i % STEPS_BETWEEN_CHECKS == 0 or i == len(batches) - 1:
            refuse_non_finite(steps[-STEPS_BETWEEN_CHECKS:], state.epoch, i + 1)
    return summarise_epoch(partial(mean, steps), config, state.epoch)


def summarise_epoch(mean: Callable[[str], float], config: Run, epoch: int) -> Metrics:
    """Return an epoch's metrics; `mean` returns the mean over its examples of a figure of its steps, by name."""
    metrics = {
        "train/objective": mean("objective"),
        "train/distortion": -mean("log_px"),
        "train/rate": mean("kl"),
        "train/grad_norm": mean("grad_norm"),
    }
    objective = config.objective
    metrics |= objective.figures(epoch)
    metrics |= {"train/divergence": mean("divergence")} if objective.estimates_divergence else {}
    return metrics | ({"train/critic_loss": mean("critic_loss")} if objective.critic is not None else {})


def take_step(state: State, config: Run, x: Tensor, epochs_done: float, data_size: int) -> Step:
    """Ascend the objective on one batch, without waiting for the device."""
    with autocast(config.train, x.device):

        def evaluate_objective(model: models.GenerativeModel) -> tuple[objectives.Terms, Tensor, Tensor | None]:
            terms = objectives.terms(
                model,
                x,
                generator=state.codes,
                noise=state.noise,
                backend=config.train.backend,
                samples=config.objective.draws,
            )
            return terms, *objectives.value(
                config.objective,
                terms,
                data_size=data_size,
                warmup=ramp(epochs_done, config.train.warmup_epochs),
                epochs_done=epochs_done,
                critic=state.adversary,
                generator=state.noise,
            )

        terms, objective, divergence = state.apply(evaluate_objective)
    state.optimizer.zero_grad()
    (-objective).backward()
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, config.train.clip_norm)
    state.optimizer.param_groups[0]["lr"] = learning_rate(config.train, epochs_done)
    state.optimizer.step()
    if state.average is not None:
        state.average.update()
    critic_loss = None
    if state.adversary is not None:
        critic_loss = state.adversary.step(terms.z, objectives.draw_negatives(config.objective, terms, state.noise))
    log_px, kl = mean_over_draws(terms)
    return Step(objective, log_px, kl, norm, divergence, critic_loss)


def batch_indices(split: Split, batch_size: int, order: torch.Generator) -> list[Tensor]:
    """Return index tensors of a random permutation; a last batch of one, which has no pairs, is left out."""
    permutation = torch.randperm(len(split), generator=order).to(split.stored.device)
    return [index for index in permutation.split(batch_size) if len(index) > 1]


def autocast(config: Train, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context of a step in the configured precision."""
    wanted = config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()
