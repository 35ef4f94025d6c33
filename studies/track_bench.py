"""Put saved benchmark sessions into MLflow: one run each, with a child for each operation and mode.

`python studies/track_bench.py bench/results/*.json`, then `mlflow ui`: size is the step, so that charts of the children
have it on x, and sessions of other machines and commits lie beside each other. What `python bench/report.py A.json`
wrote, and a folder A-profile of `python bench/profile_step.py`, go along as artifacts. A session that is there
already gets only those that are new; one that was stopped halfway is completed.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vaebench.bench.session.read import UnreadableError, load
from vaebench.studies.tracking import mlflow_runs
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.record import Point, Record, StoreError
from vaebench.vae.errors import InputError

EXPERIMENT = "benchmarks"
DIGEST, BEGUN, PART, ATTACHED = "session", "session_begun", "session_part", "session_files"
MACHINE = (
    "device",
    "driver",
    "runtime",
    "torch",
    "triton",
    "python_version",
    "cores",
    "threads",
    "allocator_pinned",
    "note",
)
BESIDE = (".md", "-speed.png", "-bandwidth.png", "-memory.png")  # what bench/report.py writes
MEASURED = ("copy_bytes_per_s", "floor_seconds", "load")

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="written with --benchmark-json")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT (mlflow.db in this folder)")
    options = parser.parse_args(arguments)
    uri = options.tracking_uri or mlflow_runs.default_uri(Path())
    try:
        if "://" not in uri:
            raise InputError(f"--tracking-uri takes http://HOST:PORT or a database URL; got {uri!r}.")
        mlflow_runs.require_writable(uri)
        sessions = {path: read(path) for path in options.files}
        for path, session in sessions.items():
            print(f"{path}: {track(Tracker(uri, EXPERIMENT), path, session)}")
    except (InputError, StoreError) as error:
        print(f"track_bench.py: {error}", file=sys.stderr)
        return 2
    return 0


def read(path: Path) -> Row:
    """Return a session as it was saved, or raise one sentence on why it is none."""
    try:
        load(path)
    except UnreadableError as error:
        raise InputError(str(error)) from error
    session: Row = json.loads(path.read_text())
    return session


def track(tracker: Tracker, path: Path, session: Row) -> str:
    """Write a session and its children, as far as they are missing, and say what was done.

    The parent runs until all is there. One that a call left running, because it was stopped, is taken up again.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    known = tracker.find(DIGEST, digest)
    if known is not None:
        added = attach(tracker, known, artifacts(path))
        return "is there already" + (f"; attached {', '.join(added)}" if added else "")
    tags, start = about(session), when(session)
    measured = [(name, float(session["machine_info"][name]), start, 0) for name in MEASURED]
    parent = put(tracker, Record(0, path.stem, start, tags=tags | {BEGUN: digest}, metrics=measured), BEGUN)
    series = children(session["benchmarks"])
    for place, (name, rows) in enumerate(series.items()):
        points = [point for row in rows for point in points_of(row, session, start)]
        part = tags | {PART: f"{digest}-{place}"}
        put(tracker, Record(0, name, start, "FINISHED", start, tags=part, metrics=points), PART, parent)
    attach(tracker, parent, artifacts(path))
    tracker.close(parent, "FINISHED", start)
    tracker.extend(parent, [], {}, {DIGEST: digest})
    return f"a run with {len(series)} children, in the experiment {EXPERIMENT}"


def put(tracker: Tracker, record: Record, tag: str, parent: str | None = None) -> str:
    """Return the run with the record's value of a tag, written once more if it is there, and otherwise added."""
    run = tracker.find(tag, record.tags[tag])
    if run is None:
        return tracker.add(record, parent)
    tracker.extend(run, record.metrics, {}, {})
    if record.end:
        tracker.close(run, record.status, record.end)
    return run


def attach(tracker: Tracker, run: str, files: Sequence[str]) -> list[str]:
    """Attach the files that a run lacks, or has with other contents, and return their names."""
    digests = {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files}
    there = json.loads(tracker.tag_of(run, ATTACHED) or "{}")
    changed = [file for file in files if there.get(Path(file).name) != digests[Path(file).name]]
    if changed:
        tracker.attach(run, changed)
        tracker.extend(run, [], {}, {ATTACHED: json.dumps(there | digests)})
    return [Path(file).name for file in changed]


def about(session: Row) -> dict[str, str]:
    """Return machine and commit as tags."""
    machine, commit = session["machine_info"], session["commit_info"]
    version = commit["id"] + ("-dirty" if commit.get("dirty") else "")
    known = {name: str(machine[name]) for name in MACHINE if machine.get(name) is not None}
    processor = machine.get("cpu", {}).get("brand_raw")
    return known | {"commit": version, "mlflow.source.git.commit": version, "processor": str(processor)}


def children(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each child: one operation in one mode, at all sizes and by all providers.

    Work without a size, and a second one of the same size, is a child of its own: a step has one point of a metric.
    """
    found: dict[str, list[Row]] = {}
    at: dict[tuple[str, int], str] = {}
    for row in rows:
        facts = row["extra_info"]
        mode = " ".join(str(facts[name]) for name in ("dtype", "direction") if name in facts)
        name = f"{facts['subject']} {mode}".rstrip()
        alone = "input_bytes" not in facts or at.setdefault((name, step(row)), row["group"]) != row["group"]
        found.setdefault(row["group"] if alone else name, []).append(row)
    return found


def points_of(row: Row, session: Row, now: int) -> Iterator[Point]:
    """Yield what one provider showed at one size."""
    facts, seconds = row["extra_info"], row["stats"]["median"]
    values = {"seconds": seconds, "bytes_kept": facts.get("saved_bytes"), "bytes_peak": facts.get("peak_bytes")}
    if facts["provider"] != facts["baseline"]:
        ratio = facts["ratio"]
        ends = {"speed": "median", "speed_low": "high", "speed_high": "low"}
        values |= {name: 1 / ratio[end] for name, end in ends.items() if ratio[end]}
    if facts.get("op") == "reparam_kl":  # the pairwise operations compute
        values["copy_share"] = facts["model_bytes"] / seconds / session["machine_info"]["copy_bytes_per_s"]
    provider = re.sub(r"[^\w.:-]+", " ", facts["provider"])
    for name, value in values.items():
        if value is not None:
            yield f"{name}/{provider}", float(value), now, step(row)


def step(row: Row) -> int:
    """Return the size of the problem: bytes of the inputs, or 0 where there is one size only."""
    return int(row["extra_info"].get("input_bytes", 0))


def when(session: Row) -> int:
    """Return when a session ended, in milliseconds since 1970."""
    return round(1000 * datetime.fromisoformat(session["datetime"]).timestamp())


def artifacts(path: Path) -> list[str]:
    """Return the file, and what lies beside it under its name: page, pictures, the files of a profile."""
    beside = [path.with_name(path.stem + end) for end in BESIDE]
    profile = path.with_name(f"{path.stem}-profile")
    inside = sorted(profile.iterdir()) if profile.is_dir() else []
    return [str(file) for file in (path, *beside, *inside) if file.is_file()]


if __name__ == "__main__":
    sys.exit(main())
