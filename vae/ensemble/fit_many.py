"""`fit_many(configs, ...) -> list[Result]`: train models of one architecture together, a step for all of them at once.

Small models leave a machine idle between their many small operations. Here each model has its own weights of the
objective, learning rate, weight decay, warm-up, seed, order of the data and noise, and ends as `fit` would have trained
it, to the rounding of sums. A model that ends leaves the stack, and the others continue.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits
from vaebench.vae.data import load as load_data
from vaebench.vae.ensemble.compatible import can_stack as can_stack
from vaebench.vae.ensemble.epoch import run_epoch
from vaebench.vae.ensemble.stack import Member, Stack
from vaebench.vae.errors import DivergedError, InputError
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training import distributed
from vaebench.vae.training import epoch as single
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import Result, finish
from vaebench.vae.training.setup import initial_model, open_folder, own_random_state, pick_device, resolve, start

ReportMany = Callable[[int, int, Metrics], None]
Stacking = Literal["always", "auto", "never"]

TRIED_EPOCHS = 2


def fit_many(
    configs: Sequence[Run],
    *,
    data: Splits | None = None,
    models: Sequence[GenerativeModel] | None = None,
    report: ReportMany | None = None,
    folders: Sequence[Path] | None = None,
    stacking: Stacking = "always",
    progress: bool = False,
) -> list[Result]:
    """Train a model for each configuration, all of them side by side, and return their results in that order.

    Each result is that of `fit` with the same configuration, to the rounding of sums. A `DivergedError` or an exception
    of `report` ends one run early, is stored as its result's `error`, and does not affect the others.

    Args:
        configs: runs that can be trained together: `can_stack(configs)` returns None, unless `stacking` is not always.
        data: your own splits, see `vae.data.from_tensors`; the `data` section names them otherwise.
        models: one for each run, from `vae.model.build`, if the report looks at them while they train.
        report: called after each epoch of each run with the run's number, from 0, and the arguments of `fit`'s report.
        folders: one for each run, which holds its checkpoints; runs found there resume, here or with `fit`.
        stacking: whether a step trains all models at once; see `Ensemble`.
        progress: show a bar with the number of models that have ended.

    Example:
        >>> small = Run().replace({"model.hidden": 16, "train.epochs": 1, "train.device": "cpu"})
        >>> results = fit_many([small.replace({"objective.beta": beta}) for beta in (0.5, 1, 2)])
        >>> [len(result.history) for result in results]
        [1, 1, 1]
    """
    reason = can_stack(configs) if stacking == "always" or not configs else None
    if distributed.world_size() > 1:
        reason = "several processes train one model, with fit."
    _refuse(reason)
    places = None if folders is None else [open_folder(folder).resolve() for folder in folders]
    for name, given in (("folder", places), ("model", models)):
        if given is not None and not len(given) == len(set(given)) == len(configs):
            raise InputError(f"there must be a {name} of its own for each of {len(configs)} runs, got {len(given)}.")
    splits = load_data(configs[0].data, data).to(pick_device(configs[0].train))
    ensemble = Ensemble(configs, splits, models=models, folders=places, stacking=stacking)
    with tqdm(total=len(configs), unit="model", disable=not progress) as bar:
        while members := ensemble.training:
            ensemble.train_epoch()
            for member in members:
                _report(report, ensemble.members.index(member), member)
            best = max(member.state.best_elbo for member in ensemble.members)
            bar.set_postfix_str(f"{len(ensemble.training)} together, best elbo {best:.2f}", refresh=False)
            bar.update(len(configs) - len(ensemble.training) - bar.n)
    return ensemble.results()


class Ensemble:
    """Models that train side by side, an epoch at a time: in one step for all of them, or one after another.

    Both ways give the same results, to the rounding of sums, and epochs of both kinds may follow each other. `auto`
    trains two epochs each way and goes on with the faster one; models that cannot be stacked train one after another.

    Attributes:
        members: the models, in the order of their runs.
        splits: the data of all models, on their device.
        seconds: of each epoch, divided by the number of models, by whether they were stacked.
    """

    def __init__(
        self,
        configs: Sequence[Run],
        splits: Splits,
        *,
        models: Sequence[GenerativeModel] | None = None,
        folders: Sequence[Path] | None = None,
        stacking: Stacking = "auto",
    ) -> None:
        self.splits = splits
        self.members = [
            _start(config, models[i] if models else None, folders[i] if folders else None, splits)
            for i, config in enumerate(configs)
        ]
        reason = _why_not_stack(self.members, splits, are_built=models is None)
        if stacking == "always":
            _refuse(reason)
        self.stacking: Stacking = stacking if reason is None else "never"
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._stack: Stack | None = None

    @property
    def training(self) -> list[Member]:
        """Return the models that have not ended."""
        return [member for member in self.members if not member.has_ended]

    def train_epoch(self) -> None:
        """Train the models that have not ended for one epoch, and write the checkpoints that are due."""
        members, started = self.training, self._clock()
        stacked = self._is_stacked_next(len(members))
        if self._stack is not None and not (stacked and len(members) == len(self._stack.members)):
            self._stack.write_moments()
            self._stack = None
        if stacked:
            self._stack = self._stack or Stack(members, self.splits.train.device, len(self.splits.train))
            run_epoch(self._stack, self.splits)
        else:
            for member in members:
                _train_alone(member, self.splits)
        self.seconds[stacked].append((self._clock() - started) / len(members))
        self._save([one for one in members if one.error is None and one.state.is_checkpoint_due(one.config)])

    def results(self) -> list[Result]:
        """Return the result of each model, as it is now."""
        return [finish(member.state, member.config, self.splits, member.error) for member in self.members]

    def _is_stacked_next(self, count: int) -> bool:
        if self.stacking != "auto":
            return self.stacking == "always"
        if count == 1:
            return False
        untried = [stacked for stacked, seconds in self.seconds.items() if len(seconds) < TRIED_EPOCHS]
        return untried[0] if untried else min(self.seconds[True]) < min(self.seconds[False])

    def _clock(self) -> float:
        """Return the time; on a CPU that of this process, since other processes slow down one way more than the other.

        On a GPU an epoch ends when its figures have been copied to the CPU.
        """
        return time.process_time() if self.splits.train.device.type == "cpu" else time.perf_counter()

    def _save(self, members: Sequence[Member]) -> None:
        """Write the checkpoints of models that have a folder."""
        kept = [(member, member.folder) for member in members if member.folder is not None]
        if kept and self._stack is not None:
            self._stack.write_moments()
        for member, folder in kept:
            with member.own_random_state():
                member.state.save(member.config, self.splits, folder)


def _start(config: Run, model: GenerativeModel | None, folder: Path | None, splits: Splits) -> Member:
    """Return a model before its first step, or as its folder's checkpoint holds it."""
    device = splits.train.device
    config = resolve(config, device, model, splits.shape)
    with own_random_state(config.train.seed, device):
        return Member.start(config, start(config, splits, model, folder), device, folder)


def _why_not_stack(members: Sequence[Member], splits: Splits, *, are_built: bool) -> str | None:
    """Return a reason against a stack, or None; models that were given must be as their runs would build them."""
    reason = can_stack([member.config for member in members])
    if reason is not None or are_built:
        return reason
    for member in members:
        model, required = member.model, initial_model(member.config, splits, splits.train.device)
        if str(model) != str(required) or model.settings != required.settings:
            return f"a model of a stack must be what vae.model.build makes of its run, got {model}."
    return None


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise InputError(f"these runs cannot be trained together: {reason}")


def _train_alone(member: Member, splits: Splits) -> None:
    """Train one model for an epoch, as `fit` does."""
    with member.own_random_state():
        try:
            single.run_epoch(member.state, member.config, splits)
        except DivergedError as error:
            member.error = error


def _report(report: ReportMany | None, number: int, member: Member) -> None:
    """Report an epoch of a model that has not diverged; an exception ends its training alone."""
    if report is not None and member.error is None:
        try:
            report(number, member.state.epoch, dict(member.state.history[-1]))
        except Exception as error:
            member.error = error
