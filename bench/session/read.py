"""Sessions as pytest-benchmark saved them, with the samples of each group in pairs again."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from vaebench.bench.timing.ratios import Comparison, Ratio, median

USED_OF_MACHINE = itemgetter(
    *("device", "machine", "cores", "threads", "load", "python_version", "torch", "triton", "allocator_pinned")
)
USED_OF_COMMIT = itemgetter("id")
BASELINE = "baseline_samples"  # of the baseline, in a row beside which the baseline's own was left out by -k
COUNTS = ("input_bytes", "model_bytes", "model_flops", "saved_bytes", "peak_bytes")
OF_PROVIDER = ("provider", "ratio", "saved_bytes", "peak_bytes", BASELINE)

Facts = Mapping[str, Any]


class UnreadableError(ValueError):
    """A file is not a session of this suite; the message is one sentence for its user."""


@dataclass(frozen=True)
class SavedComparison(Comparison):
    """Samples of a file, where the noise floor of the group stands beside those of every provider."""

    noted: Ratio

    def floor(self) -> Ratio:
        """Return the ratio of the baseline to itself, as it was saved."""
        return self.noted


@dataclass(frozen=True)
class SavedGroup:
    """Providers compared on the same work.

    Attributes:
        subject: what they compute; a subject has a group for each size.
        facts: what was noted of each provider.
    """

    name: str
    subject: str
    compared: Comparison
    facts: Mapping[str, Facts]

    @property
    def baseline(self) -> str:
        """Return who the others are held against."""
        return self.compared.baseline

    def seconds(self, provider: str) -> Ratio:
        """Return the median seconds a call, with its interval."""
        return median(self.compared.samples[provider])

    def speed(self, provider: str) -> Ratio:
        """Return how many times as fast as the baseline a provider is."""
        return self.compared.ratio(self.baseline, provider)

    @property
    def moves_bytes(self) -> bool:
        """Return whether it is memory that the work waits for: the pairwise operations compute."""
        return self.facts[self.baseline].get("op") == "reparam_kl"

    @property
    def providers(self) -> list[str]:
        """Return who was timed, the baseline first."""
        return list(self.compared.samples)


@dataclass(frozen=True)
class Session:
    """One run of the benchmarks on one machine."""

    path: Path
    machine: Facts
    commit: Facts
    date: str
    groups: Mapping[str, SavedGroup]

    @property
    def version(self) -> str:
        """Return the commit, marked where files differed from it."""
        return str(self.commit["id"])[:12] + ("-dirty" if self.commit.get("dirty") else "")

    @property
    def subjects(self) -> dict[str, list[SavedGroup]]:
        """Return the groups of each subject."""
        found: dict[str, list[SavedGroup]] = {}
        for group in self.groups.values():
            found.setdefault(group.subject, []).append(group)
        return found


def load(path: Path) -> Session:
    """Read a file written with --benchmark-json, and refuse one that lacks what a page or a tracker uses of it."""
    try:
        return _session(path, json.loads(path.read_text()))
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


def _session(path: Path, saved: Mapping[str, Any]) -> Session:
    rows: dict[str, list[Facts]] = {}
    for row in saved["benchmarks"]:
        rows.setdefault(row["group"], []).append(row)
    if not rows:
        raise UnreadableError(f"{path} has no benchmarks; run some that are neither skipped nor fail.")
    groups = {name: _group(path, name, members) for name, members in rows.items()}
    machine, commit = saved["machine_info"], saved["commit_info"]
    USED_OF_MACHINE(machine), USED_OF_COMMIT(commit), Ratio.of(machine["floor_ratio"])
    if not (isinstance(commit["id"], str) and isinstance(machine.get("cpu", {}), dict)):
        raise UnreadableError(f"{path} cannot be used: its commit has no name, or its processor is no record.")
    if not (machine["load"] >= 0 and machine["cores"] > 0):
        raise UnreadableError(f"{path} cannot be used: its machine has no load, or no cores.")
    if not (_is_positive(machine["copy_bytes_per_s"]) and _is_positive(machine["floor_seconds"])):
        raise UnreadableError(f"{path} cannot be used: its machine copies nothing, or in no time.")
    return Session(path, machine, commit, datetime.fromisoformat(saved["datetime"]).isoformat()[:16], groups)


def _group(path: Path, name: str, rows: Sequence[Facts]) -> SavedGroup:
    facts = {row["extra_info"]["provider"]: row["extra_info"] for row in rows}
    samples = {row["extra_info"]["provider"]: row["stats"]["data"] for row in rows}
    some = rows[0]["extra_info"]
    baseline = some["baseline"]
    ratios = [facts[provider]["ratio"]["median"] for provider in facts]
    if baseline not in facts:
        taken = [facts[provider][BASELINE] for provider in facts if BASELINE in facts[provider]]
        if not taken:
            raise UnreadableError(f"{path} has no samples of {baseline}: run {name} again with {baseline} among them.")
        samples[baseline] = taken[0]
        facts = {baseline: {fact: value for fact, value in some.items() if fact not in OF_PROVIDER}} | facts
    ordered = {baseline: samples.pop(baseline)} | samples
    times = [*itertools.chain(*ordered.values()), *(row["stats"]["median"] for row in rows)]
    if not ordered[baseline] or not all(map(_is_positive, [*times, *ratios])):
        raise UnreadableError(f"{path} cannot be used: {name} has samples that are no times above 0.")
    if len({len(taken) for taken in ordered.values()}) > 1:
        raise UnreadableError(f"{path} cannot be used: {name} has more samples of one provider than of another.")
    counts = [facts[provider].get(count) for provider in facts for count in COUNTS]
    if not all(count is None or 0 <= count < math.inf for count in counts):
        raise UnreadableError(f"{path} cannot be used: {name} has bytes or flops that are no numbers.")
    floor = Ratio.of(facts[baseline]["noise_floor"])
    return SavedGroup(name, facts[baseline]["subject"], SavedComparison(ordered, floor), facts)


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf
