"""`patch` on look-alikes of other people's autoencoders: under one seed, the same numbers and gradients."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.distributions as dist
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence, normal

from tests.kernels.adapters.lookalikes import GaussianOfMoments, noise_like
from vaebench.kernels.adapters import FusedMoments, FusedNormal
from vaebench.vae import InputError
from vaebench.vae.integrations import Patched, patch


class TextbookVAE(nn.Module):
    """The VAE of most tutorials: forward returns the reconstruction with mu and logvar, the loss recomputes the KL."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(4, 6)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        return mu + std * noise_like(std)

    def forward(self, x):
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return self.decoder(self.reparameterize(mu, logvar)), mu, logvar


class LatentDiffusionAutoencoder(nn.Module):
    def __init__(self, wrapped):
        super().__init__()
        self.encoder, self.decoder, self.wrapped = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(4, 3, 1), wrapped

    def encode(self, x):
        posterior = GaussianOfMoments(self.encoder(x))
        return SimpleNamespace(latent_dist=posterior) if self.wrapped else posterior


class VAEOfDistributions(nn.Module):
    """A VAE on torch.distributions that draws in its forward pass; `Normal` is imported by name."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x):
        mu, raw = self.encoder(x).chunk(2, -1)
        q = Normal(mu, nn.functional.softplus(raw) + 1e-3)
        z = q.rsample()
        return Normal(self.decoder(z), 0.5).log_prob(x).sum(-1) - kl_divergence(q, self.prior(z)).sum(-1)

    def prior(self, z):
        return Normal(torch.zeros_like(z), torch.ones_like(z))


class VAEOfModule(VAEOfDistributions):
    """The same with `import torch.distributions as dist`."""

    def forward(self, x):
        mu, raw = self.encoder(x).chunk(2, -1)
        q = dist.Normal(mu, nn.functional.softplus(raw) + 1e-3)
        z = q.rsample()
        return dist.Normal(self.decoder(z), 0.5).log_prob(x).sum(-1) - dist.kl_divergence(q, self.prior(z)).sum(-1)


class VAEThatEncodes(VAEOfDistributions):
    """The same with an `encode` that spells the class out, so that only its result can be replaced."""

    def encode(self, x):
        mu, raw = self.encoder(x).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mu, nn.functional.softplus(raw) + 1e-3), 1)

    def forward(self, x):
        q = self.encode(x)
        z = q.rsample()
        p = torch.distributions.Independent(torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z)), 1)
        decoded = torch.distributions.Normal(self.decoder(z), 0.5)
        return decoded.log_prob(x).sum(-1) - torch.distributions.kl_divergence(q, p)

    prior = None


def initialised(build):
    torch.manual_seed(1)
    return build()


def posterior_of(model, x):
    encoded = model.encode(x)
    return encoded.latent_dist if model.wrapped else encoded


def assert_same_gradients(first, second, losses):
    for model, loss in zip((first, second), losses, strict=True):
        loss.backward()
        assert model.encoder.weight.grad.any()
    torch.testing.assert_close(first.encoder.weight.grad, second.encoder.weight.grad)


def test_a_model_that_draws_from_a_pair():
    plain, model, x = initialised(TextbookVAE), initialised(TextbookVAE), torch.randn(5, 6)
    patched = patch(model)
    assert patched.kl is None
    torch.manual_seed(2)
    expected, mu, logvar = plain(x)
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    torch.manual_seed(2)
    reconstruction, _, _ = model(x)
    torch.testing.assert_close(reconstruction, expected)
    torch.testing.assert_close(patched.kl, kl)
    losses = [(expected**2).sum() + kl.sum(), (reconstruction**2).sum() + patched.kl.sum()]
    assert_same_gradients(plain, model, losses)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "latent_dist"])
def test_a_model_that_encodes_to_packed_moments(wrapped):
    plain, model = (initialised(lambda: LatentDiffusionAutoencoder(wrapped)) for _ in range(2))
    patch(model)
    x = torch.randn(2, 3, 8, 8)
    expected, posterior = posterior_of(plain, x), posterior_of(model, x)
    assert isinstance(posterior, FusedMoments)
    assert isinstance(posterior, GaussianOfMoments)
    torch.manual_seed(2)
    right = expected.sample()
    torch.manual_seed(2)
    z = posterior.sample()
    torch.testing.assert_close(z, right)
    losses = [(right**2).sum() + expected.kl().sum(), (z**2).sum() + posterior.kl().sum()]
    assert_same_gradients(plain, model, losses)


@pytest.mark.parametrize("build", [VAEOfDistributions, VAEOfModule, VAEThatEncodes])
def test_a_model_on_torch_distributions(build, monkeypatch):
    plain, model, x = initialised(build), initialised(build), torch.randn(5, 6)
    taken, own = [], FusedNormal.take_kl
    monkeypatch.setattr(FusedNormal, "take_kl", lambda q: (taken.append(own(q)), taken[-1])[1])
    with patch(model):
        torch.manual_seed(2)
        elbo = model(x)
    assert [kl is not None for kl in taken] == [True]
    monkeypatch.setattr(normal, "_standard_normal", lambda shape, dtype, device: noise_like(torch.empty(shape)))
    torch.manual_seed(2)
    expected = plain(x)
    torch.testing.assert_close(elbo, expected)
    assert_same_gradients(plain, model, [expected.sum(), elbo.sum()])
    torch.manual_seed(2)
    torch.testing.assert_close(model(x), expected, msg="restored, it draws by torch's own Normal")


def test_a_method_that_asks_for_the_class_of_a_distribution_stays_as_it_is():
    class Asks(VAEOfDistributions):
        def prior(self, z):
            p = Normal(torch.zeros_like(z), torch.ones_like(z))
            assert isinstance(Independent(p, 1).base_dist, Normal)
            return p

    model = Asks()
    patch(model)
    assert "forward" in vars(model)
    assert "prior" not in vars(model)
    model(torch.randn(5, 6))


def test_the_end_of_a_block_and_restore_give_the_model_its_own_method_back():
    model = TextbookVAE()
    own = model.reparameterize
    with patch(model) as patched:
        assert model.reparameterize != own
    assert model.reparameterize == own
    patched.restore()
    again = patch(model)
    patched.restore()
    model.reparameterize(torch.zeros(3, 2), torch.zeros(3, 2))
    assert patched.kl is None
    assert again.kl.equal(torch.zeros(3))


def test_restore_gives_back_a_method_that_was_set_on_the_model_itself():
    model = TextbookVAE()
    model.reparameterize = own = lambda mu, logvar: mu + torch.exp(0.5 * logvar) * noise_like(mu)
    patch(model).restore()
    assert model.reparameterize is own


def test_a_module_that_is_called_encode_keeps_its_weights():
    model = nn.Module()
    model.encode = own = nn.Sequential(nn.Conv2d(3, 8, 2, 2))
    model.encode.register_forward_hook(lambda module, inputs, output: GaussianOfMoments(output))
    with patch(model):
        assert isinstance(model.encode(torch.randn(2, 3, 8, 8)), FusedMoments)
        assert list(model.state_dict()) == ["encode.0.weight", "encode.0.bias"]
    assert model.encode is own


def test_a_second_patch_is_refused():
    model = TextbookVAE()
    patched = patch(model)
    with pytest.raises(InputError, match="a model that is not patched, and this TextbookVAE is"):
        patch(model)
    assert Patched.of(model) is patched


def test_a_part_of_two_models_is_patched_by_one_of_them():
    a, b = nn.Module(), nn.Module()
    a.part = b.part = VAEOfDistributions()
    patched = patch(a)
    with pytest.raises(InputError, match=r"and the VAEOfDistributions of this Module is, as part of another model"):
        patch(b)
    assert Patched.of(b) is None
    patched.restore()
    assert "forward" not in vars(a.part)
    patch(b).restore()


def test_restore_leaves_what_was_set_since():
    model = TextbookVAE()
    patched = patch(model)
    model.reparameterize = own = lambda mu, logvar: mu
    patched.restore()
    assert model.reparameterize is own
    patched = patch(model := TextbookVAE())
    del model.reparameterize
    patched.restore()
    assert Patched.of(model) is None


def test_a_copy_of_a_patched_model_is_patched_with_an_object_of_its_own():
    model, x = TextbookVAE(), torch.randn(5, 6)
    patched = patch(model)
    model(x)
    kept = patched.kl
    average = torch.optim.swa_utils.AveragedModel(model)
    copied = Patched.of(average.module)
    assert copied.kl is None
    _, mu, logvar = average(x[:3])
    assert patched.kl is kept
    torch.testing.assert_close(copied.kl, -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1))
    copied.restore()
    assert Patched.of(model) is patched
    assert Patched.of(average.module) is None
    assert "reparameterize" not in vars(average.module)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("build", [VAEOfDistributions, VAEOfModule, TextbookVAE])
def test_a_copy_of_a_patched_model_has_its_own_weights(duplicate, build):
    model, x = build(), torch.randn(5, 6)
    patch(model)
    model(x)
    copied = duplicate(model)

    def result(one):
        torch.manual_seed(2)
        output = one(x)
        return output[0] if isinstance(output, tuple) else output

    expected = result(model)
    torch.testing.assert_close(result(copied), expected)
    with torch.no_grad():
        copied.decoder.weight.add_(1.0)
    assert not result(copied).equal(expected)
    torch.testing.assert_close(result(model), expected)
    Patched.of(copied).restore()
    assert Patched.of(model) is not None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_patched_model_encodes_with_its_own_weights(duplicate):
    model, x = LatentDiffusionAutoencoder(wrapped=True), torch.randn(2, 3, 8, 8)
    patch(model)
    model.encode(x)
    copied = duplicate(model)
    with torch.no_grad():
        copied.encoder.weight.add_(1.0)
    assert isinstance(posterior_of(copied, x), FusedMoments)
    torch.testing.assert_close(posterior_of(copied, x).parameters, copied.encoder(x))
    torch.testing.assert_close(posterior_of(model, x).parameters, model.encoder(x))


def test_the_weights_of_a_patched_model_are_stored_as_of_any():
    plain, model = initialised(TextbookVAE), initialised(TextbookVAE)
    patch(model)
    model(torch.randn(5, 6))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert list(stored) == list(plain.state_dict())
    torch.testing.assert_close(stored, dict(plain.state_dict()))


def test_models_of_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"nothing to replace in Linear; it looked for .*reparameterize.mu, logvar"):
        patch(nn.Linear(2, 2))


class AnotherKL(GaussianOfMoments):
    def kl(self, other=None):
        return 2 * super().kl(other)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ((torch.zeros(2, 3), torch.ones(2, 3)), "a method encode.x. that returns .*, and encode returned tuple"),
        (Independent(dist.Laplace(torch.zeros(2, 3), 1.0), 1), "and encode returned Laplace; it is returned as it is"),
        (AnotherKL(torch.randn(2, 8, 3, 3)), "AnotherKL cannot be drawn from by the kernel"),
    ],
    ids=["pair", "Laplace", "another KL"],
)
def test_what_is_not_served_is_returned_as_it_is(encoded, reason):
    model = encoder_to(encoded)
    with pytest.warns(UserWarning, match=reason):
        assert model.encode(None) is encoded
    assert model.encode(None) is encoded


def test_a_model_whose_draw_is_another_one_is_refused():
    model = TextbookVAE()
    model.reparameterize = lambda mu, logvar: mu + logvar.exp() * noise_like(mu)
    own = model.reparameterize
    with pytest.raises(InputError, match=r"^TextbookVAE: reparameterize.mu, spread. cannot be replaced: .*\.$"):
        patch(model)
    assert model.reparameterize is own


def encoder_to(distribution):
    """Return a patched model whose encode returns that."""
    model = SimpleNamespace(encode=lambda x: distribution)
    patch(model)
    return model


def test_a_distribution_in_a_tuple_is_replaced_there():
    (posterior,) = encoder_to((GaussianOfMoments(torch.randn(2, 8, 3, 3)),)).encode(None)
    assert isinstance(posterior, FusedMoments)


def test_a_distribution_that_does_not_draw_still_does_not():
    posterior = encoder_to(GaussianOfMoments(torch.randn(2, 8, 3, 3), deterministic=True)).encode(None)
    assert posterior.sample().equal(posterior.mean)


def test_patched_models_stacked_under_vmap_draw_and_measure_each_on_its_own():
    models, x = [initialised(TextbookVAE) for _ in range(3)], torch.randn(5, 6)
    for model, shift in zip(models, range(3), strict=True):
        patch(model)
        model.encoder.bias.data.add_(shift)
    weights, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def kl(weights, buffers):
        torch.func.functional_call(base, (weights, buffers), (x,))
        return base.reparameterize.kl

    together = torch.func.vmap(kl, randomness="different")(weights, buffers)
    for row, model in zip(together, models, strict=True):
        _, mu, logvar = model(x)
        torch.testing.assert_close(row, -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1))


def test_a_posterior_under_a_gradient_of_each_example():
    model, x = LatentDiffusionAutoencoder(wrapped=False), torch.randn(4, 3, 8, 8)
    patch(model)
    model.encode(x)  # the class of its posterior is probed at the first call

    def loss(weights, x):
        posterior = torch.func.functional_call(model, weights, (x[None],))
        return 0 * posterior.sample().sum() + posterior.kl().sum()

    model.forward = model.encode
    weights = dict(model.named_parameters())
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(weights, x)
    expected = torch.autograd.grad(GaussianOfMoments(model.encoder(x)).kl().sum(), model.encoder.weight)
    torch.testing.assert_close(gradients["encoder.weight"].sum(0), *expected)


def test_a_patched_model_compiles_as_one_graph():
    model, x = initialised(TextbookVAE), torch.randn(5, 6)
    patch(model)

    def loss(x):
        reconstruction, _, _ = model(x)
        return (reconstruction - x).square().sum() + model.reparameterize.kl.sum()

    values = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(2)
        value = function(x)
        values.append((value, torch.autograd.grad(value, model.encoder.weight)))
    torch.testing.assert_close(*values)


def test_it_has_a_short_name():
    import vaebench

    assert vaebench.patch is patch
    with pytest.raises(AttributeError, match="has no attribute 'patsh'"):
        _ = vaebench.patsh
