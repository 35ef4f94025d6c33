"""The progress of a study on a terminal: a line for the study and a line for each worker; nothing elsewhere."""

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.search.states import Counts
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.trial import QUICK

SECONDS_BETWEEN = 0.3
WORKER_LINES = 32


class Screen:
    """The live lines, rewritten in place."""

    def __init__(self, plan: Plan, search: Search) -> None:
        tqdm.monitor_interval = 0  # tqdm must not start its thread: workers are forked from this process
        self.search, self.shown = search, 0.0
        done = search.counts().done
        self.study = tqdm(
            desc=plan.name,
            total=max(plan.trials, done),
            initial=done,
            bar_format="{desc}: {n_fmt}/{total_fmt}, {remaining} left{postfix}",  # fits 80 columns
            disable=None,
            leave=False,
            dynamic_ncols=True,
        )
        self.workers = [
            tqdm(bar_format="  {desc}", disable=None, leave=False, dynamic_ncols=True)
            for _ in range(min(plan.workers, WORKER_LINES))
        ]

    def show(self, counts: Counts, messages: Sequence[dict[str, Any]]) -> None:
        """Rewrite the lines."""
        if self.study.disable or time.monotonic() - self.shown < SECONDS_BETWEEN:
            return
        self.shown = time.monotonic()
        self.study.n = counts.done
        self.study.set_postfix_str(describe_study(counts, self.search.best_value()))
        lines = [describe_worker(message) for message in messages if message]
        for bar, line in zip(self.workers, [*lines, *[""] * len(self.workers)], strict=False):
            bar.set_description_str(line)

    def close(self) -> None:
        """Remove the lines."""
        for bar in (*self.workers, self.study):
            bar.close()


def describe_study(counts: Counts, best: float | None) -> str:
    """Return `9 pruned, 2 running, best 88.31`."""
    numbers = {"pruned": counts.pruned, "failed": counts.failed, "lost": counts.lost, "running": counts.running}
    parts = [f"{number} {word}" for word, number in numbers.items() if number]
    return ", ".join([*parts, *([f"best {best:.2f}"] if best is not None else [])])


def describe_worker(message: dict[str, Any]) -> str:
    """Return `trial 17: epoch 24/60, elbo -91.20, nll 89.95`."""
    parts = [f"epoch {message['epoch']}/{message['epochs']}"]
    for label, name in (("elbo", "valid/elbo"), ("nll", QUICK)):
        parts += [f"{label} {message[name]:.2f}"] if name in message else []
    return f"trial {message['trial']}: {', '.join(parts)}"
