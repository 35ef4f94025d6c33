"""A session ends with its table, its verdicts and its failures, whatever happens in it."""

import errno
import json
from functools import partial
from statistics import median

import pytest
from pytest_benchmark.session import BenchmarkSession

from tests import ROOT
from vaebench.bench import conftest
from vaebench.bench.timing import harness, machine

pytest_plugins = "pytester"

MEASURED = {
    "copy_bytes_per_s": 5e9,
    "floor_seconds": 4e-8,
    "floor_ratio": {"median": 1.0, "low": 0.9, "high": 1.1},
}
BENCH = """
import pytest
from pytest_benchmark.session import BenchmarkSession
from vaebench.bench.timing.harness import Workload

def require(result):
    assert result is None, "the result is wrong"

def bad():
    return 1

def stop():
    raise KeyboardInterrupt

WORK = {"base": lambda: None, "other": lambda: None, "bad": bad}

@pytest.mark.parametrize("provider", WORK)
def bench_tiny(time_interleaved, provider):
    time_interleaved("tiny", provider, lambda: Workload(WORK, require, rounds=9))

@pytest.mark.parametrize("provider", ["base"])
def bench_stopped(time_interleaved, provider):
    time_interleaved("stopped", provider, lambda: Workload({"base": stop}, require, rounds=9))

def bench_skipped(time_interleaved):
    pytest.skip("not here")
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """Return a function that runs benchmarks of no work with the suite's own conftest and configuration."""
    for name, value in harness.PINNED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(conftest, "HERE", str(pytester.path))
    monkeypatch.setattr(machine, "measure", lambda: MEASURED)
    monkeypatch.setattr("pytest_benchmark.plugin.get_cpu_info", dict)  # a second each time
    pytester.makepyprojecttoml((ROOT / "pyproject.toml").read_text())
    pytester.makeconftest("from vaebench.bench.conftest import *")
    pytester.makepyfile(bench_work=BENCH)
    return partial(pytester.runpytest_inprocess, "bench_work.py", "--benchmark-only", no_reraise_ctrlc=True)


