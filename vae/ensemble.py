"""`fit_many(configs, ...) -> list[Result]`: train models of one architecture together, a step for all of them at once.

Small models leave a machine idle between their many small operations. Side by side, each has its own weights of the
objective, rates, decay, warm-up, seed, order of the data and noise, and becomes what `fit` would have made of it, to
the rounding of sums. A model that ends leaves, and the others go on.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vae import distributed
from vae.config import Run
from vae.data import Split, Splits
from vae.data import load as load_data
from vae.errors import DivergedError, InputError
from vae.model import VAE, build, place
from vae.stack import STEP, Member, Stack
from vae.stackable import can_stack as can_stack
from vae.state import State, learning_rate
from vae.train import (
    VALIDATION_ROWS,
    VALIDATION_SEED,
    Metrics,
    Report,
    Result,
    autocast,
    batch_indices,
    conclude,
    finish,
    open_folder,
    own_random_state,
    pick_device,
    require_match,
    resolve,
    risen,
    summed_up,
    validated,
)

ReportMany = Callable[[int, int, Metrics], None]


def fit_many(
    configs: Sequence[Run],
    *,
    data: Splits | None = None,
    models: Sequence[VAE] | None = None,
    report: ReportMany | None = None,
    folders: Sequence[Path] | None = None,
    progress: bool = False,
) -> list[Result]:
    """Train a model for each configuration, all of them together, and return their results in that order.

    Each result is that of `fit` with the same configuration, to the rounding of sums. What ends one run before its
    time, a `DivergedError` or what `report` raises, is its result's `error`, and the others do not notice.

    Args:
        configs: runs for which `can_stack` knows no reason against it.
        data: your own splits, see `vae.data.from_tensors`; the `data` section names them otherwise.
        models: one for each run, as `vae.model.build` makes it, where a report is to look at them while they train.
        report: called after each epoch of each run with the run's number, from 0, and what `fit` reports.
        folders: one for each run, which keeps its checkpoints; runs found there go on, here or with `fit`.
        progress: show a bar with the models that have ended.

    Example:
        >>> small = Run().replace({"model.hidden": 16, "train.epochs": 1, "train.device": "cpu"})
        >>> results = fit_many([small.replace({"objective.beta": beta}) for beta in (0.5, 1, 2)])
        >>> [len(result.history) for result in results]
        [1, 1, 1]
    """
    reason = can_stack(configs) if distributed.processes() == 1 else "several processes train one model, with fit."
    if reason is not None:
        raise InputError(f"these runs cannot be trained together: {reason}")
    places = None if folders is None else [open_folder(folder).resolve() for folder in folders]
    _require_one_each("folder", places, len(configs))
    _require_one_each("model", models, len(configs))
    together = Ensemble(load_data(configs[0].data, data).to(pick_device(configs[0].train)))
    members = [
        together.admit(
            config,
            model=models[i] if models else None,
            report=partial(report, i) if report else None,
            folder=places[i] if places else None,
        )
        for i, config in enumerate(configs)
    ]
    with tqdm(total=len(members), unit="model", disable=not progress) as bar:
        while together.members:
            together.epoch()
            bar.set_postfix_str(_postfix(together.members), refresh=False)
            bar.update(len(members) - len(together.members) - bar.n)
    return [together.result(member) for member in members]


class Ensemble:
    """Models that train together, an epoch at a time, and may come and go in between.

    Attributes:
        splits: what all of them train on.
        members: those that still train.
    """

    def __init__(self, splits: Splits) -> None:
        self.splits, self.members = splits, list[Member]()
        self._stack: Stack | None = None

    def admit(
        self,
        config: Run,
        *,
        model: VAE | None = None,
        report: Report | None = None,
        folder: Path | None = None,
    ) -> Member:
        """Let a model train with the others from the next epoch on, its first one or where its checkpoint left it."""
        config = resolve(config, self.splits.train.device, None, self.splits.shape)
        reason = can_stack([*(member.config for member in self.members[:1]), config])
        if reason is not None:
            raise InputError(f"this run cannot be trained with the others: {reason}")
        member = _start(config, self.splits, model, folder)
        member.report = report
        if not member.ended:
            self._dissolve()
            self.members.append(member)
        return member

    def epoch(self) -> list[Member]:
        """Train all members for one epoch, and return those that end with it, by themselves or by an error."""
        if not self.members:
            return []
        self._stack = self._stack or Stack(self.members, self.splits.train.device, len(self.splits.train))
        _epoch(self._stack, self.splits)
        for member in self.members:
            _after_epoch(self._stack, member, self.splits)
        ended = [member for member in self.members if member.ended]
        if ended:
            self._dissolve()
            self.members = [member for member in self.members if not member.ended]
        return ended

    def result(self, member: Member) -> Result:
        """Return what has become of a member that has ended."""
        return finish(member.state, member.config, self.splits, member.error)

    def _dissolve(self) -> None:
        """Give each member its own moments back; its weights it has since the last epoch."""
        if self._stack is not None:
            for member in self._stack.members:
                self._stack.write_moments(member)
        self._stack = None


def _require_one_each(name: str, things: Sequence[object] | None, count: int) -> None:
    """Raise unless there are none at all, or as many different ones as runs."""
    if things is not None and not len(things) == len(set(things)) == count:
        raise InputError(f"there must be a {name} of its own for each of {count} runs, got {len(things)}.")


def _start(config: Run, splits: Splits, model: VAE | None, folder: Path | None) -> Member:
    """Return a model as it is before its first step alone, or where its folder's checkpoint left it."""
    device = splits.train.device
    with own_random_state(config.train.seed, device):
        built = build(config.model, splits.shape, splits.levels)
        require_match(built, splits)
        if model is not None:
            if str(model) != str(built) or model.facts != built.facts:
                raise InputError(f"a model of a stack must be what vae.model.build makes of its run, got {model}.")
            torch.manual_seed(config.train.seed)
            built = model
        state = State.start(place(built, device), config, device)
        if folder is not None:
            state.resume(config, splits, folder)
        host, layers = torch.get_rng_state(), torch.Generator(device)
        layers.set_state(torch.cuda.get_rng_state() if device.type == "cuda" else host)
    return Member(config, state, layers, host, folder=folder)


