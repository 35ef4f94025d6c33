"""The statistical assertions fail as rarely as they declare, and catch what they promise to catch."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests import stats

RUNS = 2000


@pytest.fixture
def loose(monkeypatch):
    """Rates that a simulation of RUNS runs can see: one assertion fails in 5 %, and misses in 10 %, of all cases."""
    monkeypatch.setattr(stats, "ASSERTIONS", 10**6)
    monkeypatch.setattr(stats, "FAILURE_RATE", 0.05 * 10**6)
    monkeypatch.setattr(stats, "MISS_RATE", 0.1)
    monkeypatch.setattr(stats, "_made", 0)


def failures(assertion):
    """Return how many of RUNS runs the assertion fails for its statistic; a complaint about power is an error."""
    rng, count = np.random.default_rng(0), 0
    for _ in range(RUNS):
        try:
            assertion(rng)
        except AssertionError as error:
            if "would miss" in str(error):
                raise
            count += 1
    return count


def between(count, low, high):
    """Whether a count of RUNS is one that rates from low to high give, but for one case in a million."""
    return scipy_stats.binom.ppf(5e-7, RUNS, low) <= count <= scipy_stats.binom.isf(5e-7, RUNS, high)


CASES = {
    "mean": (
        lambda rng, off: stats.assert_mean_equal(rng.normal(off, 1, 100), 0.0, discrepancy=0.45),
        0.33,
        (0.05, 0.05),
    ),
    "vector": (
        lambda rng, off: stats.assert_mean_equal(rng.normal(off, 1, (100, 5)), np.zeros(5), discrepancy=0.55),
        0.39,
        (0.04, 0.05),
    ),
    "bound": (
        lambda rng, off: stats.assert_mean_at_most(rng.normal(off, 1, 100), 0.0, discrepancy=0.4),
        0.3,
        (0.05, 0.05),
    ),
    "coverage": (
        lambda rng, off: stats.assert_coverage(rng.random(300) < 0.9 - off, 0.9, discrepancy=0.08),
        0.08,
        (0.01, 0.05),
    ),
    "rate": (
        lambda rng, off: stats.assert_rate_at_most(rng.random(300) < 0.1 + off, 0.1, discrepancy=0.06),
        0.06,
        (0.02, 0.05),
    ),
    "distribution": (
        lambda rng, off: stats.assert_distribution(rng.random(300) + off, scipy_stats.uniform.cdf, discrepancy=0.16),
        0.16,
        (0.03, 0.05),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fails_by_chance_as_often_as_declared(loose, name):
    assertion, _, (low, high) = CASES[name]
    assert between(failures(lambda rng: assertion(rng, 0.0)), low, high)


@pytest.mark.parametrize("name", CASES)
def test_catches_the_discrepancy_as_often_as_declared(loose, name):
    assertion, discrepancy, _ = CASES[name]
    assert between(failures(lambda rng: assertion(rng, discrepancy)), 0.9, 1.0)


def test_a_bound_is_not_an_equality(loose):
    assert failures(lambda rng: stats.assert_mean_at_most(rng.normal(-1, 1, 100), 0.0, discrepancy=0.4)) == 0


@pytest.mark.parametrize(
    "weak",
    [
        lambda x: stats.assert_mean_equal(x, 0.0, discrepancy=0.1),
        lambda x: stats.assert_mean_at_most(x, 0.0, discrepancy=0.1),
        lambda x: stats.assert_coverage(x > -1.28, 0.9, discrepancy=0.01),
        lambda x: stats.assert_rate_at_most(x > 1.28, 0.1, discrepancy=0.05),
        lambda x: stats.assert_distribution(x, scipy_stats.norm.cdf, discrepancy=0.05),
    ],
)
def test_a_sample_too_small_to_see_the_discrepancy_is_refused(weak):
    with pytest.raises(AssertionError, match="would miss"):
        weak(np.random.default_rng(1).normal(size=100))


def test_the_budget_is_enforced(monkeypatch):
    monkeypatch.setattr(stats, "_made", stats.ASSERTIONS)
    with pytest.raises(AssertionError, match="raise ASSERTIONS"):
        stats.assert_mean_equal(np.random.default_rng(0).normal(size=1000), 0.0, discrepancy=1.0)
