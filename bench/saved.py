"""Sessions as pytest-benchmark saved them, with the samples of each group in pairs again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ratios import AGAIN, Comparison, Ratio, median

Facts = Mapping[str, Any]


class UnreadableError(ValueError):
    """A file is not a session of this suite; the message is one sentence for its user."""


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
    def providers(self) -> list[str]:
        """Return who was timed, the baseline first."""
        return [name for name in self.compared.samples if name != AGAIN]


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
    """Read a file written with --benchmark-json."""
    try:
        saved = json.loads(path.read_text())
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in saved["benchmarks"]:
            rows.setdefault(row["group"], []).append(row)
        groups = {name: _group(name, members) for name, members in rows.items()}
        return Session(path, saved["machine_info"], saved["commit_info"], saved["datetime"][:16], groups)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise UnreadableError(
            f"{path} is no session of this suite; write one with pytest --benchmark-only --benchmark-json={path.name}."
        ) from error


def _group(name: str, rows: list[dict[str, Any]]) -> SavedGroup:
    facts = {row["extra_info"]["provider"]: row["extra_info"] for row in rows}
    samples = {row["extra_info"]["provider"]: row["stats"]["data"] for row in rows}
    baseline = next(iter(facts.values()))["baseline"]
    ordered = {baseline: samples.pop(baseline)} | samples | {AGAIN: facts[baseline]["again"]}
    return SavedGroup(name, facts[baseline]["subject"], Comparison(ordered), facts)
