"""The harness finds a planted slowdown, does not find one that is not there, and says what it could have found."""

import contextlib
import json
import math
import os
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from tests.stats import assert_coverage
from vaebench import kernels
from vaebench.bench import bench_flows, selfcheck
from vaebench.bench.cases import feeding, kernel_cases, kernel_providers
from vaebench.bench.session import summary
from vaebench.bench.session.group import Group
from vaebench.bench.timing import harness, machine, memory, ratios
from vaebench.bench.timing.harness import Workload, compare
from vaebench.bench.timing.ratios import AGAIN, Comparison, Ratio
from vaebench.vae.flows import LU, linear

ROUNDS = 61
LONG, SHORT = 0.05, 1e-3  # seconds of work that is timed once a turn, and of work whose fastest burst counts
CPU = torch.device("cpu")


class Machine:
    """A clock that needs no time: work is a number, its seconds, on a machine that is noisy, slows down and hiccups."""

    def __init__(self, seed, noise, drift=0.0, hiccups=0.0):
        self.random = np.random.default_rng(seed)
        self.noise, self.drift, self.hiccups, self.calls = noise, drift, hiccups, 0

    def __call__(self, work, repeats):
        self.calls += 1
        hiccup = 3.0 if self.random.random() < self.hiccups else 1.0
        return work * hiccup * math.exp(self.noise * self.random.standard_normal() + self.drift * self.calls)


def sessions(count, machine, slowdown=1.0, seconds=LONG):
    """Return comparisons of a baseline with work that takes `slowdown` times as long."""
    work = {"base": seconds, "other": slowdown * seconds}
    return [compare(work, timer=machine(seed), rounds=ROUNDS, seconds=math.inf) for seed in range(count)]


def group(comparison):
    """Return a group of these samples, as verdicts are made of it."""
    return Group("op 1", "op", comparison, {})


def power(slowdown, noise):
    """Return how often a slowdown is found among lognormal samples, exactly.

    It is found where at most `count_excluded` of the pairs lean the other way, each with probability
    Phi(-log slowdown / (noise sqrt 2)).
    """
    against = stats.norm.cdf(-math.log(slowdown) / (noise * math.sqrt(2)))
    return stats.binom.cdf(ratios.count_excluded(ROUNDS), ROUNDS, against)


@pytest.mark.parametrize("n", [6, 9, 15, 31, 61, 200])
def test_interval_covers_the_median_with_95_percent_and_no_more_than_it_must(n):
    excluded = ratios.count_excluded(n)
    assert 2 * stats.binom.cdf(excluded, n, 0.5) <= 0.05 < 2 * stats.binom.cdf(excluded + 1, n, 0.5)


@pytest.mark.parametrize("condition", [{}, {"drift": 0.02}, {"hiccups": 0.1}], ids=["noise", "drift", "hiccups"])
def test_unchanged_work_is_flagged_in_at_most_one_of_twenty_runs(condition):
    found = [one.noise_floor.verdict == "same" for one in sessions(2500, lambda seed: Machine(seed, 0.05, **condition))]
    coverage = 1 - 2 * stats.binom.cdf(ratios.count_excluded(ROUNDS), ROUNDS, 0.5)
    assert coverage >= 0.95
    assert_coverage(found, coverage, discrepancy=0.05)


@pytest.mark.parametrize("rounds", [1, 3, 5, 6, 9])
def test_unchanged_work_is_flagged_in_at_most_one_of_twenty_runs_of_few_rounds(rounds):
    """Of n < 6 rounds all lean the same way in 2^(1-n) of the runs, which is more often than that: no interval then."""
    random = np.random.default_rng(0)
    runs = [ratios.paired_ratio(*np.exp(0.05 * random.standard_normal((2, rounds)))) for _ in range(2500)]
    if rounds < ratios.MIN_ROUNDS:
        assert 2 ** (1 - rounds) > 0.05
        assert {one.verdict for one in runs} == {"same"}
    else:
        coverage = 1 - 2 * stats.binom.cdf(ratios.count_excluded(rounds), rounds, 0.5)
        assert_coverage([one.verdict == "same" for one in runs], coverage, discrepancy=0.05)


