"""Read the sessions that pytest-benchmark saved, and pair the samples of each group again."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from vaebench.bench.session.group import Group, group_by_subject
from vaebench.bench.timing.ratios import Comparison, Ratio

REQUIRE_MACHINE = itemgetter(  # raises KeyError
    *("device", "machine", "cores", "threads", "load", "python_version", "torch", "triton", "allocator_pinned")
)
BASELINE = "baseline_samples"  # in another provider's row, where -k left out the row of the baseline
COUNTS = ("input_bytes", "model_bytes", "model_flops", "saved_bytes", "peak_bytes")
OF_PROVIDER = ("provider", "ratio", "saved_bytes", "peak_bytes", BASELINE)

JsonObject = Mapping[str, Any]


class UnreadableError(ValueError):
    """A file is not a session of this suite; the message is one sentence for the user."""


@dataclass(frozen=True)
class Session:
    """One run of the benchmarks on one machine."""

    path: Path
    machine: JsonObject
    commit: JsonObject
    date: str
    groups: Mapping[str, Group]

    @property
    def version(self) -> str:
        """Return the commit, marked where files differed from it."""
        return str(self.commit["id"])[:12] + ("-dirty" if self.commit.get("dirty") else "")

    @property
    def subjects(self) -> dict[str, list[Group]]:
        """Return the groups of each subject."""
        return group_by_subject(self.groups.values())


def load(path: Path) -> Session:
    """Read a file written with --benchmark-json; refuse one that lacks what the report or the tracker needs."""
    try:
        return _read_session(path, json.loads(path.read_text()))
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}.") from error
    except UnreadableError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        lacking = f" (it has no {error})" if isinstance(error, KeyError) else ""
        raise UnreadableError(
            f"{path} is no session of this suite{lacking}; write one with "
            f"pytest --benchmark-only --benchmark-json={path.stem}.json."
        ) from error


def _read_session(path: Path, saved: JsonObject) -> Session:
    rows: dict[str, list[JsonObject]] = {}
    for row in saved["benchmarks"]:
        rows.setdefault(row["group"], []).append(row)
    if not rows:
        raise UnreadableError(f"{path} has no benchmarks; run some that are neither skipped nor fail.")
    groups = {name: _read_group(path, name, members) for name, members in rows.items()}
    machine, commit = saved["machine_info"], saved["commit_info"]
    REQUIRE_MACHINE(machine)
    Ratio.from_json(machine["floor_ratio"])
    is_named = isinstance(commit["id"], str) and isinstance(machine.get("cpu", {}), dict)
    copies = _is_positive(machine["copy_bytes_per_s"]) and _is_positive(machine["floor_seconds"])
    _require(is_named, path, "its commit has no name, or its processor is no record")
    _require(machine["load"] >= 0 and machine["cores"] > 0, path, "its machine has no load, or no cores")
    _require(copies, path, "its machine copies nothing, or in no time")
    return Session(path, machine, commit, datetime.fromisoformat(saved["datetime"]).isoformat()[:16], groups)


def _read_group(path: Path, name: str, rows: Sequence[JsonObject]) -> Group:
    infos = {row["extra_info"]["provider"]: row["extra_info"] for row in rows}
    samples = {row["extra_info"]["provider"]: row["stats"]["data"] for row in rows}
    first = rows[0]["extra_info"]
    baseline = first["baseline"]
    if baseline not in infos:
        copies = [info[BASELINE] for info in infos.values() if BASELINE in info]
        if not copies:
            raise UnreadableError(f"{path} has no samples of {baseline}: run {name} again with {baseline} among them.")
        samples[baseline] = copies[0]
        infos = {baseline: {key: value for key, value in first.items() if key not in OF_PROVIDER}} | infos
    samples = {baseline: samples.pop(baseline)} | samples
    medians = [median for row in rows for median in (row["stats"]["median"], row["extra_info"]["ratio"]["median"])]
    timed = samples[baseline] and all(map(_is_positive, [*itertools.chain(*samples.values()), *medians]))
    paired = len({len(taken) for taken in samples.values()}) == 1
    counts = [info.get(count) for info in infos.values() for count in COUNTS]
    counted = all(count is None or 0 <= count < math.inf for count in counts)
    _require(timed, path, f"{name} has samples that are no times above 0")
    _require(paired, path, f"{name} has more samples of one provider than of another")
    _require(counted, path, f"{name} has bytes or flops that are no numbers")
    comparison = Comparison(samples, Ratio.from_json(infos[baseline]["noise_floor"]))
    return Group(name, infos[baseline]["subject"], comparison, infos)


def _require(condition: bool, path: Path, otherwise: str) -> None:
    if not condition:
        raise UnreadableError(f"{path} cannot be used: {otherwise}.")


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf
