"""Statistical assertions that declare how often they fail by chance and prove what they would have caught.

All assertions of the suite together fail by chance with probability at most FAILURE_RATE: each has an equal share, an
array divides its share among its elements, and no more than ASSERTIONS may be made. Each takes a `discrepancy`, the
smallest error that matters, and fails too where its sample would miss that error more often than MISS_RATE.
"""

import numpy as np
from scipy import stats

FAILURE_RATE = 1e-6
ASSERTIONS = 500
MISS_RATE = 1e-3

_made = 0


def assert_mean_equal(samples, expected, *, discrepancy):
    """Assert that independent samples `(n, ...)` have the expected mean `(...)`: Student's t, two-sided."""
    mean, stderr, allowed = _student(samples, sides=2, discrepancy=discrepancy)
    error = np.abs(mean - np.asarray(expected)) / stderr
    assert (error <= allowed).all(), f"the mean is {error.max():.1f} standard errors off; {allowed:.1f} are allowed"


def assert_mean_at_most(samples, bound, *, discrepancy):
    """Assert that independent samples `(n, ...)` have a mean of at most `bound` `(...)`: Student's t, one-sided."""
    mean, stderr, allowed = _student(samples, sides=1, discrepancy=discrepancy)
    excess = (mean - np.asarray(bound)) / stderr
    assert (excess <= allowed).all(), f"the mean is {excess.max():.1f} standard errors above; {allowed:.1f} are allowed"


def assert_coverage(hits, nominal, *, discrepancy):
    """Assert that independent intervals cover as often as they say, from booleans `(n,)`: the exact binomial test."""
    count, n, rate = int(np.sum(np.asarray(hits))), len(hits), _share(1) / 2
    least, most = stats.binom.ppf(rate, n, nominal), stats.binom.isf(rate, n, nominal)
    missed = stats.binom.cdf(most, n, nominal - discrepancy) - stats.binom.cdf(least - 1, n, nominal - discrepancy)
    assert missed <= MISS_RATE, f"{n} intervals would miss a coverage of {nominal - discrepancy:.3g}: take more"
    assert least <= count <= most, f"{count} of {n} intervals cover; {least:.0f} to {most:.0f} are allowed"


def assert_rate_at_most(hits, bound, *, discrepancy):
    """Assert that independent events `(n,)` happen at a rate of at most `bound`: the exact binomial test, one-sided."""
    count, n = int(np.sum(np.asarray(hits))), len(hits)
    most = stats.binom.isf(_share(1), n, bound)
    missed = stats.binom.cdf(most, n, bound + discrepancy)
    assert missed <= MISS_RATE, f"{n} events would miss a rate of {bound + discrepancy:.3g}: take more"
    assert count <= most, f"{count} of {n} events happened; {most:.0f} are allowed"


def assert_distribution(samples, cdf, *, discrepancy):
    """Assert that independent samples `(n,)` have a cumulative distribution function: Kolmogorov's distance.

    By Dvoretzky, Kiefer, Wolfowitz and Massart, P(distance > e) <= 2 exp(-2 n e^2) for every continuous distribution.
    """
    n, rate = len(samples), _share(1)
    allowed, wobble = (np.sqrt(np.log(2 / rate_) / (2 * n)) for rate_ in (rate, MISS_RATE))
    distance = stats.kstest(np.asarray(samples), cdf).statistic
    assert allowed + wobble <= discrepancy, f"{n} samples would miss a distance of {discrepancy:.3g}: take more"
    assert distance <= allowed, f"the distance is {distance:.3g}; {allowed:.3g} is allowed"


def _student(samples, sides, discrepancy):
    """Return mean, standard error and the allowed number of standard errors, having proven the power."""
    samples = np.asarray(samples, dtype=float)
    n = len(samples)
    mean, stderr = samples.mean(0), samples.std(0, ddof=1) / np.sqrt(n)
    allowed = stats.t.isf(_share(mean.size) / sides, n - 1)
    seen = ((allowed + stats.t.isf(MISS_RATE, n - 1)) * stderr).max()
    assert seen <= discrepancy, f"{n} samples would miss an error of {discrepancy:.3g}: they show {seen:.3g} and more"
    return mean, stderr, allowed


def _share(elements):
    """Return the failure rate of each of the elements of one more assertion."""
    global _made
    _made += 1
    assert _made <= ASSERTIONS, f"more than {ASSERTIONS} statistical assertions: raise ASSERTIONS"
    return FAILURE_RATE / ASSERTIONS / elements