@pytest.mark.parametrize("bounds", [(1, None), (None, 1), (0.0, 1), (2, 1), (0.5, math.inf)])
def test_a_saved_ratio_with_bounds_that_are_none_is_refused(bounds):
    with pytest.raises(ValueError, match="a ratio needs a median and both bounds or none"):
        ratios.Ratio.from_json({"median": 1.0, "low": bounds[0], "high": bounds[1]})
    with pytest.raises(ValueError, match="a ratio needs a median"):
        ratios.Ratio.from_json({"median": None, "low": 0.5, "high": 2.0})


def test_too_few_rounds_are_told_as_such_and_saved_as_json():
    few = compare({"base": 1.0, "other": 2.0}, timer=lambda work, repeats: work, rounds=3)
    ratio = few.ratio("other", "base")
    assert str(ratio) == "2.00 (too few rounds)"
    assert (ratio.low, ratio.high, ratio.detectable) == (0.0, math.inf, math.inf)
    assert json.loads(json.dumps(ratio.to_json(), allow_nan=False)) == {"median": 2.0, "low": None, "high": None}
    assert summary.summarise([group(few)]) == [
        "op, speed over base: other 0.50 (no verdict); sees nothing in fewer than 6 rounds"
    ]
    assert ratios.paired_ratio([1.0] * 6, [1.0] * 6).to_json() == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_ten_percent_is_found_in_nine_of_ten_runs_as_the_binomial_law_says():
    noise = 0.11
    exact = power(1.1, noise)
    assert exact >= 0.9
    found = [one.ratio("other", "base").verdict == "slower" for one in sessions(1500, lambda s: Machine(s, noise), 1.1)]
    assert_coverage(found, exact, discrepancy=0.08)


def test_ten_percent_is_found_through_drift_and_hiccups():
    """A tenth of the samples take three times as long, and the machine halves its speed in the course of a run."""
    drift = math.log(2) / (3 * ROUNDS)
    runs = sessions(400, lambda seed: Machine(seed, 0.05, drift=drift, hiccups=0.1), 1.1)
    assert sum(run.ratio("other", "base").verdict == "slower" for run in runs) >= 0.9 * len(runs)


def test_ten_percent_of_short_work_is_found_on_a_busy_machine():
    """Half of all calls are interrupted, for twice as long as they take."""
    runs = sessions(50, lambda seed: Machine(seed, 0.05, hiccups=0.5), 1.1, seconds=SHORT)
    assert sum(run.ratio("other", "base").verdict == "slower" for run in runs) >= 0.9 * len(runs)
    assert sum(run.noise_floor.verdict == "same" for run in runs) >= 0.8 * len(runs)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_the_detectable_slowdown_is_found_in_nine_of_ten_runs(noise):
    claimed = np.median([one.noise_floor.detectable for one in sessions(300, lambda seed: Machine(seed, noise))])
    assert 0.88 <= power(1 + claimed, noise) <= 0.97


def test_ratios_are_of_pairs_and_medians_exact():
    drifting = Comparison({"a": [1.0, 10.0, 100.0] * 4, "b": [2.0, 20.0, 200.0] * 4, AGAIN: [1.0, 10.0, 100.0] * 4})
    assert drifting.ratio("b", "a") == Ratio(2.0, 2.0, 2.0)
    assert drifting.ratio("b", "a").verdict == "slower"
    assert drifting.noise_floor == Ratio(1.0, 1.0, 1.0)
    assert ratios.paired_ratio([5.0, 1.0, 3.0, 2.0, 4.0, 7.0], [1.0] * 6) == Ratio(3.5, 1.0, 7.0)


def test_short_work_is_repeated_and_its_fastest_burst_counts():
    seen = []

    def timer(work, repeats):
        seen.append((work, repeats))
        return work * (1 + len(seen) % 5)

    compared = compare({"short": 1.3e-4, "long": 0.25}, timer=timer, rounds=20, seconds=math.inf)
    timed = seen[4:]
    assert {repeats for work, repeats in timed if work == 0.25} == {1}
    assert {repeats for work, repeats in timed if work == 1.3e-4} <= {1, 2, 3, 4}
    assert len([work for work, _ in timed if work == 0.25]) == 20
    assert len([work for work, _ in timed if work == 1.3e-4]) == 2 * 20 * harness.BURSTS
    assert set(compared.samples["short"]) == {1.3e-4}


