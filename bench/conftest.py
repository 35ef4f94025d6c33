"""Hooks and fixtures of the benchmarks: choose them, time their providers in turns, pass the samples to the table."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vaebench.bench.session import compare, summary
from vaebench.bench.session.group import Group
from vaebench.bench.timing import harness, machine
from vaebench.bench.timing.harness import ROUNDS, TimeInterleaved, Workload
from vaebench.bench.timing.ratios import AGAIN, Comparison

if TYPE_CHECKING:  # it may be missing: pytest_collection_modifyitems says so
    from pytest_benchmark.fixture import BenchmarkFixture
    from pytest_benchmark.session import BenchmarkSession

HERE = os.path.dirname(__file__)
COLUMNS = ["median", "iqr", "rounds"]


class SampleClock:
    """A clock that advances only in `call`, by the next sample: pytest-benchmark measures the samples with it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples: Iterator[float] = iter(())

    def load(self, samples: Sequence[float]) -> None:
        self.samples = iter(samples)

    def time(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += next(self.samples)


CLOCK = SampleClock()
GROUPS = pytest.StashKey[dict[str, Group]]()
SAVE_ERROR = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmarks: every size, dtype and direction")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GROUPS] = {}
    machine.load()
    if config.getoption("benchmark_json", None) and not hasattr(config, "workerinput"):
        _require_writable_json(config)
    if hasattr(config.option, "benchmark_columns") and not _is_given(config, "--benchmark-columns"):
        config.option.benchmark_columns = COLUMNS
    if config.getoption("benchmark_only", False) and not harness.allocator_is_pinned():
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        print("benchmarks: starting again with the allocator pinned")
        harness.restart_with_pinned_allocator()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave benchmarks out of a bare `pytest`, tests out of `pytest --benchmark-only`, and sizes not asked for."""
    only = config.getoption("benchmark_only", False)
    bare = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    excluded = _excluded_marks(config)

    def is_kept(item: pytest.Item) -> bool:
        if not _is_benchmark(item):
            return not only
        return (only or not bare) and not excluded & {mark.name for mark in item.iter_markers()}

    kept = {item: is_kept(item) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if not kept[item]])
    items[:] = [item for item in items if kept[item]]
    benchmarks = [item for item in items if _is_benchmark(item)]
    if benchmarks and not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("benchmarks need pytest-benchmark: install it, and do not switch it off.")
    for item in benchmarks:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK.time))


def pytest_report_header() -> str:
    pinned = "pinned" if harness.allocator_is_pinned() else "not pinned"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, allocator {pinned}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)
    machine_info |= machine.describe() | machine.measure() | {"note": os.environ.get("VAEBENCH_NOTE")}


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_compare_machine_info(
    benchmarksession: "BenchmarkSession", machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Log what differs, instead of pytest-benchmark's own warning, which would also be given for load and bandwidth."""
    differences = compare.find_differences(compared_benchmark["machine_info"], machine_info)
    if differences:
        changes = "; ".join(f"{name} was {then}, is {now}" for name, then, now in differences)
        benchmarksession.logger.info(f"The machine is not that of the saved session: {changes}.")
    compared_benchmark["machine_info"] = machine_info  # leaves pytest-benchmark nothing to warn of


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Where the session cannot be saved, record the error and go on: its verdicts are still to be printed."""
    try:
        return (yield)
    except OSError as error:
        if not session.config.stash[GROUPS]:
            raise
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[SAVE_ERROR] = str(error)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    """Write the verdicts under the table, even where the table ends in an error: a regression, or pygal is missing."""
    try:
        return (yield)
    finally:
        _write_verdicts(terminalreporter, config)


def _write_verdicts(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    groups = [group for group in config.stash[GROUPS].values() if group.providers]
    if groups:
        for line in [*summary.summarise(groups), summary.describe_measurements(machine.measure())]:
            terminalreporter.write_line(line)
        for line in summary.list_warnings(machine.describe(), groups):
            terminalreporter.write_line(line, yellow=True)
    if SAVE_ERROR in config.stash:
        terminalreporter.write_line(f"the session could not be saved: {config.stash[SAVE_ERROR]}", red=True)
    elif _is_saved(config) and not any(group.replayed for group in groups):
        terminalreporter.write_line("nothing is saved: no benchmark was timed")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that benchmarks run on."""
    return machine.pick_device()


@pytest.fixture(scope="session")
def workloads() -> dict[str, Workload]:
    """The workload of the current group, prepared once for all its benchmarks."""
    return {}


@pytest.fixture
def time_interleaved(
    request: pytest.FixtureRequest,
    benchmark: "BenchmarkFixture",
    workloads: dict[str, Workload],
    device: torch.device,
) -> TimeInterleaved:
    """Return a function that times a group's providers in turns, and gives the benchmark the samples of its own.

        time_interleaved(group, provider, prepare)

    `prepare` makes the workload of the group. The first benchmark of a group checks the result of each provider, times
    all of them in turns, and checks the results again, from other inputs. Every benchmark of the group then replays its
    provider's samples on the suite's clock. A provider whose result is wrong, or that raises, has no figure, and its
    benchmark fails. With benchmarks disabled, each provider runs once and is checked.
    """

    def run(group: str, provider: str, prepare: Callable[[], Workload]) -> None:
        if group not in workloads:
            workloads.clear()
            workloads[group] = prepare()
        workload = workloads[group]
        if benchmark.disabled:
            workload.check(benchmark.pedantic(workload.providers[provider]))
            return
        groups = request.config.stash[GROUPS]
        if group not in groups:
            subject = request.node.originalname.removeprefix("bench_")
            groups[group] = _time(workload, group, subject, workload.rounds or ROUNDS[device.type])
        _replay(benchmark, groups[group], provider)

    return run


def _time(workload: Workload, group: str, subject: str, rounds: int) -> Group:
    """Check the providers, time those that are right, and check these again; if the baseline fails then, all fail."""
    calls, errors = workload.check_providers()
    extra_info = {name: workload.extra_info(name, call) for name, call in calls.items()}
    comparison = harness.compare(calls, timer=workload.timer, rounds=rounds)
    late = workload.check_again(calls)
    if comparison.baseline in late:
        late = dict.fromkeys(calls, f"{comparison.baseline} {late[comparison.baseline]}")
    samples = {name: taken for name, taken in comparison.samples.items() if name not in late}
    return Group(group, subject, Comparison(samples), extra_info, errors | late)


def _replay(benchmark: "BenchmarkFixture", group: Group, provider: str) -> None:
    """Give a provider's samples to pytest-benchmark, and what else the report needs as `extra_info`."""
    if provider in group.errors:
        pytest.fail(group.errors[provider], pytrace=False)
    samples = group.comparison.samples[provider]
    benchmark.group = group.name
    benchmark.extra_info |= {
        "subject": group.subject,
        "provider": provider,
        "baseline": group.baseline,
        "ratio": group.comparison.ratio(provider, group.baseline).to_json(),
        "noise_floor": group.comparison.noise_floor.to_json(),
        **_baseline_samples(group, provider),
        **group.extra_info[provider],
    }
    CLOCK.load(samples)
    benchmark.pedantic(CLOCK.call, rounds=len(samples))
    group.replayed.append(provider)


def _baseline_samples(group: Group, provider: str) -> Mapping[str, Sequence[float]]:
    """Return the baseline's samples to be saved in a provider's row.

    The baseline's own row gets the samples of its second turns. `-k` may leave that row out. The first row of another
    provider therefore gets the samples of both turns, unless a row of the group was saved before it.
    """
    samples = group.comparison.samples
    if provider == group.baseline:
        return {"again": samples[AGAIN]}
    return {} if group.replayed else {"again": samples[AGAIN], "baseline_samples": samples[group.baseline]}


def _require_writable_json(config: pytest.Config) -> None:
    """Refuse the file of --benchmark-json before anything is timed, if it cannot be written."""
    path = config.option.benchmark_json
    is_new = not os.path.lexists(path)
    try:
        path.open("ab").close()
    except OSError as error:
        raise pytest.UsageError(
            f"--benchmark-json needs a file that can be written, got {path}: {error.strerror}."
        ) from error
    if is_new:
        path.unlink(missing_ok=True)


def _is_saved(config: pytest.Config) -> bool:
    options = (f"benchmark_{name}" for name in ("json", "save", "autosave"))
    return any(config.getoption(option, None) for option in options) and not _is_disabled(config)


def _excluded_marks(config: pytest.Config) -> set[str]:
    if config.getoption("--full"):
        return set()
    return {"session", "full"} if _is_disabled(config) else {"full"}


def _is_disabled(config: pytest.Config) -> bool:
    """Return whether benchmarks run once, as a smoke test: on request, or since pytest-xdist runs several at once."""
    asked = config.getoption("benchmark_disable", False) or config.getoption("numprocesses", None)
    return bool(asked or hasattr(config, "workerinput")) and not config.getoption("benchmark_enable", False)


def _is_benchmark(item: pytest.Item) -> bool:
    return str(item.path).startswith(HERE)


def _is_given(config: pytest.Config, option: str) -> bool:
    return any(str(argument).startswith(option) for argument in config.invocation_params.args)
