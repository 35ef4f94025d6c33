"""Benchmarks run when asked for; the table of pytest-benchmark shows samples that were taken in turns."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebench.bench.session import compare, verdicts
from vaebench.bench.session.verdicts import Group
from vaebench.bench.timing import harness, machine
from vaebench.bench.timing.harness import ROUNDS, SECONDS, Contest, Work, told
from vaebench.bench.timing.ratios import AGAIN

HERE = os.path.dirname(__file__)
COLUMNS = ["median", "iqr", "rounds"]


class Replay:
    """A clock that stands still but for `call`, which moves it by the next sample."""

    def __init__(self):
        self.now, self.samples = 0.0, iter(())

    def load(self, samples: Sequence[float]) -> None:
        self.samples = iter(samples)

    def time(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += next(self.samples)


CLOCK = Replay()
GROUPS = pytest.StashKey[dict[str, Group]]()
UNSAVED = pytest.StashKey[str]()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="benchmarks: every size, dtype and direction")


def pytest_configure(config):
    config.stash[GROUPS] = {}
    machine.load()
    if config.getoption("benchmark_json", None) and not hasattr(config, "workerinput"):
        _require_writable(config.option.benchmark_json)
    if hasattr(config.option, "benchmark_columns") and not _asked_for(config, "--benchmark-columns"):
        config.option.benchmark_columns = COLUMNS
    if config.getoption("benchmark_only", False) and not harness.allocator_is_pinned():
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        print("benchmarks: starting again with the allocator pinned")
        harness.restart_with_pinned_allocator()


def pytest_collection_modifyitems(config, items):
    """Leave out benchmarks of a bare `pytest`, all else of `pytest --benchmark-only`, and sizes not asked for."""
    only = config.getoption("benchmark_only", False)
    bare = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    kept = [item for item in items if _is_benchmark(item) == only] if only or bare else list(items)
    left_out = _scales_left_out(config)
    kept = [
        item for item in kept if not (_is_benchmark(item) and left_out & {mark.name for mark in item.iter_markers()})
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
    if any(map(_is_benchmark, items)) and not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("benchmarks need pytest-benchmark: install it, and do not switch it off.")
    for item in filter(_is_benchmark, items):
        item.add_marker(pytest.mark.benchmark(timer=CLOCK.time))


def pytest_report_header():
    pinned = "pinned" if harness.allocator_is_pinned() else "not pinned"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, allocator {pinned}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)
    machine_info |= machine.describe() | machine.measured() | {"note": os.environ.get("VAEBENCH_NOTE")}


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_compare_machine_info(benchmarksession, machine_info, compared_benchmark):
    """Say what differs, in place of pytest-benchmark, whose warning also minds load and bandwidth: nothing is left."""
    found = compare.differences(compared_benchmark["machine_info"], machine_info)
    if found:
        told = "; ".join(f"{name} was {then}, is {now}" for name, then, now in found)
        benchmarksession.logger.info(f"The machine is not that of the saved session: {told}.")
    compared_benchmark["machine_info"] = machine_info


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session):
    """Let a session that could not be saved end with its verdicts: they are all that is left of it."""
    try:
        return (yield)
    except OSError as error:
        if not session.config.stash[GROUPS]:
            raise
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[UNSAVED] = str(error)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    """Write the verdicts under the table, and also where the table ends in an error: a regression, or no pygal."""
    try:
        return (yield)
    finally:
        _close(terminalreporter, config)


def _close(terminalreporter: Any, config: pytest.Config) -> None:
    groups = config.stash[GROUPS]
    if groups:
        for line in [*verdicts.lines(groups.values()), verdicts.floor(machine.measured())]:
            terminalreporter.write_line(line)
        for line in verdicts.doubts(machine.describe(), [group.compared for group in groups.values()]):
            terminalreporter.write_line(line, yellow=True)
    if UNSAVED in config.stash:
        terminalreporter.write_line(f"the session could not be saved: {config.stash[UNSAVED]}", red=True)
    elif _saves(config) and not any(group.replayed for group in groups.values()):
        terminalreporter.write_line("nothing is saved: no benchmark was timed")


@pytest.fixture(scope="session")
def device():
    """Where benchmarks run."""
    return machine.device()


@pytest.fixture(scope="session")
def timer(device):
    """The clock for that device."""
    return harness.clock(device)


@pytest.fixture(scope="session")
def contests():
    """The contest of the group at hand, prepared once for all its benchmarks."""
    return {}


@pytest.fixture
def interleaved(request, benchmark, contests, device):
    """Return a function that gives the benchmark its provider's samples.

        interleaved(group, provider, prepare, timer=..., rounds=..., seconds=...)

    `prepare` makes the contest of the group. The first benchmark of a group to run checks what each provider returns
    and times all of them in turns; the others find their samples there, and each replays them on the suite's clock. A
    provider whose result is wrong, or that raises, is not timed, and its benchmark fails. With benchmarks disabled each
    provider runs once and is checked.
    """

    def run(
        group: str,
        provider: str,
        prepare: Callable[[], Contest],
        *,
        timer: harness.Timer | None = None,
        rounds: int | None = None,
        seconds: float = SECONDS,
    ) -> None:
        if group not in contests:
            contests.clear()
            contests[group] = prepare()
        if benchmark.disabled:
            contests[group].check(benchmark.pedantic(contests[group].providers[provider]))
            return
        groups = request.config.stash[GROUPS]
        if group not in groups:
            budget = {"timer": timer, "rounds": rounds or ROUNDS[device.type], "seconds": seconds}
            groups[group] = _held(request.node.originalname.removeprefix("bench_"), contests[group], budget)
        _replay(benchmark, groups[group], group, provider)

    return run


def _held(subject: str, contest: Contest, budget: Mapping[str, Any]) -> Group:
    """Check what each provider returns, and time those that are right."""
    right, wrong = _sorted_out(contest)
    facts = {name: contest.facts(name, work) for name, work in right.items()}
    return Group(subject, harness.compare(right, **budget), facts, wrong)


def _replay(benchmark: Any, group: Group, name: str, provider: str) -> None:
    """Hand a provider's samples to pytest-benchmark, with what the report needs beside them."""
    if provider in group.wrong:
        pytest.fail(group.wrong[provider], pytrace=False)
    compared = group.compared
    ratio = compared.ratio(provider, compared.baseline)
    benchmark.group = name
    benchmark.extra_info |= {
        "subject": group.subject,
        "provider": provider,
        "baseline": compared.baseline,
        "ratio": ratio.plain,
        "noise_floor": compared.floor().plain,
        **_of_the_baseline(group, provider),
        **group.facts[provider],
    }
    CLOCK.load(compared.samples[provider])
    benchmark.pedantic(CLOCK.call, rounds=len(compared.samples[provider]))
    group.replayed.append(provider)