def test_a_session_is_compared_with_a_saved_one(session, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("kept")
    for load, option in ((0.1, "--benchmark-save=one"), (0.2, "--benchmark-compare")):
        monkeypatch.setattr(machine, "load", lambda load=load: load)
        result = session("-k", "tiny and not bad", f"--benchmark-storage={elsewhere}", option)
        assert result.ret == 0
    result.stdout.fnmatch_lines(["*tiny*(0001_one)*", "tiny, speed over base: *"])
    result.assert_outcomes(passed=2, deselected=3)


def test_what_differs_between_the_machines_of_two_sessions_is_named(session, pytester):
    session("-k", "tiny and not bad", "--benchmark-save=one")
    (saved,) = pytester.path.glob(".benchmarks/*/*.json")
    changed = json.loads(saved.read_text())
    changed["machine_info"] |= {"torch": "1.0", "cores": 999}
    saved.write_text(json.dumps(changed))
    result = session("-k", "tiny and not bad", "--benchmark-compare")
    assert result.ret == 0
    result.stderr.fnmatch_lines(["*cores was 999, is *; torch was 1.0, is *"])


def test_a_wrong_result_fails_its_own_benchmark_alone_and_once(session):
    result = session("-k", "tiny", "--benchmark-json=session.json")
    result.assert_outcomes(passed=2, failed=1, deselected=2)
    result.stdout.fnmatch_lines(["*the result is wrong*", "*Name (time in*", "tiny, speed over base: *"])
    result.stdout.no_fnmatch_line("*not used at all*")


def test_an_interrupt_keeps_what_was_timed(session, pytester):
    result = session("-k", "tiny and not bad or stopped", "--benchmark-json=session.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*Name (time in*", "tiny, speed over base: *", "*KeyboardInterrupt*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.no_fnmatch_line("*not used at all*")
    assert len(json.loads((pytester.path / "session.json").read_text())["benchmarks"]) == 2


def test_a_session_without_a_figure_says_why_and_that_nothing_is_saved(session, pytester):
    result = session("-k", "bad or skipped", "--benchmark-json=session.json")
    result.assert_outcomes(failed=1, skipped=1, deselected=3)
    result.stdout.fnmatch_lines(
        ["*the result is wrong*", "nothing is saved: no benchmark was timed", "FAILED *bench_tiny*"]
    )
    assert not (pytester.path / "session.json").exists()


def test_a_session_without_the_baseline_keeps_what_the_others_are_held_against(session, pytester):
    session("-k", "tiny and not base", "--benchmark-json=session.json")
    (row,) = json.loads((pytester.path / "session.json").read_text())["benchmarks"]
    facts, others = row["extra_info"], row["stats"]["data"]
    assert facts["provider"] == "other"
    assert len(facts["baseline_samples"]) == len(facts["again"]) == len(others) == 9
    pairs = zip(others, facts["baseline_samples"], strict=True)
    assert median([other / base for other, base in pairs]) == pytest.approx(facts["ratio"]["median"])


def test_the_baseline_keeps_its_samples_in_its_own_row(session, pytester):
    session("-k", "tiny and not bad", "--benchmark-json=session.json")
    base, other = json.loads((pytester.path / "session.json").read_text())["benchmarks"]
    assert "again" in base["extra_info"]
    assert not {"again", "baseline_samples"} & other["extra_info"].keys()
    assert "baseline_samples" not in base["extra_info"]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(session, pytester):
    for name, why in (("no/folder.json", "No such file or directory"), (".", "Is a directory")):
        result = session("-k", "tiny", f"--benchmark-json={name}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: --benchmark-json needs a file that can be written, got {name}: {why}."])
        assert "bench_work.py" not in result.stdout.str()
    assert session("-k", "tiny", "--collect-only", "--benchmark-json=new.json").ret == 0
    assert not (pytester.path / "new.json").exists()


def test_a_session_that_cannot_be_saved_ends_with_its_verdicts(session, monkeypatch):
    def full(self, output_json):
        raise OSError(errno.ENOSPC, "No space left on device", "session.json")

    monkeypatch.setattr(BenchmarkSession, "save_json", full)
    result = session("-k", "tiny and not bad", "--benchmark-json=session.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["tiny, speed over base: *", "the session could not be saved: *No space left*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_regression_leaves_the_verdicts(session, pytester):
    session("-k", "tiny and not bad", "--benchmark-save=one")
    (saved,) = pytester.path.glob(".benchmarks/*/*.json")
    faster = json.loads(saved.read_text())
    for row in faster["benchmarks"]:
        row["stats"]["median"] /= 100
    saved.write_text(json.dumps(faster))
    result = session("-k", "tiny and not bad", "--benchmark-compare", "--benchmark-compare-fail=median:50%")
    result.stdout.fnmatch_lines(["tiny, speed over base: *"])
    result.stderr.fnmatch_lines(["*Performance has regressed*"])


def test_without_pytest_benchmark_one_sentence_says_what_is_missing(session, pytester):
    result = pytester.runpytest_inprocess("bench_work.py", "-p", "no:benchmark")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: benchmarks need pytest-benchmark: *"])


RENEWED = """
import pytest
from vaebench.bench.timing.harness import Workload

NUMBER, STORED = [3], []

def right():
    return 2 * NUMBER[0]

def stores():
    STORED.append(right())
    return STORED[0]

def require(result):
    assert result == right(), f"{result} is not {right()}"

def renew(provider):
    NUMBER[0] += 1
    return require

@pytest.mark.parametrize("provider", ["base", "stores", "good"])
def bench_good(time_interleaved, provider):
    work = {"base": right, "stores": stores, "good": right}
    time_interleaved("good", provider, lambda: Workload(work, require, rounds=9, renew=renew))

@pytest.mark.parametrize("provider", ["stores", "good"])
def bench_base(time_interleaved, provider):
    STORED.clear()
    work = {"stores": stores, "good": right}
    time_interleaved("base", provider, lambda: Workload(work, require, rounds=9, renew=renew))
"""


def test_a_result_that_is_wrong_after_the_timing_has_no_figure(session, pytester):
    pytester.makepyfile(bench_work=RENEWED)
    result = session("-k", "bench_good", "--benchmark-json=session.json")
    result.assert_outcomes(passed=2, failed=1, deselected=2)
    result.stdout.fnmatch_lines(["after it was timed: AssertionError: 6 is not 10*", "good, speed over base: good *"])
    result.stdout.no_fnmatch_line("good, speed over base: *stores*")
    saved = json.loads((pytester.path / "session.json").read_text())["benchmarks"]
    assert [row["extra_info"]["provider"] for row in saved] == ["base", "good"]


def test_a_baseline_that_is_wrong_after_the_timing_leaves_no_figure_of_its_group(session, pytester):
    pytester.makepyfile(bench_work=RENEWED)
    result = session("-k", "bench_base", "--benchmark-json=session.json")
    result.assert_outcomes(failed=2, deselected=3)
    result.stdout.fnmatch_lines(["stores after it was timed: AssertionError: *", "nothing is saved: *"])
    result.stdout.no_fnmatch_line("*speed over*")
    assert not (pytester.path / "session.json").exists()
