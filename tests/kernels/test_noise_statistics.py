"""Four million draws of the noise stream: moments, distribution, and correlations between lanes, rows and seeds.

Every backend draws from the same words, as test_noise.py shows here and in gpu/, so one of them will do.
"""

import numpy as np
import pytest
from scipy import stats as distributions

from tests import stats
from vaebench import kernels

SEED, ROWS, COLUMNS = 20_240_607, 4096, 1024


@pytest.fixture(scope="module")
def draws():
    return kernels.normal_noise(SEED, (ROWS, COLUMNS)).double().numpy()


def test_moments_of_each_lane(draws):
    """Mean, variance, skewness and kurtosis of lanes 0 to 3, a million draws each."""
    lanes = draws.reshape(-1, 4)
    powers = np.concatenate([lanes**p for p in (1, 2, 3, 4)], 1)
    expected = np.repeat([0, 1, 0, 3], 4)
    stats.assert_mean_equal(powers, expected, discrepancy=0.1)


def test_distribution(draws):
    stats.assert_distribution(draws.ravel(), distributions.norm.cdf, discrepancy=0.003)


@pytest.mark.parametrize("sign", [-1, 1])
def test_tails(draws, sign):
    """On either side 3.2e-5 of the draws lie beyond four standard deviations, though the radius is clamped at 5.7."""
    stats.assert_coverage(sign * draws.ravel() > 4, distributions.norm.sf(4), discrepancy=2.5e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_lanes_of_a_counter_are_uncorrelated(draws, power):
    """Lanes 0 and 1 share a radius, so their squares would show an angle that is not uniform."""
    lanes = draws.reshape(-1, 4) ** power - (power == 2)
    i, j = np.triu_indices(4, 1)
    stats.assert_mean_equal(lanes[:, i] * lanes[:, j], np.zeros(6), discrepancy=0.03)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 64, COLUMNS, 2 * COLUMNS])
def test_draws_at_a_distance_are_uncorrelated(draws, lag):
    """Neighbours in a row, neighbouring counters, and the same column of neighbouring rows."""
    flat = draws.ravel()
    stats.assert_mean_equal(flat[:-lag] * flat[lag:], 0, discrepancy=0.006)


@pytest.mark.parametrize("other", [SEED + 1, SEED + 2**32, -SEED])
def test_other_seeds_give_other_noise(draws, other):
    """Successive seeds, seeds that differ in their high word only, and opposite ones."""
    more = kernels.normal_noise(other, (ROWS, COLUMNS)).double().numpy()
    stats.assert_mean_equal((draws * more).ravel(), 0, discrepancy=0.006)
    stats.assert_mean_equal(((draws**2 - 1) * (more**2 - 1)).ravel(), 0, discrepancy=0.012)
