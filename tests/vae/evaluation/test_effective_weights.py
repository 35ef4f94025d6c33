"""Ten losses that people published wrongly, written from their descriptions, and fourteen right ones."""

import math
import re

import pytest
import torch
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from vaebench import kernels
from vaebench.vae import InputError
from vaebench.vae.evaluation.effective_weights import effective_weights
from vaebench.vae.prob.aggregate import stratified_log_weights

B, D, K, N = 8, 21, 5, 1000
X = torch.rand(B, D, generator=torch.Generator().manual_seed(0))


class Model:
    def encode(self, x):
        return x[:, :K], x[:, :K]

    def decode(self, z):
        return z.repeat(1, D)[:, :D]


def kl(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - logvar.exp())


def bce(output, x, reduction="sum"):
    return F.binary_cross_entropy(output, x, reduction=reduction)


def decomposed(z, mu, logvar, log_weights, tc):
    """MI + tc TC + the marginals' KL, summed over the batch."""
    joint, marginals = kernels.log_aggregate(z, mu, logvar, log_weights=log_weights)
    conditional = Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(1)
    product, prior = marginals.sum(1), -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
    return ((conditional - joint) + tc * (joint - product) + (product - prior)).sum()


def to_prior(z):
    prior = torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=z.dtype)
    return kernels.mmd2(z, prior)


def drawn_kl(z, mu, logvar, prior=1.0):
    """log q(z|x) - log p(z), whose mean over z is the KL."""
    return (Normal(mu, torch.exp(logvar / 2)).log_prob(z) - prior * Normal(0.0, 1.0).log_prob(z)).sum()


def info_vae(output, x, mu, logvar, z, alpha, lambda_):
    return (bce(output, x) + (1 - alpha) * kl(mu, logvar).sum()) / len(x) + (alpha + lambda_ - 1) * to_prior(z)


def warmed_up(output, x, mu, logvar, step, epochs):
    return (bce(output, x) + min(1.0, (step + 1) / epochs) * kl(mu, logvar).sum()) / len(x)


def in_cycles(output, x, mu, logvar, step, length):
    return (bce(output, x) + 2 * min(0.5, step % length / length) * kl(mu, logvar).sum()) / len(x)


GAUSSIAN = {"likelihood": "gaussian"}
WRONG = {
    "sign of the KL": (lambda o, x, m, v: (bce(o, x) - kl(m, v).sum()) / len(x), {}, "the wrong sign", -1.0),
    "mean over pixels": (
        lambda o, x, m, v: bce(o, x, "mean") + kl(m, v).sum(1).mean(),
        {},
        f"likelihood is averaged over its {D} elements, and the KL is not",
        D,
    ),
    "coefficient not applied": (lambda o, x, m, v: bce(o, x) / len(x) + 0 * kl(m, v).sum(), {}, "no weight", 0.0),
    "warm-up longer than training": (
        lambda o, x, m, v, step: warmed_up(o, x, m, v, step, 400),
        {"steps": 100},
        "warm-up does not end: at the last step the KL has 0.25",
        1.0,
    ),
    "mean over latents": (
        lambda o, x, m, v: bce(o, x) / len(x) + kl(m, v).mean(),
        {},
        f"KL is averaged over its {K} latents",
        1 / K,
    ),
    "batch twice": (
        lambda o, x, m, v: bce(o, x) / len(x) + kl(m, v).sum(1).mean() / len(x),
        {},
        "divided by the size of the batch once more",
        1 / B,
    ),
    "weight batch / N": (
        lambda o, x, m, v: bce(o, x) / len(x) + len(x) / N * kl(m, v).sum(1).mean(),
        {"data_size": N},
        f"grows with the size of the batch.*divided by the {N} examples",
        B / N,
    ),
    "minibatch weights": (
        lambda o, x, m, v, z: (bce(o, x) + decomposed(z, m, v, None, 6.0)) / len(x),
        {"data_size": N},
        "equal weights of the minibatch.*can come out negative",
        1.0,
    ),
    "reward of mismatch": (
        lambda o, x, m, v, z: info_vae(o, x, m, v, z, 0.0, 0.5),
        {},
        "rewards a mismatch between q.z. and p.z.",
        1.0,
    ),
    "Gaussian without 1 / (2 sigma^2)": (
        lambda o, x, m, v: ((o - x).square().sum() + kl(m, v).sum()) / len(x),
        GAUSSIAN,
        "lacks the factor 1 / .2 sigma",
        0.5,
    ),
}
RIGHT = {
    "mean over the batch": (lambda o, x, m, v: (bce(o, x) + kl(m, v).sum()) / len(x), {}),
    "sum over the batch": (lambda o, x, m, v: bce(o, x) + kl(m, v).sum(), {}),
    "mean over all, twice": (lambda o, x, m, v: bce(o, x, "mean") + kl(m, v).mean() * K / D, {}),
    "logits": (
        lambda o, x, m, v: F.binary_cross_entropy_with_logits(o, x, reduction="sum") + kl(m, v).sum(),
        {"likelihood": "bernoulli_logits"},
    ),
    "Gaussian": (lambda o, x, m, v: 0.5 * (o - x).square().sum() + kl(m, v).sum(), GAUSSIAN),
    "Gaussian, sigma 0.1": (
        lambda o, x, m, v: -Normal(o, 0.1).log_prob(x).sum() + kl(m, v).sum(),
        {**GAUSSIAN, "sigma": 0.1},
    ),
    "beta 4": (lambda o, x, m, v: (bce(o, x) + 4 * kl(m, v).sum()) / len(x), {"beta": 4.0}),
    "warm-up that ends": (lambda o, x, m, v, step: warmed_up(o, x, m, v, step, 50), {"steps": 100}),
    "cycles": (lambda o, x, m, v, step: in_cycles(o, x, m, v, step, 25), {"steps": 100}),
    "no KL": (lambda o, x, m, v: bce(o, x) + 0 * kl(m, v).sum(), {"beta": 0.0}),
    "drawn KL": (lambda o, x, m, v, z: (bce(o, x) + drawn_kl(z, m, v)) / len(x), {}),
    "drawn KL, beta 4, N known": (
        lambda o, x, m, v, z: (bce(o, x) + 4 * drawn_kl(z, m, v)) / len(x),
        {"beta": 4.0, "data_size": N},
    ),
    "InfoVAE": (lambda o, x, m, v, z: info_vae(o, x, m, v, z, 0.5, 10.0), {"beta": 0.5}),
    "stratified weights": (
        lambda o, x, m, v, z: (
            (bce(o, x) + decomposed(z, m, v, stratified_log_weights(len(x), N).double(), 6.0)) / len(x)
        ),
        {"data_size": N},
    ),
}


