"""Models that others have written, in plain torch, measured as our own: against closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Normal

from tests import linear_vae, stats
from tests.exact_models import generator
from vaebench.vae.config.run import Run
from vaebench.vae.data import from_tensors
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.enclosure import enclose, simulate
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.model.adapted import AdaptedModel


def adapted(model, count=4):
    x, _ = model.ppca.sample(count, generator(5))
    return AdaptedModel(model.eval(), x.float())


def test_log_p_of_a_linear_model_is_exact():
    model = linear_vae.correlated()
    x, _ = model.ppca.sample(20, generator(0))
    found = model_log_likelihood(adapted(model), x.float(), generator=generator(1))
    assert bool(found.passed.all())
    torch.testing.assert_close(found.value.double(), model.ppca.log_prob(x), rtol=0, atol=2e-3)


def test_elbo_rate_and_active_units_are_those_of_the_closed_form():
    """ELBO = log p(x) - KL(q || posterior), whose mean over data of the model is known."""
    model = linear_vae.narrow()
    x, _ = model.ppca.sample(6000, generator(0))
    splits = from_tensors(x[:2000].float(), x[2000:2100].float(), x[2000:].float())
    config = Run().replace({"eval.examples": 50, "eval.codes": 2000, "eval.labels": "none"})
    config = config.replace({"train.precision": "float32"})
    found = measure(adapted(model), splits, config)
    mu, logvar = model.encode(x[2000:].float())
    rate = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1).mean().item()
    assert found["test/rate"] == pytest.approx(rate, rel=1e-4)
    assert found["latent/active_units"] == 3
    log_px = model.ppca.log_prob(x[2000:])
    assert found["test/elbo"] == pytest.approx(log_px.mean().item() - model.amortisation_gap(), abs=0.1)
    assert "test/bits_per_dim" not in found


def test_the_enclosure_of_an_adapted_model_holds_the_truth():
    model = linear_vae.exact()
    found = enclose(adapted(model), 64, seed=3, temperatures=10, chains=4)
    low, high = found.interval
    x, _ = simulate(adapted(model), torch.zeros(64, 3), torch.Generator().manual_seed(0))
    assert x.shape == (64, 6)
    expected = -0.5 * (6 * math.log(2 * math.pi * math.e) + model.ppca.marginal().covariance.logdet().item())
    assert found.estimate.stderr.max() < 1e-3
    assert high - low < 0.5
    assert abs(found.estimate.mean()[0] - expected) < 5 * math.sqrt(3 / 64)  # the variance of log p(x) is D / 2


def test_samples_follow_the_model_and_their_generator_alone():
    model = linear_vae.exact()
    wrapped = adapted(model)
    before = torch.get_rng_state()
    x = wrapped.sample(20_000, generator(0))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(x[:10], wrapped.sample(20_000, generator(0))[:10])
    assert not torch.equal(x, wrapped.sample(20_000, generator(1)))
    centred = (x - model.ppca.mean).double()
    stats.assert_mean_equal(centred.square(), model.ppca.marginal().covariance.diagonal(), discrepancy=1.0)


class Bits:
    """Grey pixels as probabilities, with codes of two axes and images whose distribution is flat."""

    def encode(self, x):
        return Independent(Normal(x[:, 0, :2, :2], 0.5 * torch.ones(2, 2)), 2)

    def decode(self, z):
        return Bernoulli(logits=z.flatten(1).repeat(1, 4))


def test_codes_and_examples_have_any_shape():
    bits = (torch.rand(10, 1, 4, 4, generator=generator(0)) < 0.5).float()
    model = AdaptedModel(Bits(), bits, levels=2)
    assert (model.latent, model.code_shape, model.layout) == (4, (2, 2), (16,))
    assert model.likelihood.discrete
    z = torch.randn(7, 10, 4, generator=generator(1))
    p = model.decode(z)
    by_hand = Bernoulli(logits=z.repeat(1, 1, 4)).log_prob(bits.flatten(1)).sum(-1)
    torch.testing.assert_close(p.log_prob(bits), by_hand)
    torch.testing.assert_close(p.log_prob_elementwise(bits).flatten(2).sum(-1), by_hand)
    assert p.sample(generator(2)).shape == p.mean.shape == (7, 10, 1, 4, 4)
    assert model.encode(bits).logvar[0, 0] == pytest.approx(2 * math.log(0.5))


class Counted(nn.Module):
    """A model with one covariate, the last column: the mean of x."""

    def encode(self, x):
        return x[:, :1], torch.zeros(len(x), 1)

    def decode(self, z, given):
        return Normal((z + given).expand(-1, 3), 1.0)


def test_covariates_are_given_and_come_back_in_samples():
    bank = torch.tensor([[10.0], [20.0]])
    x = torch.cat([torch.randn(6, 3, generator=generator(0)), torch.arange(6.0)[:, None]], dim=1)
    model = AdaptedModel(Counted(), x, covariates=bank)
    z = torch.randn(5, 6, 1, generator=generator(1))
    by_hand = Normal(z + x[:, 3:], 1.0).log_prob(x[:, :3]).sum(-1)
    torch.testing.assert_close(model.decode(z).log_prob(x), by_hand)
    drawn = model.sample(4, generator(2))
    assert drawn[:, 3].tolist() == [10, 20, 10, 20]
    assert (drawn[1] > 12).all()
    found = model_log_likelihood(model, x, generator=generator(3))
    covariance = torch.ones(3, 3) + torch.eye(3)
    exact = MultivariateNormal(x[:, 3:].expand(-1, 3), covariance).log_prob(x[:, :3])
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-3)


class CountedBits(Counted):
    """The same with bits for data."""

    def decode(self, z, given):
        return Bernoulli(logits=(z + given).expand(-1, 3))


def test_bits_per_dimension_are_not_told_of_data_with_covariates():
    """The likelihood is of three of the four columns."""
    x = torch.tensor([[0.0, 1.0, 1.0, 0.5]]).expand(6, -1)
    model = AdaptedModel(CountedBits(), x, levels=2, covariates=x[:, 3:])
    assert not model.likelihood.discrete


def test_codes_that_are_no_numbers_raise_no_error_and_checks_are_left_as_they_were():
    model = AdaptedModel(Bits(), torch.zeros(3, 1, 4, 4), levels=2)
    before = Distribution._validate_args
    found = model.decode(torch.full((3, 4), torch.nan)).log_prob(torch.zeros(3, 1, 4, 4))
    assert found.isnan().all()
    assert Distribution._validate_args == before


class Noisy(nn.Module):
    def __init__(self, p_of=None):
        super().__init__()
        self.drop, self.p_of = nn.Dropout(), p_of

    def encode(self, x):
        mu = x if self.p_of else self.drop(x)
        return mu, torch.zeros_like(x)

    def decode(self, z):
        return self.p_of(z) if self.p_of else Normal(z, 1.0)


class Unsampled(Distribution):
    def __init__(self, z):
        super().__init__(z.shape[:1], z.shape[1:], validate_args=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Noisy(), r"Noisy\.encode\(x\) must give the same q\(z\|x\) each time; put the model into eval mode\."),
        (Noisy(lambda z: Bernoulli(probs=z)), r"Noisy\.decode fails on a tensor \(B, 2\): Expected parameter probs"),
        (Noisy(lambda z: Bernoulli(probs=z, validate_args=False)), r"decode\(z\)\.sample fails on a tensor \(B, 2\)"),
        (Noisy(Unsampled), r"Noisy\.decode\(z\)\.sample fails on a tensor \(B, 2\): NotImplementedError"),
    ],
)
def test_what_would_fail_later_is_one_sentence(model, message):
    with pytest.raises(InputError, match=message) as refusal:
        AdaptedModel(model, torch.full((3, 2), 2.0))
    assert "\n" not in str(refusal.value)


class Attentive(nn.Module):
    """A decoder with attention, whose fused kernel for CPUs has no second derivatives."""

    def encode(self, x):
        return x[:, :2], torch.zeros(len(x), 2)

    def decode(self, z):
        h = z.reshape(len(z), 1, 2, 1).expand(-1, 1, 2, 4)
        return Normal(nn.functional.scaled_dot_product_attention(h, h, h).flatten(1), 1.0)


def test_decoders_with_attention_have_the_curvature_that_an_estimate_needs():
    x = torch.randn(3, 8, generator=generator(0))
    found = model_log_likelihood(AdaptedModel(Attentive(), x), x, generator=generator(1))
    assert bool(found.passed.all())


class Given:
    """A model that returns what it is given."""

    def __init__(self, encoded, decoded=None):
        self.encoded, self.decoded = encoded, decoded

    def encode(self, x):
        return self.encoded

    def decode(self, z):
        if isinstance(self.decoded, Exception):
            raise self.decoded
        return self.decoded


CODE = torch.zeros(3, 2)
CORRELATED = MultivariateNormal(CODE, torch.eye(2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Given(CODE), "encode must return (mu, logvar), or a Normal or an Independent(Normal)"),
        (Given(CORRELATED), "a Gaussian with a diagonal covariance; got MultivariateNormal."),
        (Given((CODE, CODE[:, :1])), "mu and logvar of one shape (B, K), got (3, 2) and (3, 1)."),
        (Given((CODE, CODE), CODE), "must return a distribution of torch.distributions over x, got Tensor."),
        (Given((CODE, CODE), Normal(CODE, 1.0)), "a distribution over (3, 4) for 3 codes, got one over (3, 2)."),
        (Given((CODE, CODE), Bernoulli(logits=torch.zeros(3, 4))), "p(x|z) is Bernoulli, which gives some values"),
        (Given((CODE, CODE), ValueError("too few\nrows")), "Given.decode fails on a tensor (B, 2): too few."),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(source, message):
    with pytest.raises(InputError) as caught:
        AdaptedModel(source, torch.full((3, 4), 0.3))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