def _of_the_baseline(group: Group, provider: str) -> dict[str, Sequence[float]]:
    """Return the baseline's samples that a row must hold: its second turns, and, before its own row, the first ones.

    The baseline has no row where `-k` leaves it out; without its samples the others could not be held against it.
    """
    samples = group.compared.samples
    second = {"again": samples[AGAIN]}
    if provider == group.compared.baseline:
        return second
    return {} if group.replayed else second | {"baseline_samples": samples[group.compared.baseline]}


def _sorted_out(contest: Contest) -> tuple[dict[str, Work], dict[str, str]]:
    """Return the providers whose result is right, and why the others are refused; the baseline must be right."""
    right, wrong = {}, {}
    for name, work in contest.providers.items():
        try:
            contest.check(work())
            right[name] = work
        except Exception as error:  # whatever it is, it is shown by that provider's own benchmark
            if not right:
                raise
            wrong[name] = told(error)
    return right, wrong


def _require_writable(path: Path) -> None:
    """Refuse, before anything is timed, a file that could not hold it at the end."""
    new = not os.path.lexists(path)
    try:
        path.open("ab").close()
    except OSError as error:
        raise pytest.UsageError(
            f"--benchmark-json needs a file that can be written, got {path}: {error.strerror}."
        ) from error
    if new:
        path.unlink(missing_ok=True)


def _saves(config: pytest.Config) -> bool:
    wanted = any(config.getoption(f"benchmark_{name}", None) for name in ("json", "save", "autosave"))
    return wanted and not _is_disabled(config)


def _scales_left_out(config: pytest.Config) -> set[str]:
    full = config.getoption("--full")
    smoke = _is_disabled(config) and not full
    return set() if full else {"session", "full"} if smoke else {"full"}


def _is_disabled(config: pytest.Config) -> bool:
    """Whether benchmarks run once, as a smoke test: asked for, or because pytest-xdist runs several at a time."""
    asked = config.getoption("benchmark_disable", False) or config.getoption("numprocesses", None)
    return bool(asked or hasattr(config, "workerinput")) and not config.getoption("benchmark_enable", False)


def _is_benchmark(item: pytest.Item) -> bool:
    return str(item.path).startswith(HERE)


def _asked_for(config: pytest.Config, option: str) -> bool:
    return any(str(argument).startswith(option) for argument in config.invocation_params.args)