def test_rounds_end_with_the_budget_but_not_before_the_ninth():
    def timer(work, repeats):
        return work

    turn = 2 * harness.BURSTS * 4 * 1.3e-4 + 0.25
    budgeted = compare({"short": 1.3e-4, "long": 0.25}, timer=timer, rounds=1000, seconds=10)
    assert len(budgeted.samples["long"]) == math.ceil(10 / turn)
    assert len(compare({"slow": 9.0}, timer=timer, seconds=1).samples["slow"]) == harness.LEAST_ROUNDS
    assert len(compare({"slow": 9.0}, timer=timer, seconds=1, rounds=3).samples["slow"]) == 3


def test_every_round_times_every_provider_and_in_changing_order():
    turns = []
    compare({"a": "a", "b": "b"}, timer=lambda work, repeats: turns.append(work) or 1.0, rounds=30, seconds=math.inf)
    rounds = [tuple(turns[-90:][i : i + 3]) for i in range(0, 90, 3)]
    assert {tuple(sorted(one)) for one in rounds} == {("a", "a", "b")}
    assert len(set(rounds)) == 3


def test_the_wall_clock_counts_calls():
    calls = []
    assert harness.wall_clock(lambda: calls.append(0), 7) > 0
    assert len(calls) == 7


class Generator:
    """torch's generator as a capture sees it: a state, which a capture that fails does not take out of capture."""

    def __init__(self, state):
        self.state = state

    def graphsafe_get_state(self):
        return Generator(self.state)

    def clone_state(self):
        return Generator(dict(self.state))

    def graphsafe_set_state(self, other):
        self.state = other.state


@pytest.mark.parametrize("fails", [True, False])
def test_a_capture_that_fails_leaves_a_generator_that_draws(fails, monkeypatch):
    own = {"seed": 1, "capturing": False}
    generator, streams = Generator(own), ["current"]

    class Capture:
        def __init__(self, graph):
            pass

        def __enter__(self):
            streams.append("of the capture")
            generator.state["capturing"] = True

        def __exit__(self, *_):
            if fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            generator.state["capturing"] = False
            streams.pop()

    fakes = {
        "default_generators": [generator],
        "current_device": lambda: 0,
        "current_stream": lambda: streams[-1],
        "set_stream": streams.append,
        "graph": Capture,
        "CUDAGraph": object,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(harness, "_warm_up", lambda work: None)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        harness.GraphReplay(lambda: None)
    assert generator.state is own
    assert not own["capturing"]
    assert streams[-1] == "current"


@pytest.mark.parametrize(
    ("replayed", "before"), [(True, ["overwrite", "sleep"]), (False, ["overwrite", "synchronize"])]
)
def test_the_device_clock_hides_the_submission_of_a_replay_and_times_that_of_other_work(replayed, before, monkeypatch):
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("record")

        def elapsed_time(self, end):
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("sleep"))
    clock = object.__new__(harness.CudaTimer)
    clock.scratch = SimpleNamespace(zero_=lambda: calls.append("overwrite"))
    graph = object.__new__(harness.GraphReplay)
    graph.graph, graph.result = SimpleNamespace(replay=lambda: calls.append("work")), None
    seconds = clock(graph if replayed else lambda: calls.append("work"), 2)
    if replayed:
        assert calls == [*before, "record", "work", "record"] * 2 + ["synchronize"]
        assert seconds == pytest.approx(3e-3)
    else:
        assert calls == [*before, "record", "work", "work", "record", "synchronize"]
        assert seconds == pytest.approx(1.5e-3)


def test_saved_bytes_are_those_of_what_backward_needs():
    x, y = torch.rand(1000, requires_grad=True), torch.rand(1000, requires_grad=True)
    assert memory.saved_bytes(lambda: x.exp(), [x]) == 4000
    assert memory.saved_bytes(lambda: x * y, [x, y]) == 0
    assert memory.saved_bytes(lambda: (x * y).exp().exp(), [x, y]) == 8000
    assert memory.saved_bytes(lambda: x + y, [x, y]) == 0