def _epoch(stack: Stack, splits: Splits) -> None:
    """Train all members for one epoch, validate, and let each remember."""
    for member in stack.members:
        member.state.epoch += 1
    started = time.perf_counter()
    steps_SQM, sizes_S = _train_epoch(stack, splits.train)
    speed = len(splits.train) / (time.perf_counter() - started)
    means_QM = torch.einsum("sqm,s->qm", steps_SQM, sizes_S / sizes_S.sum())
    validations = _validate(stack, splits.valid)
    stack.write_weights()
    for m, (member, validation) in enumerate(zip(stack.members, validations, strict=True)):
        means = dict(zip(STEP, means_QM[:, m].tolist(), strict=True))
        trained = summed_up(means.__getitem__, member.config, member.state.epoch)
        try:
            _refuse_non_finite(steps_SQM[:, :, m], member.state.epoch)
            conclude(member.state, member.config, trained | {"perf/images_per_s": speed}, validation)
        except DivergedError as error:
            member.error = error


def _train_epoch(stack: Stack, split: Split) -> tuple[Tensor, Tensor]:
    """Take one step for each batch of permutations of each member's own.

    Returns what the steps left, by step, quantity and model, and the rows of each step's batches.
    """
    stack.model.train()
    members = stack.members
    orders = [batch_indices(split, stack.train.batch_size, member.state.order) for member in members]
    S = len(orders[0])
    done = [[member.state.epoch - 1 + i / S for member in members] for i in range(S)]
    configs = [member.config for member in members]
    laws_SM = (
        torch.tensor([[law(*pair) for pair in zip(configs, row, strict=True)] for row in done], device=split.device)
        for law in (_warmth, _reach, _rate)
    )
    steps_SQM = torch.empty(S, len(STEP), len(members), device=split.device)
    batches = _batches(split, zip(*orders, strict=True), stack.noise)
    for x, left, *at_step in zip(batches, steps_SQM, *laws_SM, strict=True):
        left.copy_(stack.step(x, *at_step))
    return steps_SQM.cpu(), torch.tensor([float(len(index)) for index in orders[0]])


def _batches(split: Split, indices: Iterable[Sequence[Tensor]], noise: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """Yield the members' batches of a step one after another, `(M * B, *shape)`, each step's in one index select."""
    for x in dataclasses.replace(split, dynamic=False).batches(torch.cat(list(each)) for each in indices):
        if not split.dynamic:
            yield x
            continue
        parts = zip(x.chunk(len(noise)), noise, strict=True)
        yield torch.cat([torch.bernoulli(part, generator=generator) for part, generator in parts])


@torch.no_grad()
def _validate(stack: Stack, split: Split) -> list[Metrics]:
    """Return what `vae.train.validate` does for each member, from the noise that it gives to each."""
    stack.model.eval()
    M = len(stack.members)
    sums = torch.zeros(2, M, dtype=torch.float64)
    noise = [torch.Generator(split.device).manual_seed(VALIDATION_SEED) for _ in range(M)]
    rows = torch.arange(len(split), device=split.stored.device).split(VALIDATION_ROWS)
    for x in _batches(split, ([index] * M for index in rows), noise):
        with autocast(stack.train, split.device):
            terms = stack.terms(x, noise)
        sums += torch.stack([x.view(M, -1).double().sum(1) for x in (terms.log_px, terms.kl)]).cpu()
    return [validated(log_px, rate) for log_px, rate in (sums / len(split)).T.tolist()]


def _after_epoch(stack: Stack, member: Member, splits: Splits) -> None:
    """Save and report an epoch of a member that has not diverged."""
    if member.error is not None:
        return
    if member.folder is not None and member.state.due(member.config):
        stack.write_moments(member)
        with own_random_state(member.config.train.seed, splits.train.device):
            member.restore_random_state()
            member.state.save(member.config, splits, member.folder)
    if member.report is not None:
        try:
            member.report(member.state.epoch, dict(member.state.history[-1]))
        except Exception as error:
            member.error = error


def _refuse_non_finite(steps: Tensor, epoch: int) -> None:
    """Raise at a model's first step whose objective or gradient norm is not finite, from `(S, 5)`."""
    bad = (~(steps[:, 0] + steps[:, 3]).isfinite()).nonzero()
    if len(bad):
        i = int(bad[0])
        raise DivergedError.at_step(epoch, i + 1, *steps[i, :4].tolist())


def _warmth(config: Run, epochs_done: float) -> float:
    return risen(epochs_done, config.train.warmup_epochs)


def _reach(config: Run, epochs_done: float) -> float:
    return risen(epochs_done, config.objective.capacity_epochs)


def _rate(config: Run, epochs_done: float) -> float:
    return learning_rate(config.train, epochs_done)


def _postfix(training: Sequence[Member]) -> str:
    best = max((member.state.best_elbo for member in training), default=-math.inf)
    return f"{len(training)} together, best elbo {best:.2f}"
