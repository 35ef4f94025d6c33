"""Write benchmark sessions as runs of MLflow: the work of studies/track_bench.py."""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from vaebench.bench.session.read import JsonObject, UnreadableError, load
from vaebench.studies.tracking import mlflow_store
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.record import MetricValue, RunRecord
from vaebench.vae.errors import InputError

EXPERIMENT = "benchmarks"
# Tags: the digest of a session that is complete, of one that was begun, of each of its children, of each artifact.
DIGEST, BEGUN_DIGEST, CHILD_DIGEST, FILE_DIGESTS = "session", "session_begun", "session_part", "session_files"
MACHINE = (
    *("device", "driver", "runtime", "torch", "triton", "python_version"),
    *("cores", "threads", "allocator_pinned", "note"),
)
REPORT_ENDS = (".md", "-speed.png", "-bandwidth.png", "-memory.png")  # what bench/report.py writes
MEASURED = ("copy_bytes_per_s", "floor_seconds", "load")


def run(options: argparse.Namespace) -> None:
    """Read all sessions, then track each and print what was done."""
    uri = options.tracking_uri or mlflow_store.default_uri(Path())
    mlflow_store.require_writable(uri)
    sessions = {path: read(path) for path in options.files}
    for path, session in sessions.items():
        print(f"{path}: {track(Tracker(uri, EXPERIMENT), path, session)}")


def read(path: Path) -> JsonObject:
    """Return the JSON of a session, or raise an `InputError` where the file is not a session of this suite."""
    try:
        load(path)
    except UnreadableError as error:
        raise InputError(str(error)) from error
    session: JsonObject = json.loads(path.read_text())
    return session


def track(tracker: Tracker, path: Path, session: JsonObject) -> str:
    """Write the runs of a session that are missing; return a phrase that says what was done.

    The parent run stays open until all its children are written. A later call completes a parent that is still open.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    complete = tracker.find(DIGEST, digest)
    if complete is not None:
        added = attach(tracker, complete, artifacts(path))
        return "is there already" + (f"; attached {', '.join(added)}" if added else "")
    tags = describe_origin(session)
    end = round(1000 * datetime.fromisoformat(session["datetime"]).timestamp())
    measured = [(name, float(session["machine_info"][name]), end, 0) for name in MEASURED]
    begun = RunRecord(0, path.stem, end, tags=tags | {BEGUN_DIGEST: digest}, metrics=measured)
    parent = upsert(tracker, begun, BEGUN_DIGEST)
    rows_of = children(session["benchmarks"])
    for number, (name, rows) in enumerate(rows_of.items()):
        values = [value for row in rows for value in metric_values(row, session, end)]
        child = tags | {CHILD_DIGEST: f"{digest}-{number}"}
        upsert(tracker, RunRecord(0, name, end, "FINISHED", end, tags=child, metrics=values), CHILD_DIGEST, parent)
    attach(tracker, parent, artifacts(path))
    tracker.close(parent, "FINISHED", end)
    tracker.extend(parent, [], {}, {DIGEST: digest})
    return f"a run with {len(rows_of)} children, in the experiment {EXPERIMENT}"


def upsert(tracker: Tracker, record: RunRecord, tag: str, parent: str | None = None) -> str:
    """Return the run that has the record's value of a tag: added if it is missing, else written again."""
    run = tracker.find(tag, record.tags[tag])
    if run is None:
        return tracker.add(record, parent)
    tracker.extend(run, record.metrics, {}, {})
    if record.end:
        tracker.close(run, record.status, record.end)
    return run


def attach(tracker: Tracker, run: str, files: Sequence[str]) -> list[str]:
    """Attach the files that the run does not have yet with these contents; return their names."""
    digests = {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files}
    attached = json.loads(tracker.tag_of(run, FILE_DIGESTS) or "{}")
    changed = [file for file in files if attached.get(Path(file).name) != digests[Path(file).name]]
    if changed:
        tracker.attach(run, changed)
        tracker.extend(run, [], {}, {FILE_DIGESTS: json.dumps(attached | digests)})
    return [Path(file).name for file in changed]


def describe_origin(session: JsonObject) -> dict[str, str]:
    """Return machine and commit as tags."""
    machine, commit = session["machine_info"], session["commit_info"]
    version = commit["id"] + ("-dirty" if commit.get("dirty") else "")
    known = {name: str(machine[name]) for name in MACHINE if machine.get(name) is not None}
    processor = machine.get("cpu", {}).get("brand_raw")
    return known | {"commit": version, "mlflow.source.git.commit": version, "processor": str(processor)}


def children(rows: Sequence[JsonObject]) -> dict[str, list[JsonObject]]:
    """Return the rows of each child run: one operation in one mode, at all sizes and by all providers.

    A group without a size, and a second group of the same size, becomes a child of its own, since a metric has one
    value at a step.
    """
    found: dict[str, list[JsonObject]] = {}
    group_at: dict[tuple[str, int], str] = {}
    for row in rows:
        facts = row["extra_info"]
        mode = " ".join(str(facts[name]) for name in ("dtype", "direction") if name in facts)
        name = f"{facts['subject']} {mode}".rstrip()
        alone = "input_bytes" not in facts or group_at.setdefault((name, step(row)), row["group"]) != row["group"]
        found.setdefault(row["group"] if alone else name, []).append(row)
    return found


def metric_values(row: JsonObject, session: JsonObject, now: int) -> Iterator[MetricValue]:
    """Yield the metrics of one provider at one size."""
    facts, seconds = row["extra_info"], row["stats"]["median"]
    values = {"seconds": seconds, "bytes_kept": facts.get("saved_bytes"), "bytes_peak": facts.get("peak_bytes")}
    if facts["provider"] != facts["baseline"]:
        ratio = facts["ratio"]
        ends = {"speed": "median", "speed_low": "high", "speed_high": "low"}
        values |= {name: 1 / ratio[end] for name, end in ends.items() if ratio[end]}
    if facts.get("op") == "reparam_kl":  # the pairwise operations are limited by arithmetic, not by memory
        values["copy_share"] = facts["model_bytes"] / seconds / session["machine_info"]["copy_bytes_per_s"]
    provider = re.sub(r"[^\w.:-]+", " ", facts["provider"])
    for name, value in values.items():
        if value is not None:
            yield f"{name}/{provider}", float(value), now, step(row)


def step(row: JsonObject) -> int:
    """Return the size of the problem: bytes of the inputs, or 0 where there is one size only."""
    return int(row["extra_info"].get("input_bytes", 0))


def artifacts(path: Path) -> list[str]:
    """Return the session's file, and the page, pictures and profile that lie beside it under its name."""
    beside = [path.with_name(path.stem + end) for end in REPORT_ENDS]
    profile = sorted(path.with_name(f"{path.stem}-profile").glob("*"))
    return [str(file) for file in (path, *beside, *profile) if file.is_file()]
