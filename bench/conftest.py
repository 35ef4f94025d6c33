"""Benchmarks run when asked for; the table of pytest-benchmark shows samples that were taken in turns."""

import os
from collections.abc import Mapping, Sequence

import pytest
import torch

from bench import harness
from bench.harness import Comparison, Work

HERE = os.path.dirname(__file__)
VERDICTS: list[str] = []


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


def pytest_configure(config):
    if config.getoption("benchmark_only", False) and not harness.allocator_is_pinned():
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        print("benchmarks: starting again with the allocator pinned")
        harness.restart_with_pinned_allocator()


def pytest_collection_modifyitems(config, items):
    """Leave out benchmarks of a bare `pytest`, and everything else of `pytest --benchmark-only`."""
    only = config.getoption("benchmark_only", False)
    bare = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if only or bare:
        kept = [item for item in items if str(item.path).startswith(HERE) == only]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK.time))


def pytest_report_header():
    pinned = "pinned" if harness.allocator_is_pinned() else "not pinned"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, allocator {pinned}"


def pytest_terminal_summary(terminalreporter):
    for line in VERDICTS:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def comparisons():
    """Comparisons already made, by group."""
    return {}


@pytest.fixture
def interleaved(request, benchmark, comparisons):
    """Return `interleaved(group, provider, providers, rounds=...)`, which gives the benchmark its provider's samples.

    The first provider of a group to be asked for times all of them in turns; the others find their samples there. The
    benchmark replays them on the suite's clock. With benchmarks disabled each provider runs once.
    """

    def run(group: str, provider: str, providers: Mapping[str, Work], *, rounds: int = 25) -> None:
        if request.config.getoption("benchmark_disable", False):
            benchmark.pedantic(providers[provider])
            return
        if group not in comparisons:
            comparisons[group] = harness.compare(providers, rounds=rounds)
            VERDICTS.append(_verdict(group, comparisons[group]))
        baseline = next(iter(providers))
        benchmark.group = group
        benchmark.extra_info["ratio"] = vars(comparisons[group].ratio(provider, baseline)) | {"over": baseline}
        benchmark.extra_info["noise_floor"] = vars(comparisons[group].floor())
        CLOCK.load(comparisons[group].samples[provider])
        benchmark.pedantic(CLOCK.call, rounds=rounds)

    return run


def _verdict(group: str, comparison: Comparison) -> str:
    baseline, *others, _ = comparison.samples
    speeds = ", ".join(f"{name} {comparison.ratio(baseline, name)}" for name in others)
    return f"{group}: times the speed of {baseline}: {speeds}; noise floor {comparison.floor()}"