def test_peak_bytes_are_the_most_held_at_once():
    x = torch.rand(10_000)
    assert memory.peak_bytes(lambda: x.exp(), CPU) == 40_000
    assert memory.peak_bytes(lambda: [x.exp(), x.sin(), x.cos()], CPU) == 120_000
    assert memory.peak_bytes(lambda: x.exp().sin().cos(), CPU) == 80_000


SIZES = {"reparam_kl": (64, 8), "mmd2": (32, 40, 8), "log_aggregate": (32, 40, 8)}


@pytest.mark.parametrize("op", kernel_cases.CASES)
@pytest.mark.parametrize("backend", ["eager", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cases_accept_right_results_and_refuse_wrong_ones(op, backend, dtype):
    require_backend(op, backend)
    size = SIZES[op]
    workload = kernel_providers.prepare(op, size, getattr(torch, dtype), "both", CPU, only=(backend,))
    outputs, gradients = workload.providers[backend]()
    workload.check((outputs, gradients))
    workload.check((outputs, ()))
    for part in (0, 1):
        for i in range(len((outputs, gradients)[part])):
            broken = [list(outputs), list(gradients)]
            broken[part][i] = 1.2 * broken[part][i]
            with pytest.raises(AssertionError):
                workload.check((tuple(broken[0]), tuple(broken[1])))
            broken[part][i] = broken[part][i] * math.nan
            with pytest.raises(AssertionError):
                workload.check((tuple(broken[0]), tuple(broken[1])))


@pytest.mark.parametrize("provider", [bench_flows.DENSE, *bench_flows.LAYERS])
def test_linear_flows_accept_right_results_and_refuse_wrong_ones(provider, monkeypatch):
    monkeypatch.setattr(bench_flows, "D", 80)
    workload = bench_flows.prepare(B=3)
    name, *tensors = workload.providers[provider]()
    workload.check((name, *tensors))
    for i in range(len(tensors)):
        with pytest.raises(AssertionError):
            workload.check((name, *tensors[:i], 1.01 * tensors[i] + 0.1, *tensors[i + 1 :]))
    check = workload.renew(provider)
    with pytest.raises(AssertionError):
        check((name, *tensors))
    check(workload.providers[provider]())


def test_a_linear_flow_that_drops_a_gradient_is_refused(monkeypatch):
    """The factors of the first solve do not learn: solution, log-determinant and gradient of z are right."""

    def solve(layer, z):
        return linear._solve_unit(layer.factors.detach(), z[:, layer.rows.argsort()], upper=False)

    monkeypatch.setattr(bench_flows, "D", 80)
    monkeypatch.setattr(LU, "_solve_first", solve)
    workload = bench_flows.prepare(B=3)
    with pytest.raises(AssertionError, match="the gradient of the weights is off"):
        workload.check(workload.providers["LU"]())


def require_backend(op, backend):
    reason = kernel_providers.why_not(op, backend, CPU)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("op", kernel_cases.CASES)
@pytest.mark.parametrize("direction", kernel_providers.DIRECTIONS)
def test_the_peers_agree_with_the_definition(op, direction):
    """Before and after they are timed; compiled once, for other inputs of the same shape too."""
    only = ("eager", "compile")
    workload = kernel_providers.prepare(op, SIZES[op], torch.float32, direction, CPU, only=only)
    right, wrong = workload.check_providers()
    assert (list(right), wrong) == (list(only), {})
    assert workload.check_again(right) == {}


@pytest.mark.parametrize("op", kernel_cases.CASES)
def test_other_inputs_have_other_results(op):
    """After the timing, the first results are refused, and those of a provider that reads the new inputs are not."""
    workload = kernel_providers.prepare(op, SIZES[op], torch.float32, "both", CPU, only=("eager",))
    outputs, gradients = workload.providers["eager"]()
    check = workload.renew("eager")
    with pytest.raises(AssertionError, match=r"is off by|the noise has mean"):
        check((outputs, gradients))
    check(workload.providers["eager"]())


def test_a_case_of_many_pairs_is_held_to_eager_in_float64(monkeypatch):
    size = (40, 30, 3)
    expected = kernel_cases.mmd2(size, torch.float32, CPU).expected
    monkeypatch.setattr(kernel_cases, "MOST_PAIRS", 100)
    asked, right = [], kernels.mmd2
    monkeypatch.setattr(kernels, "mmd2", lambda *x, backend: asked.append(backend) or right(*x, backend=backend))
    found = kernel_cases.mmd2(size, torch.float32, CPU).expected
    assert asked == ["eager"]
    torch.testing.assert_close(found, expected)


def test_noise_that_is_missing_or_too_wide_is_refused():
    case = kernel_cases.reparam_kl((256, 8), torch.float32, CPU)
    mu, logvar = case.inputs
    for eps in (torch.zeros_like(mu), 1.5 * torch.randn_like(mu), torch.randn_like(mu) + 0.5):
        z = mu + torch.exp(logvar / 2) * eps
        with pytest.raises(AssertionError, match="the noise has mean"):
            case.check(((z, torch.zeros(256)), ()))


def test_declared_bytes_are_those_of_the_design():
    """32 bytes for each element in float32 and 16 in bfloat16, and eight for each row's KL and its gradient."""
    for dtype, each in ((torch.float32, 32), (torch.bfloat16, 16)):
        case = kernel_cases.reparam_kl((128, 32), dtype, CPU)
        assert sum(case.moved) == each * 128 * 32 + 8 * 128
    assert sum(kernel_cases.mmd2((10, 20, 4), torch.float32, CPU).moved) == 3 * 4 * 30 * 4


def test_missing_backends_are_named_with_the_reason():
    assert kernel_providers.why_not("mmd2", "eager", CPU) is None
    assert "need a GPU" in kernel_providers.why_not("reparam_kl", "triton", CPU)
    assert "need a GPU" in kernel_providers.why_not("reparam_kl", "eager+graph", CPU)
    assert kernel_providers.why_not("reparam_kl", "numba", torch.device("cuda")) is not None


def test_compile_without_a_compiler_is_a_reason(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in kernel_providers.why_not("mmd2", "compile", CPU)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_provider_calls_the_backend_of_its_name_and_the_peers_none(direction, monkeypatch):
    asked, mmd2 = [], kernels.mmd2

    def spy(*inputs, backend):
        asked.append(backend)
        return mmd2(*inputs, backend="reference")

    monkeypatch.setattr(kernels, "mmd2", spy)
    only = ("eager", "numba")
    providers = kernel_providers.prepare("mmd2", (8, 8, 2), torch.float32, direction, CPU, only).providers
    for call in providers.values():
        call()
    assert list(providers) == list(only)
    assert asked == ["numba"]


def test_gradients_and_what_they_need_are_told_of_both_directions_alone():
    told = {}
    for direction in ("forward", "both"):
        workload = kernel_providers.prepare("mmd2", (8, 8, 2), torch.float32, direction, CPU, ("eager",))
        told[direction] = workload.extra_info("eager", workload.providers["eager"])
    assert (told["forward"]["saved_bytes"], told["forward"]["model_flops"]) == (None, None)
    assert told["both"]["saved_bytes"] > 0
    assert told["both"]["model_flops"] > 0
    assert min(told[direction]["peak_bytes"] for direction in told) > 0
    assert told["both"]["model_bytes"] == 3 * told["forward"]["model_bytes"], "backward moves twice what forward does"
    assert {told[direction]["input_bytes"] for direction in told} == {2 * 8 * 2 * 4}


def test_a_backend_that_cannot_be_made_leaves_the_others_alone(monkeypatch):
    def broken(case):
        raise RuntimeError("no headers")

    monkeypatch.setattr(kernel_providers, "_compile", broken)
    workload = kernel_providers.prepare(
        "mmd2", (8, 8, 2), torch.float32, "both", CPU, only=("eager", "compile", "reference")
    )
    right, wrong = workload.check_providers()
    assert list(right) == ["eager", "reference"]
    assert wrong["compile"].startswith("RuntimeError: no headers\n")
    assert "in broken" in wrong["compile"]


def test_a_wrong_result_gives_no_figure():
    def require_two(result):
        assert result == 2

    work = {"base": lambda: 2, "bad": lambda: 3, "broken": lambda: 1 / 0, "good": lambda: 2}
    right, wrong = Workload(work, require_two).check_providers()
    assert list(right) == ["base", "good"]
    assert {name: why.split(":")[0] for name, why in wrong.items()} == {
        "bad": "AssertionError",
        "broken": "ZeroDivisionError",
    }
    with pytest.raises(AssertionError):
        Workload({"base": lambda: 3, "good": lambda: 2}, require_two).check_providers()


class Doubled:
    """Doubles a number that can be replaced, in various wrong ways."""

    def __init__(self):
        self.number, self.stored, self.calls = 3, None, 0

    def right(self):
        return 2 * self.number

    def cached(self):
        self.stored = self.stored or 2 * self.number
        return self.stored

    def worn_out(self):
        self.calls += 1
        return 2 * self.number + (self.calls > 9)

    def workload(self, **providers):
        def require(result):
            assert result == 2 * self.number, f"{result} is not twice {self.number}"

        def renew(provider):
            self.number += 1
            return require

        return Workload(providers, require, renew=renew)


def test_what_is_stored_or_worn_out_is_found_after_the_timing():
    doubled = Doubled()
    workload = doubled.workload(base=doubled.right, stored=doubled.cached, worn=doubled.worn_out, good=doubled.right)
    right, wrong = workload.check_providers()
    assert wrong == {}
    compare(right, rounds=3)
    late = workload.check_again(right)
    assert list(late) == ["stored", "worn"]
    assert late["stored"].startswith("after it was timed: AssertionError: 6 is not twice 5")
    assert late["worn"].startswith("after it was timed: AssertionError: 13 is not twice 6")


def test_results_are_checked_after_the_timing_even_without_other_inputs():
    calls = []

    def goes_wrong():
        calls.append(0)
        return 2 + (len(calls) > 1)

    def require_two(result):
        assert result == 2

    workload = Workload({"base": lambda: 2, "bad": goes_wrong}, require_two)
    right, _ = workload.check_providers()
    assert list(workload.check_again(right)) == ["bad"]


def test_a_refused_provider_keeps_no_tensor_alive(monkeypatch):
    made = []

    def held(*_):
        large = torch.ones(3)
        made.append(weakref.ref(large))
        try:
            raise ValueError("the cause")
        except ValueError as error:
            raise RuntimeError("no headers") from error

    monkeypatch.setattr(kernel_providers, "_compile", held)
    workload = kernel_providers.prepare("mmd2", (8, 8, 2), torch.float32, "both", CPU, only=("eager", "compile"))
    _, wrong = Workload({**workload.providers, "raises": held}, workload.check).check_providers()
    assert len(made) == 2
    assert {name: why.splitlines()[0] for name, why in wrong.items()} == {
        "compile": "RuntimeError: no headers",
        "raises": "RuntimeError: no headers",
    }
    assert "ValueError: the cause" in wrong["compile"]
    assert [tensor() for tensor in made] == [None, None]


@pytest.mark.parametrize("runs", ["0", "-1", "many"])
def test_the_selfcheck_asks_for_a_run(runs, capsys):
    with pytest.raises(SystemExit) as ended:
        selfcheck.main(["--runs", runs])
    assert ended.value.code == 2
    assert f"a whole number of at least 1 is required, got {runs}." in capsys.readouterr().err


def test_feeding_says_what_it_needs(tmp_path, capsys):
    for arguments, code in ((["--help"], 0), ([], 2), ([str(tmp_path), "mapped"], 2)):
        with pytest.raises(SystemExit) as ended:
            feeding.main(arguments)
        assert ended.value.code == code
    assert "which has no train.npy, valid.npy, test.npy." in capsys.readouterr().err


def test_verdict_lines_fit_and_name_what_is_beyond_doubt():
    samples = {"eager": [1.0, 1.1] * 10, "fast": [0.5, 0.55] * 10, "slow": [2.0, 2.2] * 10, AGAIN: [1.1, 1.0] * 10}
    (line,) = summary.summarise([group(Comparison(samples))] * 3)
    assert line.startswith("op, speed over eager: fast 2.00-2.00 (faster 3/3); slow 0.50-0.50 (slower 3/3); sees ")
    assert len(line) <= 120
    measured = {"floor_ratio": {"median": 1.0, "low": 0.9, "high": 1.1}, "copy_bytes_per_s": 5e9, "floor_seconds": 4e-8}
    assert "5.0 GB/s; an empty call is timed as 40 ns" in summary.describe_measurements(measured)


def test_speeds_of_several_sizes_are_told_from_the_least_to_the_most():
    slow = [1.0, 1.1] * 10
    works = [Comparison({"eager": slow, "fast": [t / speed for t in slow], AGAIN: slow}) for speed in (3, 4, 2)]
    (line,) = summary.summarise([group(one) for one in works])
    assert line.startswith("op, speed over eager: fast 2.00-4.00 (faster 3/3); sees ")
    many = {f"provider {i}": slow for i in range(6)}
    lines = summary.summarise([group(Comparison({"eager": slow, **many, AGAIN: slow}))])[0].splitlines()
    assert len(lines) > 1
    assert all(line.startswith("    ") for line in lines[1:])


def test_a_fused_backend_is_told_against_its_peer_too():
    """Over the same rounds: rounds in which both are slow cancel, and are no reason to doubt the verdict."""
    slow = [1.0, 5.0] * 10
    samples = {"eager": slow, "compile": [0.8 * t for t in slow], "numba": [0.4 * t for t in slow], AGAIN: slow}
    equal = samples | {"numba": samples["compile"]}
    one, two = (Group(f"op {i}", "op", Comparison(found), {}) for i, found in enumerate((samples, equal)))
    (line, of_all) = summary.summarise([one, two])
    assert "; numba over compile 1.00-2.00 (faster 1/2); sees " in " ".join(line.split())
    assert of_all == "numba over compile, over all 2 works: median 1.50, 1.00-2.00 (faster 1/2)"
    assert one.speed("numba", "compile") == Ratio(2.0, 2.0, 2.0)
    graphs = {f"{name}+graph": taken for name, taken in samples.items() if name in ("eager", "compile")}
    fused = {"triton": slow, "triton+graph": slow}
    of_gpu = Group("op", "op", Comparison({"eager": slow, **fused, **graphs, AGAIN: slow}), {})
    peers = {name: of_gpu.find_peer(name) for name in of_gpu.providers}
    assert {name: peer for name, peer in peers.items() if peer} == {"triton+graph": "compile+graph"}
    assert len(summary.summarise([of_gpu])) == 1


def test_a_busy_machine_and_an_allocator_that_is_not_pinned_are_told():
    quiet = {"load": 0.4, "cores": 2, "allocator_pinned": True}
    narrow, wide = ([group(sessions(1, partial(Machine, noise=noise))[0])] * 3 for noise in (0.01, 1))
    few = group(compare({"base": 1.0}, timer=lambda work, repeats: work, rounds=3))
    assert summary.list_warnings(quiet, [*narrow, wide[0], few]) == []
    said = "other programs run here, or did a minute ago; do not trust these verdicts: "
    assert summary.list_warnings(quiet, narrow + wide) == [f"{said}3 of 6 noise floors hide 20%"]
    assert summary.list_warnings(quiet | {"load": 1.6}, narrow) == [f"{said}the load was 1.6 on 2 cores at the start"]
    assert summary.list_warnings(quiet | {"allocator_pinned": False}, narrow) == [summary.UNPINNED]


def test_the_load_is_that_of_the_start(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.52, 0.0, 0.0))
    machine.load.cache_clear()
    assert machine.load() == 0.5
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    assert machine.describe()["load"] == 0.5
    machine.load.cache_clear()


def test_a_copy_reads_and_writes_every_byte_and_the_fastest_counts(monkeypatch):
    """Copies of 1 MiB in 2 ms and in 1 ms, and empty calls of 1, 3 and 8 ns."""
    samples = {"copy": [2e-3, 1e-3], "empty": [1e-9, 8e-9, 3e-9]}

    def compare(providers, **options):
        (name,) = providers
        return Comparison({name: samples[name], AGAIN: samples[name]})

    monkeypatch.setattr(harness, "compare", compare)
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 2**20, "cuda": 2**20})
    found = machine.measure.__wrapped__()
    assert found["copy_bytes_per_s"] == pytest.approx(2 * 2**20 / 1e-3)
    assert found["floor_seconds"] == 3e-9
    assert found["floor_ratio"]["median"] == 1


def test_the_machine_is_described_by_plain_values():
    described = machine.describe()
    assert described["torch"] == torch.__version__
    assert described["device"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    assert all(value is None or isinstance(value, str | int | float) for value in described.values())
