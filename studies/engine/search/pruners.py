"""Who stops poor trials early."""

import itertools
import math
from collections.abc import Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.search.states import state_of
from vaebench.studies.engine.study.plan import Plan

REDUCTION = 3
FEWEST = 3
COUNTED = (TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE)  # lost trials are run again
GOLDEN = (math.sqrt(5) - 1) / 2


def make_pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """Return the pruner of a plan, which leaves at least a third of the trials; a very small study has none."""
    if plan.pruner == "none" or not plan.target.prunable:
        return optuna.pruners.NopPruner()
    if plan.pruner == "median":
        return LeavingAThird(optuna.pruners.MedianPruner(n_warmup_steps=plan.report_epochs), plan.trials)
    assert plan.pruner == "hyperband", plan.pruner
    steps = rungs(plan.base.train.epochs, plan.report_epochs, plan.trials)
    return LeavingAThird(AsynchronousHyperband(steps), plan.trials, steps) if steps else optuna.pruners.NopPruner()


def rungs(epochs: int, every: int, trials: int) -> list[int]:
    """Return the epochs at which a trial may be stopped: a third, a ninth ... of all, as multiples of `every`.

    At each of them a third goes on. There are so many of them that three trials would be left, and the early ones are
    left out first.

    Example:
        >>> rungs(60, 6, trials=40), rungs(60, 6, trials=12), rungs(60, 6, trials=8)
        ([6, 18], [18], [])
    """
    shares = itertools.takewhile(lambda share: share >= every, (epochs / REDUCTION**k for k in itertools.count(1)))
    most = sum(FEWEST * REDUCTION**k <= trials for k in range(1, 1 + trials.bit_length()))
    return sorted({int(share // every) * every for share in itertools.islice(shares, most)})


class LeavingAThird(optuna.pruners.BasePruner):
    """A pruner that stops a trial only while at least a third of the trials asked for can still finish.

    Another worker may stop a trial at this moment. Running trials whose last report is one at which the pruner decides
    count as stopped, so that two workers cannot both stop the last one.
    """

    def __init__(self, pruner: optuna.pruners.BasePruner, trials: int, steps: Sequence[int] | None = None) -> None:
        self.pruner, self.steps = pruner, steps
        self.most = trials - math.ceil(trials / REDUCTION)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial that has just reported a value is stopped."""
        if not self.pruner.prune(study, trial):
            return False
        others = study.get_trials(deepcopy=False)
        return sum(self._may_not_finish(other) for other in others if other.number != trial.number) < self.most

    def _may_not_finish(self, trial: FrozenTrial) -> bool:
        if trial.state != TrialState.RUNNING:
            return state_of(trial) in ("pruned", "failed")
        return trial.last_step is not None and (self.steps is None or trial.last_step in self.steps)


class AsynchronousHyperband(optuna.pruners.BasePruner):
    """Hyperband (Li et al. 2018, arXiv:1603.06560), asynchronous: at a rung only the best third goes on.

    With s rungs there are s brackets. Bracket b skips the first b rungs, and holds a share of the trials such that all
    brackets cost about the same. The bracket without any rung is left out: over eight default studies it took a fifth
    of the epochs and found nothing better.

    Optuna's own pruner draws the bracket from a hash of the study's name, compares only within a bracket, and hides the
    other brackets from the sampler: with forty trials the study's name decides the result. Here the trial's number
    spreads trials evenly over the brackets, all trials at a rung are compared, and the sampler sees all trials.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = list(rungs)
        sizes = [REDUCTION**left / (left + 1) for left in range(len(self.rungs), 0, -1)]
        self.shares = [size / sum(sizes) for size in sizes]

    def bracket(self, number: int) -> int:
        """Return the bracket of a trial; multiples of the golden ratio, modulo 1, spread even a few trials evenly."""
        place = (number + 0.5) * GOLDEN % 1
        return sum(place >= bound for bound in itertools.accumulate(self.shares[:-1]))

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial that has just reported a value is stopped."""
        step = trial.last_step
        if step not in self.rungs[self.bracket(trial.number) :]:
            return False
        own = trial.intermediate_values[step]
        others = study.get_trials(deepcopy=False, states=COUNTED)
        reached = [other.intermediate_values.get(step) for other in others]
        values = [value for value in reached if value is not None and not math.isnan(value)]
        higher_is_better = study.direction == StudyDirection.MAXIMIZE
        better = sum(value > own if higher_is_better else value < own for value in values)
        return math.isnan(own) or better >= max(1, len(values) // REDUCTION)
