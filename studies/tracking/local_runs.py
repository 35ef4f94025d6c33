"""The runs of a study without a tracker: a file in the folder of each trial, from which its report is made."""

import json
from pathlib import Path

from vaebench.studies.tracking import figures
from vaebench.studies.tracking.mlflow_runs import TrackedRun
from vaebench.studies.tracking.record import RunRecord
from vaebench.studies.whole_file import replacing

FILE = "run.json"


def write(record: RunRecord, folder: Path) -> None:
    """Keep the last values of a run's metrics, its params and its tags."""
    last: dict[str, tuple[int, float]] = {}
    for name, value, _, step in reversed(record.metrics):  # a final figure stands before the curve whose step it has
        if name not in last or step >= last[name][0]:
            last[name] = step, value
    metrics = {name: value for name, (_, value) in last.items()}
    kept = {"status": record.status, "end": record.end, "params": record.params, "tags": record.tags}
    with replacing(folder / FILE) as unfinished:
        unfinished.write_text(json.dumps({**kept, "metrics": metrics}))


def read(trial: int, folder: Path) -> TrackedRun | None:
    """Return the run of a trial; None if its file is missing or damaged."""
    try:
        kept = json.loads((folder / FILE).read_text())
        rest, kept["tags"] = figures.from_tags(kept["tags"])
        return TrackedRun(trial, "", **{**kept, "metrics": kept["metrics"] | rest})
    except (OSError, ValueError, KeyError, TypeError):
        return None
