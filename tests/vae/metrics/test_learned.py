"""Scores that vote or learn, against second implementations in loops, and at codes whose worth is known."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.svm import SVC, LinearSVC

from tests import stats
from tests.factors import draw_factors, mix_factors, seeded
from vaebench.vae import metrics
from vaebench.vae.metrics.classes import draw_balanced
from vaebench.vae.metrics.dci import concentration

VOTES = {"train_votes": 300, "test_votes": 200}


def factor_vae_in_loops(batches, codes):
    """Return the score from the factors that were asked for: first a lot for the spread, then 64 for each vote."""
    spread = np.var(codes(batches[0]).double().numpy(), axis=0, ddof=1)
    active = [k for k in range(len(spread)) if np.sqrt(spread[k]) >= 0.05]
    votes = []
    for batch in torch.cat(batches[1:]).split(64):
        held = [f for f in range(batch.shape[1]) if len(set(batch[:, f].tolist())) == 1]
        assert len(held) == 1
        z = codes(batch).double().numpy()
        moved = {k: np.var(z[:, k], ddof=1) / spread[k] for k in active}
        votes.append((min(moved, key=moved.get), held[0]))
    assert len(votes) == 500
    table = {k: Counter(held for elected, held in votes[:300] if elected == k) for k in active}
    named = {k: max(sorted(counts), key=counts.get) for k, counts in table.items() if counts}
    return np.mean([named.get(elected, 0) == held for elected, held in votes[300:]])


def test_factor_vae_score_is_that_of_votes_in_loops():
    """Latents of scales far apart, one that hardly moves and would win every vote, and one that mixes two factors."""
    scale = torch.tensor([10.0, 0.2, 1.0, 0.01])
    weight = torch.tensor([[1.0, 0, 0.7, 0.3], [0, 1.0, 0, 0], [0, 0.3, 0.7, 0.3]])
    asked = []

    def codes(factors):
        return (factors.float() @ weight) * scale

    def recorded(factors):
        asked.append(factors)
        return codes(factors)

    found = metrics.factor_vae_score(recorded, (6, 5, 4), generator=seeded(), **VOTES)
    assert [len(factors) for factors in asked] == [10_000, 250 * 64, 50 * 64, 200 * 64]
    assert found == pytest.approx(factor_vae_in_loops(asked, codes), abs=1e-6)
    assert 0.4 < found < 1


def test_factor_vae_votes_are_named_by_the_training_votes():
    """Codes that know nothing: what is commonest among 300 votes is not what is commonest among 200 others."""
    asked = []

    def noise(factors):
        asked.append(factors)
        return torch.sin(997 * factors.double() @ torch.rand(3, 8, generator=seeded(), dtype=torch.float64))

    found = metrics.factor_vae_score(noise, (6, 5, 4), generator=seeded(), **VOTES)
    assert found == pytest.approx(factor_vae_in_loops(asked[:], noise), abs=1e-6)


def test_factor_vae_score_of_known_codes():
    codes = metrics.reference_codes((3, 6, 8), 10, generator=seeded())
    score = {
        name: metrics.factor_vae_score(code, (3, 6, 8), generator=seeded(), **VOTES) for name, code in codes.items()
    }
    assert (score["perfect"], score["constant"]) == (1, 0)
    assert 0.2 < score["random"] < 0.5
    one = metrics.factor_vae_score(lambda factors: factors[:, :1].float(), (3, 6, 8), generator=seeded(), **VOTES)
    assert 0.2 < one < 0.5, "a latent alone wins every vote"


def scores_of(needs):
    """Return disentanglement and completeness of a matrix `(K, F)`, by scipy's entropy, row by row."""
    total = needs.sum()
    apart = sum(row.sum() / total * (1 - scipy_stats.entropy(row, base=needs.shape[1])) for row in needs if row.sum())
    whole = sum(row.sum() / total * (1 - scipy_stats.entropy(row, base=needs.shape[0])) for row in needs.T)
    return apart, whole


def test_disentanglement_and_completeness_of_a_matrix():
    needs = torch.rand(5, 3, generator=seeded(), dtype=torch.float64)
    needs[4] = 0
    expected = scores_of(needs.numpy())
    assert (concentration(needs), concentration(needs.T)) == pytest.approx(expected, abs=1e-7)
    one_factor_each = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert concentration(one_factor_each) == pytest.approx(1)
    assert concentration(one_factor_each.T) < 0.8
    assert concentration(torch.zeros(3, 2)) == concentration(torch.zeros(2, 3)) == 0


