"""What a terminal shows while a study runs: a line for the study and one for each worker; nothing elsewhere."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from vaebench.studies.engine.search.queue import Counts, Search
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.trial import QUICK

UP_AND_CLEAR = "\x1b[F\x1b[K"
SECONDS_BETWEEN = 0.3


@dataclass
class Screen:
    """The live lines, rewritten in place."""

    plan: Plan
    search: Search
    file: IO[str] = field(default_factory=lambda: sys.stderr)
    started: float = field(default_factory=time.monotonic)
    done_before: int | None = None
    lines: int = 0
    shown: float = 0.0

    def show(self, counts: Counts, workers: Sequence[dict[str, Any]]) -> None:
        """Replace the lines, where somebody looks at them."""
        if self.done_before is None:
            self.done_before = counts.done
        if not self.file.isatty() or time.monotonic() - self.shown < SECONDS_BETWEEN:
            return
        self.shown = time.monotonic()
        text = [self.study_line(counts), *(self.worker_line(message) for message in workers if message)]
        self.clear()
        self.file.write("".join(f"{line}\n" for line in text))
        self.file.flush()
        self.lines = len(text)

    def clear(self) -> None:
        """Take the lines away."""
        self.file.write(UP_AND_CLEAR * self.lines)
        self.file.flush()
        self.lines = 0

    def study_line(self, counts: Counts) -> str:
        """Return `17/40 done (9 pruned), 2 running, best 88.31, 0:23 left`."""
        notes = [
            f"{number} {word}"
            for word, number in (("pruned", counts.pruned), ("failed", counts.raised), ("lost", counts.lost))
            if number
        ]
        best = self.search.best()
        return "".join(
            [
                f"{self.plan.name}: {counts.done}/{self.plan.trials} done",
                f" ({', '.join(notes)})" if notes else "",
                f", {counts.running} running",
                f", best {best:.2f}" if best is not None else "",
                self._left(counts),
            ]
        )

    def worker_line(self, message: dict[str, Any]) -> str:
        """Return `  trial 17 of 4 together: epoch 24/60, elbo -91.2, nll 89.95`."""
        parts = [f"epoch {message['epoch']}/{self.plan.base.train.epochs}"]
        for label, name in (("elbo", "valid/elbo"), ("nll", QUICK)):
            parts += [f"{label} {message[name]:.2f}"] if name in message else []
        company = f" of {message['together']} together" if message.get("together", 1) > 1 else ""
        return f"  trial {message['trial']}{company}: {', '.join(parts)}"

    def _left(self, counts: Counts) -> str:
        since = counts.done - (self.done_before or 0)
        if since < 1:
            return ""
        seconds = (time.monotonic() - self.started) / since * max(self.plan.trials - counts.done, 0)
        return f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"
