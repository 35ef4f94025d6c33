"""Who stops poor trials early."""

import itertools
import math
from collections.abc import Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.search.samplers import ignore_experimental
from vaebench.studies.engine.study.plan import Plan

REDUCTION = 3
COUNTED = (TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE)  # lost trials are run again
GOLDEN = (math.sqrt(5) - 1) / 2


def make_pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """Return the pruner of a plan; trials of several seeds are compared seed by seed."""
    if plan.pruner == "none" or not plan.target.prunable:
        return optuna.pruners.NopPruner()
    if plan.seeds > 1:
        with ignore_experimental():
            return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=plan.report_epochs)
    return AsynchronousHyperband(rungs(plan.base.train.epochs, plan.report_epochs))


def rungs(epochs: int, every: int) -> list[int]:
    """Return the epochs at which a trial may be stopped: a third, a ninth ... of all, as multiples of `every`.

    Example:
        >>> rungs(60, 6)
        [6, 18]
    """
    shares = itertools.takewhile(lambda share: share >= every, (epochs / REDUCTION**k for k in itertools.count(1)))
    return sorted({int(share // every) * every for share in shares})


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
