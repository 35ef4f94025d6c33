"""One epoch of a stack: a step for each batch of all models, the validation, and the metrics of each model.

Axes: S steps, Q quantities of a step, N names of weights, M models, B rows of a model's batch.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vaebench.vae.config.objective import ramp
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits
from vaebench.vae.ensemble.stack import QUANTITIES, Stack
from vaebench.vae.errors import DivergedError
from vaebench.vae.training import epoch as single
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.state import learning_rate
from vaebench.vae.training.streams import generator, streams

RATE = "learning_rate"


def run_epoch(stack: Stack, splits: Splits) -> None:
    """Train all members for one epoch, validate them, and record the metrics of each."""
    for member in stack.members:
        member.state.epoch += 1
    started = time.perf_counter()
    steps_SQM, sizes_S = _train_epoch(stack, splits.train)
    speed = len(splits.train) / (time.perf_counter() - started)
    means_QM = torch.einsum("sqm,s->qm", steps_SQM, sizes_S / sizes_S.sum())
    validations = _validate(stack, splits.valid)
    stack.write_weights()
    for m, (member, validation) in enumerate(zip(stack.members, validations, strict=True)):
        means = dict(zip(QUANTITIES, means_QM[:, m].tolist(), strict=True))
        trained = single.summarise_epoch(means.__getitem__, member.config, member.state.epoch)
        try:
            _refuse_non_finite(steps_SQM[:, :, m], member.state.epoch)
            single.record_epoch(member.state, member.config, trained | {"perf/images_per_s": speed}, validation)
        except DivergedError as error:
            member.error = error


def _train_epoch(stack: Stack, split: Split) -> tuple[Tensor, Tensor]:
    """Take one step for each batch, every member in its own permutation of the split.

    Returns the quantities of the steps, `(S, Q, M)`, and the rows of each step's batches, `(S,)`.
    """
    stack.model.train()
    members = stack.members
    orders = [single.batch_indices(split, stack.train.batch_size, member.state.order) for member in members]
    S = len(orders[0])
    schedule = [[schedule_of(one.config, one.state.epoch - 1 + i / S) for one in members] for i in range(S)]
    names = sorted({name for one in schedule[0] for name in one})
    rows = [[[one.get(name, 0.0) for one in each] for name in names] for each in schedule]
    schedule_SNM = torch.tensor(rows, device=split.device)
    steps_SQM = torch.empty(S, len(QUANTITIES), len(members), device=split.device)
    batches = stack_batches(split, zip(*orders, strict=True), stack.noise)
    for x, quantities, at_step in zip(batches, steps_SQM, schedule_SNM, strict=True):
        weights = dict(zip(names, at_step, strict=True))
        quantities.copy_(stack.step(x, weights.pop(RATE), weights))
    return steps_SQM.cpu(), torch.tensor([float(len(index)) for index in orders[0]])


def schedule_of(config: Run, epochs_done: float) -> dict[str, float]:
    """Return the learning rate of a step and the weights of its objective, by name."""
    weights = {**config.objective.weights(epochs_done), "warmup": ramp(epochs_done, config.train.warmup_epochs)}
    return {RATE: learning_rate(config.train, epochs_done), **weights}


def stack_batches(
    split: Split, indices: Iterable[Sequence[Tensor]], noise: Sequence[torch.Generator]
) -> Iterator[Tensor]:
    """Yield for each step the batches of all members, concatenated to `(M * B, *shape)`, by one index select."""
    for x in dataclasses.replace(split, dynamic=False).batches(torch.cat(list(each)) for each in indices):
        if split.dynamic:
            parts = zip(x.chunk(len(noise)), noise, strict=True)
            x = torch.cat([torch.bernoulli(part, generator=generator) for part, generator in parts])
        yield x


@torch.no_grad()
def _validate(stack: Stack, split: Split) -> list[Metrics]:
    """Return the metrics of `vae.training.epoch.validate` for each member, with its own noise."""
    stack.model.eval()
    M = len(stack.members)
    sums = torch.zeros(2, M, dtype=torch.float64)
    seeds = [streams(one.config.train.seed).validation for one in stack.members]
    noise = [generator(seed, split.device) for seed in seeds]
    rows = torch.arange(len(split), device=split.stored.device).split(single.VALIDATION_ROWS)
    for x in stack_batches(split, ([index] * M for index in rows), noise):
        with single.autocast(stack.train, split.device):
            terms = stack.terms(x, noise)
        sums += torch.stack([x.view(M, -1).double().sum(1) for x in (terms.log_px, terms.kl)]).cpu()
    return [single.validation_metrics(log_px, rate) for log_px, rate in (sums / len(split)).T.tolist()]


def _refuse_non_finite(steps: Tensor, epoch: int) -> None:
    """Raise at a model's first step whose objective or gradient norm is not finite, from `(S, 5)`."""
    bad = (~(steps[:, 0] + steps[:, 3]).isfinite()).nonzero()
    if len(bad):
        i = int(bad[0])
        raise DivergedError.at_step(epoch, i + 1, *steps[i, :4].tolist())