def test_dci_is_near_that_of_exact_trees():
    """scikit-learn's gradient boosting has importances of its own; histograms move them, here by up to 0.1."""
    labels, noise = draw_factors((3, 4), 1500), torch.randn(1500, 4, generator=seeded(3))
    first, second = labels.T.float()
    codes = torch.stack([first, first, second, first + second], 1) + 0.6 * noise
    needs, right = [], []
    for known in labels.T:
        model = GradientBoostingClassifier(random_state=0).fit(codes[:1000].numpy(), known[:1000].numpy())
        needs.append(model.feature_importances_)
        right.append(model.score(codes[1000:].numpy(), known[1000:].numpy()))
    found = metrics.dci(codes[:1000], labels[:1000], codes[1000:], labels[1000:])
    apart, whole = scores_of(np.array(needs).T)
    assert found.disentanglement == pytest.approx(apart, abs=0.12)
    assert found.completeness == pytest.approx(whole, abs=0.12)
    assert found.informativeness == pytest.approx(np.mean(right), abs=0.03)
    assert apart - whole > 0.2, "else the two could be exchanged unseen"


def test_dci_of_known_codes():
    labels = draw_factors((3, 4), 900)
    codes = metrics.reference_codes((3, 4), 4, generator=seeded())
    points = {
        name: (code(labels)[:600], labels[:600], code(labels)[600:], labels[600:]) for name, code in codes.items()
    }
    perfect, constant, random = (metrics.dci(*points[name]) for name in ("perfect", "constant", "random"))
    assert perfect == metrics.Dci(pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6), 1.0)
    assert (constant.disentanglement, constant.completeness) == (0, 0)
    assert constant.informativeness == pytest.approx(7 / 24, abs=0.1)
    assert max(random.disentanglement, random.completeness) < 0.03
    one = metrics.dci(*(part[:, :1] if part.is_floating_point() else part for part in points["perfect"]))
    assert one.completeness == pytest.approx(1)
    still = torch.cat([labels, torch.zeros_like(labels[:, :1])], 1)
    assert (
        metrics.dci(codes["perfect"](labels)[:600], still[:600], codes["perfect"](labels)[600:], still[600:]) == perfect
    )


@pytest.mark.parametrize("still", [0, 1])
def test_dci_of_one_varying_factor_is_that_of_a_second_factor_without_importances(still):
    """Its entropy over the factors is 0, and so is log F: the limit of the definition is 1 for any importances."""
    labels = draw_factors((4,), 900)
    noise = torch.randn(900, 3, generator=seeded(5))
    perfect = torch.cat([labels.float(), noise[:, :1]], 1)
    twice = torch.cat([labels, labels], 1).float() + 0.05 * noise[:, :2]
    labels = torch.cat([labels, torch.zeros(900, still, dtype=labels.dtype)], 1)
    score = lambda codes: metrics.dci(codes[:600], labels[:600], codes[600:], labels[600:])  # noqa: E731
    assert score(perfect) == metrics.Dci(pytest.approx(1, abs=1e-6), pytest.approx(1, abs=0.02), 1.0)
    spread = score(twice)
    assert spread.disentanglement == pytest.approx(1, abs=1e-6)
    assert spread.completeness < 0.9, "completeness tells one latent from two"
    assert (score(torch.zeros(900, 3)).disentanglement, score(torch.zeros(900, 3)).completeness) == (0, 0)


def sap_in_loops(train_codes, train_labels, test_codes, test_labels):
    gaps = []
    for f in range(train_labels.shape[1]):
        right = []
        for k in range(train_codes.shape[1]):
            model = LinearSVC(C=0.01, class_weight="balanced", dual=True, max_iter=100_000, tol=1e-6, random_state=3)
            model.fit(train_codes[:, [k]].double().numpy(), train_labels[:, f].numpy())
            guess = model.predict(test_codes[:, [k]].double().numpy())
            right.append(np.mean(guess == test_labels[:, f].numpy()))
        gaps.append(sorted(right)[-1] - sorted(right)[-2])
    return np.mean(gaps)


def test_sap_is_that_of_lines_in_loops():
    """Values of unequal frequency, so that it matters how classes are weighed."""
    labels = draw_factors((3, 12), 900)
    labels[:, 1] = (labels[:, 1] > 8).long() + (labels[:, 1] > 10).long()
    codes = mix_factors(labels, 3)
    points = (codes[:600], labels[:600], codes[600:], labels[600:])
    assert metrics.sap_score(*points) == pytest.approx(sap_in_loops(*points), abs=0.004)
    assert metrics.sap_score(*points) > 0.02


