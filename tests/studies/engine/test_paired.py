"""Differences of trials over the same examples, held to SciPy's paired t-test, and the file that keeps the examples."""

import math

import pytest
import torch
from scipy import stats as distributions

from tests.exact_models import generator
from vaebench.studies.engine.study.paired import FILE, Difference, ExampleLikelihoods, nll_difference
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.log_likelihood import CheckedEstimate


def examples(value, *, stderr=0.1, failed=(), data="digits"):
    value = torch.as_tensor(value, dtype=torch.float32)
    passed = torch.ones(len(value), dtype=torch.bool)
    passed[list(failed)] = False
    return ExampleLikelihoods(value, torch.full_like(value, stderr), passed, data)


def test_the_difference_is_that_of_a_paired_t_test():
    """Examples differ by tens of nats, and the models by less than one: only the pairs tell."""
    hard = -90 + 30 * torch.randn(200, generator=generator(0))
    first, second = (hard + 0.5 * torch.randn(200, generator=generator(seed)) for seed in (1, 2))
    found = nll_difference(examples(first - 0.3), examples(second))
    oracle = distributions.ttest_rel(second.double(), first.double() - 0.3)
    assert found.value == pytest.approx((second.double() - first.double()).mean().item() + 0.3, abs=1e-5)
    assert found.value / found.stderr == pytest.approx(oracle.statistic, rel=1e-4)
    assert found.stderr < 0.06 < 1 < first.std() / math.sqrt(200)
    back = nll_difference(examples(second), examples(first - 0.3))
    assert (back.value, back.stderr) == (-found.value, found.stderr)


@pytest.mark.parametrize(("value", "tied"), [(0.19, True), (-0.19, True), (0.21, False), (-0.21, False)])
def test_less_than_two_errors_is_a_tie(value, tied):
    assert Difference(value, 0.1).tied == tied


def test_identical_estimates_are_tied():
    assert nll_difference(examples([-1.0, -2.0]), examples([-1.0, -2.0])).tied is True


@pytest.mark.parametrize("value", [-0.3, -0.1, 0.0, 0.1, 0.3])
def test_a_bound_tells_two_apart_on_its_own_side_alone(value):
    """An upper bound of 0.3 leaves open a difference of 0, one of -0.3 does not."""
    assert Difference(value, 0.1, too_high=True).tied == (False if value == -0.3 else None)
    assert Difference(value, 0.1, too_low=True).tied == (False if value == 0.3 else None)
    assert Difference(value, 0.1, too_high=True, too_low=True).tied is None


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ((), (), "1.000 ± 0.000"),
        ((3,), (), "<= 1.000 ± 0.000"),
        ((), (0, 1), ">= 1.000 ± 0.000"),
        ((3,), (3,), "~ 1.000 ± 0.000"),
    ],
)
def test_a_difference_of_bounds_is_shown_as_one(first, second, shown):
    """The estimate of an unresolved example is too low, so that its -log p(x) is too high."""
    better = examples([-1.0, -2.0, -3.0, -4.0], failed=second)
    worse = examples([-2.0, -3.0, -4.0, -5.0], failed=first)
    assert str(nll_difference(worse, better)) == shown


def test_seeds_are_averaged_for_each_example():
    seeds = [examples([-1.0, -2.0], stderr=0.3), examples([-3.0, -8.0], stderr=0.4, failed=[1])]
    found = ExampleLikelihoods.average(seeds)
    assert found.value.tolist() == [-2, -5]
    assert found.stderr.tolist() == pytest.approx([0.25, 0.25])
    assert found.passed.tolist() == [True, False]
    assert found.unresolved == 1


def test_an_estimate_without_a_check_passes():
    value, stderr = torch.tensor([-1.0, -2.0]), torch.tensor([0.1, 0.2])
    assert ExampleLikelihoods.from_estimate(Estimate(value, stderr, "lower", 10), "").unresolved == 0
    checked = CheckedEstimate(
        value, stderr, "lower", 10, passed=torch.tensor([True, False]), rounds=value, evaluations=value
    )
    assert ExampleLikelihoods.from_estimate(checked, "").passed.tolist() == [True, False]


def test_the_file_keeps_what_was_estimated(tmp_path):
    kept = examples([-1.5, -2.5], failed=[0])
    assert kept.save(tmp_path) == tmp_path / FILE
    found = ExampleLikelihoods.read(tmp_path)
    for name in ("value", "stderr", "passed"):
        torch.testing.assert_close(getattr(found, name), getattr(kept, name), rtol=0, atol=0)
    assert found.data == "digits"
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-3])
    assert ExampleLikelihoods.read(tmp_path) is None, "a file that was cut off"
    assert ExampleLikelihoods.read(tmp_path / "nowhere") is None


def test_examples_of_other_data_or_of_another_number_are_not_compared():
    assert examples([0, 1]).is_comparable(examples([2, 3]))
    assert not examples([0, 1]).is_comparable(examples([2, 3, 4]))
    assert not examples([0, 1]).is_comparable(examples([2, 3], data="sprites"))
    assert not examples([0]).is_comparable(examples([2])), "its difference would have no error"
