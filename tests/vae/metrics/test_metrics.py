"""Scores of codes against second implementations in loops, and at codes whose worth is known."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn.metrics import mutual_info_score

from tests import stats
from tests.factors import SIZES, draw_factors, mix_factors, seeded
from vaebench.vae import metrics
from vaebench.vae.data import sprites


def mig_in_loops(codes, labels, bins=20):
    gaps = []
    for known in labels.T.numpy():
        found = []
        for z in codes.T.double().numpy():
            edges = np.histogram(z, bins)[1]
            found.append(mutual_info_score(known, np.digitize(z, edges[:-1])))
        first, second = sorted([*found, 0.0])[-1:-3:-1]
        p = np.array(list(Counter(known.tolist()).values())) / len(known)
        gaps.append((first - second) / -(p * np.log(p)).sum())
    return np.mean(gaps)


@pytest.mark.parametrize("latents", [1, 2, 7])
def test_mig_is_that_of_histograms_in_loops(latents):
    labels = draw_factors((3, 5, 8), 1000)
    codes = mix_factors(labels, latents)
    assert metrics.binned_mig(codes, labels) == pytest.approx(mig_in_loops(codes, labels), abs=1e-9)
    assert metrics.binned_mig(codes, labels, bins=6) == pytest.approx(mig_in_loops(codes, labels, 6), abs=1e-9)
    assert metrics.binned_mig(codes, 7 * labels - 100) == pytest.approx(metrics.binned_mig(codes, labels), abs=1e-12)
    assert metrics.binned_mig(codes * 100 - 7, labels) == pytest.approx(metrics.binned_mig(codes, labels), abs=1e-9)


def test_a_code_on_an_edge_lies_above_it():
    """Of 0 to 20 in 20 bins the last two share one, and not the first two."""
    codes = draw_factors((21,), 1000)
    for value, shares in ((20, True), (19, True), (0, False), (1, False)):
        known = (codes == value).long()
        found = metrics.binned_mig(codes.double(), known)
        assert found == pytest.approx(mig_in_loops(codes, known), abs=1e-9)
        assert (found < 0.9) == shares, value


def test_mig_of_known_codes():
    """Of factors drawn without end it would be the share of the entropies that 20 bins keep, 0.9025."""
    labels = draw_factors()
    codes = metrics.reference_codes(SIZES, 10, generator=seeded())
    perfect = codes["perfect"](labels)
    kept = [math.log(3) / math.log(3), 1.0, math.log(20) / math.log(40)]
    kept += 2 * [(24 / 32 * math.log(16) + 8 / 32 * math.log(32)) / math.log(32)]
    found = metrics.binned_mig(perfect, labels)
    assert found == pytest.approx(0.895, abs=0.01)
    assert np.mean(kept) - 0.015 < found < np.mean(kept)
    assert metrics.binned_mig(perfect.repeat(1, 2), labels) == 0
    assert metrics.binned_mig(codes["constant"](labels), labels) == 0
    assert metrics.binned_mig(codes["random"](labels), labels) < 0.002
    assert 0.27 < metrics.binned_mig(codes["rotated"](labels), labels) < 0.37
    assert metrics.binned_mig(torch.cat([perfect, torch.ones_like(perfect)], 1), labels) == found


def test_a_factor_of_one_value_is_left_out_of_mig():
    labels = draw_factors((4, 5), 500)
    still = torch.cat([labels, torch.zeros_like(labels[:, :1])], 1)
    assert metrics.binned_mig(mix_factors(labels, 3), still) == metrics.binned_mig(mix_factors(labels, 3), labels)


def test_what_sprites_look_like_tells_shape_and_orientation_apart_only_in_part():
    """I(shape; folded orientation) by enumeration, 0.382 nats: what the docstring of sprites says."""
    every = sprites.labels(torch.arange(0, sprites.COUNT, 32 * 32))
    information = mutual_info_score(every[:, 0].numpy(), every[:, 2].numpy())
    assert information == pytest.approx(0.382, abs=5e-4)
    found = metrics.binned_information(every[:, [2]].double(), every[:, [0]]).item()
    assert found == pytest.approx(information, abs=1e-9), "20 bins of two orientations lose nothing of the shape"
    labels = sprites.labels(torch.randperm(sprites.COUNT, generator=seeded())[:10_000])
    assert metrics.binned_mig(labels.float(), labels) == pytest.approx(mig_in_loops(labels, labels), abs=1e-9)
    assert metrics.binned_mig(labels.float(), labels) == pytest.approx(0.805, abs=0.01)


def information_by_quadrature(mu, logvar, known):
    """Return I(z; v) of one latent whose law given v is a mixture, by the trapezoidal rule."""
    z = np.linspace(-12, 12, 6001)
    density = scipy_stats.norm.pdf(z[:, None], mu.numpy(), np.exp(logvar.numpy() / 2))
    total, found = density.mean(1), 0.0
    for value, count in Counter(known.tolist()).items():
        given = density[:, known.numpy() == value].mean(1)
        positive = given > 0
        ratio = np.where(positive, given * np.log(np.where(positive, given, 1) / np.where(positive, total, 1)), 0)
        found += count / len(known) * np.trapezoid(ratio, z)
    return found


def test_information_of_posteriors_is_that_of_mixtures_by_quadrature():
    labels = draw_factors((2, 4), 60)
    mu, logvar = mix_factors(labels, 3) / 3, torch.randn(60, 3, generator=seeded(5)) - 1
    expected = [
        [information_by_quadrature(m, v, known) for known in labels.T] for m, v in zip(mu.T, logvar.T, strict=True)
    ]
    found = [metrics.posterior_information(mu, logvar, labels, generator=seeded(seed)).numpy() for seed in range(300)]
    stats.assert_mean_equal(found, np.array(expected), discrepancy=0.05)


def test_posterior_mig_takes_the_gap_in_units_of_the_entropy():
    labels = draw_factors((2, 4), 60)
    mu, logvar = mix_factors(labels, 3) / 3, torch.randn(60, 3, generator=seeded(5)) - 1
    information = metrics.posterior_information(mu, logvar, labels, generator=seeded())
    gaps = []
    for column, known in zip(information.T.tolist(), labels.T.tolist(), strict=True):
        first, second, _ = sorted(column, reverse=True)
        gaps.append((first - second) / scipy_stats.entropy(list(Counter(known).values())))
    assert metrics.posterior_mig(mu, logvar, labels, generator=seeded()) == pytest.approx(np.mean(gaps), abs=1e-9)


def test_posterior_mig_of_known_codes():
    labels = draw_factors((3, 5, 8), 2000)
    mu = labels.float()
    narrow = torch.full_like(mu, -6.0)
    assert metrics.posterior_mig(mu, narrow, labels, generator=seeded()) == pytest.approx(1, abs=0.02)
    assert metrics.posterior_mig(mu, 20 * torch.ones_like(mu), labels, generator=seeded()) < 0.01
    twice = metrics.posterior_mig(mu.repeat(1, 2), narrow.repeat(1, 2), labels, generator=seeded())
    assert twice == pytest.approx(0, abs=1e-3)


def test_gaussian_total_correlation_is_a_divergence_of_gaussians():
    codes = mix_factors(draw_factors((4, 5, 6), 400), 4).double()
    covariance = np.cov(codes.T.numpy())
    apart = np.diag(np.diag(covariance))
    ratio = np.linalg.det(apart) / np.linalg.det(covariance)
    expected = 0.5 * (np.trace(np.linalg.inv(apart) @ covariance) - 4 + np.log(ratio))
    assert metrics.gaussian_total_correlation(codes) == pytest.approx(expected, abs=1e-9)
    still = torch.full_like(codes[:, :1], 0.3)
    assert metrics.gaussian_total_correlation(torch.cat([codes, still], 1)) == pytest.approx(expected, abs=1e-9)
    assert metrics.gaussian_total_correlation(codes[:, :1]) == 0
    assert metrics.gaussian_total_correlation(codes.repeat(1, 2)) > 10


def test_the_total_correlation_of_independent_normals_is_known():
    codes = torch.randn(2000, 12, 4, generator=seeded(), dtype=torch.float64)
    found = [metrics.gaussian_total_correlation(one) for one in codes]
    stats.assert_mean_equal(found, metrics.independent_total_correlation(12, 4), discrepancy=0.08)


def test_log_det_covariance_is_that_of_the_mixture():
    mu, logvar = torch.randn(50, 3, generator=seeded()), torch.randn(50, 3, generator=seeded(1))
    mean, second = mu.double().mean(0), torch.zeros(3, 3, dtype=torch.float64)
    for m, v in zip(mu.double(), logvar.double(), strict=True):
        second += (torch.outer(m, m) + torch.diag(v.exp())) / 50
    expected = np.log(np.linalg.det((second - torch.outer(mean, mean)).numpy()))
    assert metrics.log_det_covariance(mu, logvar) == pytest.approx(expected, abs=1e-5)
    assert metrics.log_det_covariance(torch.zeros(9, 3), torch.zeros(9, 3)) == 0
    assert metrics.log_det_covariance(torch.zeros(9, 3), torch.full((9, 3), 2.0)) == pytest.approx(6)
    draws = mu[:, None] + (logvar / 2).exp()[:, None] * torch.randn(50, 4000, 3, generator=seeded(2))
    assert metrics.log_det_covariance(draws.flatten(0, 1)) == pytest.approx(expected, abs=0.05)
    alone = np.var(mu[:, 0].double().numpy()) + np.exp(logvar[:, 0].double().numpy()).mean()
    assert metrics.log_det_covariance(mu[:, :1], logvar[:, :1]) == pytest.approx(np.log(alone), abs=1e-5)