def test_sap_of_known_codes():
    labels = draw_factors((3, 6, 8), 900)
    codes = metrics.reference_codes((3, 6, 8), 4, generator=seeded())
    points = {
        name: (code(labels)[:600], labels[:600], code(labels)[600:], labels[600:]) for name, code in codes.items()
    }
    score = {name: metrics.sap_score(*points[name]) for name in points}
    assert score["constant"] == 0
    assert score["random"] < 0.05
    assert score["random"] < score["rotated"] < score["perfect"]
    twice = metrics.sap_score(*(part.repeat(1, 2) if part.is_floating_point() else part for part in points["perfect"]))
    assert twice == 0
    alone = [part[:, :1] for part in points["perfect"]]
    padded = [torch.cat([p, 0 * p], 1) if p.is_floating_point() else p for p in alone]
    assert metrics.sap_score(*alone) == pytest.approx(sap_in_loops(*padded), abs=0.004)


def test_class_mismatch_is_half_the_sum_of_differences():
    found, expected = torch.tensor([3, 3, 1, 0]), torch.tensor([0, 1, 2, 3, 4])
    counts = [Counter(known.tolist()) for known in (found, expected)]
    by_hand = sum(abs(counts[0][c] / 4 - counts[1][c] / 5) for c in range(5)) / 2
    assert metrics.class_mismatch(found, expected) == pytest.approx(by_hand)
    assert metrics.class_mismatch(expected, expected) == 0
    assert metrics.class_mismatch(torch.tensor([7]), expected) == 1


def test_the_mismatch_of_sampling_alone_is_known():
    """E |X / M - p| of binomial X, summed over classes."""
    classes, M = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]), 15
    k = np.arange(M + 1)
    expected = sum((scipy_stats.binom.pmf(k, M, p) * abs(k / M - p)).sum() for p in (0.3, 0.2, 0.5)) / 2
    found = [metrics.sampling_mismatch(classes, M, generator=seeded(seed)) for seed in range(100)]
    stats.assert_mean_equal(found, expected, discrepancy=0.01)


def test_svm_error_with_all_labels_is_that_of_one_machine():
    classes = draw_factors((3,), 400)[:, 0]
    codes = torch.randn(400, 4, generator=seeded()) + classes[:, None]
    model = SVC().fit(codes[:300].numpy(), classes[:300].numpy())
    expected = np.mean(model.predict(codes[300:].numpy()) != classes[300:].numpy())
    points = (codes[:300], classes[:300], codes[300:], classes[300:])
    assert metrics.svm_error(*points, labels=300, repeats=2, generator=seeded()) == (pytest.approx(expected), 0)
    few, stderr = metrics.svm_error(*points, labels=9, generator=seeded())
    generator, errors = seeded(), []
    for _ in range(10):
        rows = draw_balanced(classes[:300], 9, generator)
        guess = SVC().fit(codes[rows].numpy(), classes[rows].numpy()).predict(codes[300:].numpy())
        errors.append(np.mean(guess != classes[300:].numpy()))
    assert expected < few < 0.6
    assert (few, stderr) == pytest.approx((np.mean(errors), scipy_stats.sem(errors)), abs=1e-9)
    told = torch.nn.functional.one_hot(classes).float()
    assert metrics.svm_error(told[:300], classes[:300], told[300:], classes[300:], labels=9, generator=seeded())[0] == 0


def test_few_labels_are_shared_among_the_classes():
    classes = torch.tensor([0] * 50 + [1] * 50 + [2] * 4)
    draws = [draw_balanced(classes, 21, seeded(seed)) for seed in range(3)]
    for rows in draws:
        assert len(rows.unique()) == 21
        assert sorted(classes[rows].bincount().tolist()) == [4, 8, 9]
    assert not draws[0].equal(draws[1])


def test_rotated_codes_are_a_rotation_of_all_factors():
    every = torch.cartesian_prod(*(torch.arange(size) for size in (3, 4, 5))).long()
    rotated = metrics.reference_codes((3, 4, 5), 2)["rotated"](every).double()
    covariance = torch.cov(rotated.T, correction=0)
    assert torch.allclose(covariance, torch.eye(3, dtype=torch.float64), atol=1e-6)
    correlation = torch.corrcoef(torch.cat([rotated.T, every.T.double()]))[:3, 3:].abs()
    assert (correlation > 0.1).all()