@pytest.mark.parametrize(("loss", "claim", "sentence", "weight"), WRONG.values(), ids=WRONG)
def test_a_wrong_loss_is_named(loss, claim, sentence, weight):
    found = effective_weights(Model(), loss, X, **claim)
    assert re.search(sentence, "; ".join(found.warnings))
    assert found.kl == pytest.approx(weight, rel=1e-6, abs=1e-9)
    others = [words for _, _, words, _ in WRONG.values() if words != sentence]
    assert not [words for words in others if re.search(words, "; ".join(found.warnings))]


@pytest.mark.parametrize(("loss", "claim"), RIGHT.values(), ids=RIGHT)
def test_a_right_loss_is_not_accused(loss, claim):
    found = effective_weights(Model(), loss, X, **claim)
    assert found.warnings == ()
    assert found.kl == pytest.approx(claim.get("beta", 1.0), rel=1e-6)
    assert found.kl_at_end == pytest.approx(found.kl)


# what divides by a weight that is 0
WITHOUT = {
    "no likelihood": (lambda o, x, m, v: kl(m, v).sum(), {}, "no gradient of the loss reaches the decoder's output"),
    "claims no KL": (lambda o, x, m, v: bce(o, x) + 3 * kl(m, v).sum(), {"beta": 0.0}, "has the weight 3, and .* none"),
    "KL of large batches": (
        lambda o, x, m, v: bce(o, x) + (len(x) == B) * kl(m, v).sum(),
        {},
        f"no weight in a batch of {B // 2}, and one in another",
    ),
    "KL that is switched off": (
        lambda o, x, m, v, step: bce(o, x) + (step < 1000) * kl(m, v).sum(),
        {"steps": 100},
        "is 1 at the last step, and does not stay",
    ),
}


@pytest.mark.parametrize(("loss", "claim", "sentence"), WITHOUT.values(), ids=WITHOUT)
def test_a_weight_of_0_has_a_sentence(loss, claim, sentence):
    assert re.search(sentence, effective_weights(Model(), loss, X, **claim).warnings[-1])


def test_a_drawn_kl_from_another_prior_is_none():
    found = effective_weights(Model(), lambda o, x, m, v, z: bce(o, x) + drawn_kl(z, m, v, prior=0.5), X)
    assert found.warnings == ("the term of mu and logvar is not KL(N(mu, exp(logvar)) || N(0, I))",)


@pytest.mark.parametrize("wrap", [lambda q: q, lambda q: Independent(q, 1)], ids=["Normal", "Independent"])
def test_an_encoder_may_return_a_distribution(wrap):
    class OfDistributions(Model):
        def encode(self, x):
            return wrap(Normal(x[:, :K], 1.0))

    assert effective_weights(OfDistributions(), RIGHT["mean over the batch"][0], X).warnings == ()


def test_two_mistakes_have_two_sentences():
    found = effective_weights(Model(), lambda o, x, m, v: F.mse_loss(o, x) + kl(m, v).sum(1).mean(), X, **GAUSSIAN)
    assert found.kl == pytest.approx(D / 2)
    assert found.warnings == (
        f"the likelihood is averaged over its {D} elements, and the KL is not",
        "the squared error lacks the factor 1 / (2 sigma^2) of a Gaussian likelihood",
    )


def test_parts_that_are_not_what_they_claim_to_be():
    def loss(output, x, mu, logvar):
        return (output - x).abs().sum() + (mu**2 + logvar**2).sum()

    assert [words[:25] for words in effective_weights(Model(), loss, X).warnings[:2]] == [
        "the reconstruction is not",
        "the term of mu and logvar",
    ]


def test_what_is_missing_is_said():
    with pytest.raises(InputError, match="at least 4 examples, got 2"):
        effective_weights(Model(), RIGHT["Gaussian"][0], X[:2])
    with pytest.raises(InputError, match="needs steps"):
        effective_weights(Model(), RIGHT["warm-up that ends"][0], X)
    with pytest.raises(InputError, match=r"needs data_size for a loss that estimates q.z. from a batch"):
        effective_weights(Model(), RIGHT["stratified weights"][0], X)
