"""The adapters on look-alikes of other people's autoencoders: under one seed, the same numbers and gradients."""

import copy
import io
import pickle
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from vaebench import kernels
from vaebench.vae import integrations


def noise_like(x):
    """Return the kernel's noise, in place of torch.randn_like: a function of one seed of torch's generator."""
    return kernels.normal_noise(torch.randint(2**63 - 1, (1,)), tuple(x.shape), dtype=x.dtype)


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


class GaussianOfMoments:
    """The distribution of latent-diffusion autoencoders."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self):
        return self.mean + self.std * noise_like(self.mean)

    def kl(self):
        return 0.5 * torch.sum(self.mean**2 + self.var - 1.0 - self.logvar, dim=[1, 2, 3])

    def mode(self):
        return self.mean


class LatentDiffusionAutoencoder(nn.Module):
    def __init__(self, wrapped):
        super().__init__()
        self.encoder, self.decoder, self.wrapped = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(4, 3, 1), wrapped

    def encode(self, x):
        posterior = GaussianOfMoments(self.encoder(x))
        return SimpleNamespace(latent_dist=posterior) if self.wrapped else posterior


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
    fused = integrations.patch(model)
    assert fused.kl is None
    torch.manual_seed(2)
    expected, mu, logvar = plain(x)
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    torch.manual_seed(2)
    reconstruction, _, _ = model(x)
    torch.testing.assert_close(reconstruction, expected)
    torch.testing.assert_close(fused.kl, kl)
    assert_same_gradients(plain, model, [(expected**2).sum() + kl.sum(), (reconstruction**2).sum() + fused.kl.sum()])


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "latent_dist"])
def test_a_model_that_encodes_to_packed_moments(wrapped):
    plain, model = (initialised(lambda: LatentDiffusionAutoencoder(wrapped)) for _ in range(2))
    integrations.patch(model)
    x = torch.randn(2, 3, 8, 8)
    expected, posterior = posterior_of(plain, x), posterior_of(model, x)
    assert isinstance(posterior, integrations.Posterior)
    for name in ("mean", "logvar", "std", "var", "parameters"):
        torch.testing.assert_close(getattr(posterior, name), getattr(expected, name))
    assert posterior.mode().equal(expected.mode())
    torch.manual_seed(2)
    right = expected.sample()
    torch.manual_seed(2)
    z = posterior.sample()
    torch.testing.assert_close(z, right)
    torch.testing.assert_close(posterior.kl(), expected.kl())
    losses = [(right**2).sum() + expected.kl().sum(), (z**2).sum() + posterior.kl().sum()]
    assert_same_gradients(plain, model, losses)


def test_each_sample_is_a_new_one_and_the_kl_needs_none():
    moments = torch.randn(2, 8, 3, 3)
    posterior = integrations.Posterior(moments)
    torch.testing.assert_close(posterior.kl(), GaussianOfMoments(moments).kl())
    assert not posterior.sample().equal(posterior.sample())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kl_before_a_sample_draws_nothing(dtype):
    moments = torch.randn(2, 8, 3, 3).to(dtype).requires_grad_()
    before = torch.get_rng_state()
    kl = integrations.Posterior(moments).kl()
    assert torch.get_rng_state().equal(before)
    _, expected = kernels.reparam_kl(*moments.chunk(2, 1))
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), moments), torch.autograd.grad(expected.sum(), moments))


def test_a_sample_and_its_kl_are_one_call_of_the_kernel():
    posterior = integrations.Posterior(torch.randn(2, 8, 3, 3))
    with mock.patch.object(kernels, "reparam_kl", wraps=kernels.reparam_kl) as kernel:
        posterior.sample()
        assert posterior.kl() is posterior.kl()
        assert kernel.call_count == 1
        posterior.sample()
        posterior.kl()
        assert kernel.call_count == 2


def test_two_samples_and_the_kl_have_gradients_together():
    moments = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for posterior in (integrations.Posterior(moments), GaussianOfMoments(moments)):
        torch.manual_seed(2)
        loss = posterior.sample().square().sum() + posterior.sample().pow(3).sum() + posterior.kl().sum()
        gradients.append(torch.autograd.grad(loss, moments))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_the_kl_has_gradients_after_a_sample_without_them(without_gradients):
    moments = torch.randn(2, 8, 3, 3, requires_grad=True)
    posterior = integrations.Posterior(moments)
    with without_gradients():
        posterior.sample()
    (gradient,) = torch.autograd.grad(posterior.kl().sum(), moments)
    torch.testing.assert_close(gradient, torch.cat([posterior.mean, posterior.logvar.expm1() / 2], 1))


def test_restore_gives_the_model_its_own_method_back():
    model = TextbookVAE()
    own = model.reparameterize
    fused = integrations.patch(model)
    assert model.reparameterize != own
    fused.restore()
    assert model.reparameterize == own


def test_restore_may_be_called_again():
    model = TextbookVAE()
    fused = integrations.patch(model)
    fused.restore()
    fused.restore()
    again = integrations.patch(model)
    fused.restore()
    model.reparameterize(torch.zeros(3, 2), torch.zeros(3, 2))
    assert fused.kl is None
    assert again.kl.equal(torch.zeros(3))


def test_restore_gives_back_a_method_that_was_set_on_the_model_itself():
    model = TextbookVAE()
    model.reparameterize = own = lambda mu, logvar: mu
    integrations.patch(model).restore()
    assert model.reparameterize is own


def test_a_module_that_is_called_encode_keeps_its_weights():
    model = nn.Module()
    model.encode = own = nn.Sequential(nn.Conv2d(3, 8, 2, 2))
    model.encode.register_forward_hook(lambda module, inputs, output: GaussianOfMoments(output))
    fused = integrations.patch(model)
    assert isinstance(model.encode(torch.randn(2, 3, 8, 8)), integrations.Posterior)
    assert list(model.state_dict()) == ["encode.0.weight", "encode.0.bias"]
    fused.restore()
    assert model.encode is own


def test_a_second_patch_is_refused():
    model = TextbookVAE()
    fused = integrations.patch(model)
    with pytest.raises(ValueError, match=r"this TextbookVAE is: model\.reparameterize is what patch returned"):
        integrations.patch(model)
    assert model.reparameterize is fused


def test_a_copy_of_a_patched_model_reports_into_a_handle_of_its_own():
    model, x = TextbookVAE(), torch.randn(5, 6)
    fused = integrations.patch(model)
    model(x)
    kept = fused.kl
    average = torch.optim.swa_utils.AveragedModel(model)
    copied = average.module.reparameterize
    assert copied.kl is None
    _, mu, logvar = average(x[:3])
    assert fused.kl is kept
    torch.testing.assert_close(copied.kl, -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1))
    copied.restore()
    assert model.reparameterize is fused
    assert not isinstance(average.module.reparameterize, integrations.Patched)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_patched_model_encodes_with_its_own_weights(duplicate):
    model, x = LatentDiffusionAutoencoder(wrapped=True), torch.randn(2, 3, 8, 8)
    integrations.patch(model)
    copied = duplicate(model)
    with torch.no_grad():
        copied.encoder.weight.add_(1.0)
    torch.testing.assert_close(posterior_of(copied, x).parameters, copied.encoder(x))
    torch.testing.assert_close(posterior_of(model, x).parameters, model.encoder(x))


def test_the_weights_of_a_patched_model_are_stored_as_of_any():
    plain, model = initialised(TextbookVAE), initialised(TextbookVAE)
    integrations.patch(model)
    model(torch.randn(5, 6))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert list(stored) == list(plain.state_dict())
    torch.testing.assert_close(stored, dict(plain.state_dict()))


def test_models_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="Linear has neither"):
        integrations.patch(nn.Linear(2, 2))
    model = SimpleNamespace(encode=lambda x: x)
    integrations.patch(model)
    with pytest.raises(TypeError, match=r"as \.parameters or \.latent_dist\.parameters, got Tensor"):
        model.encode(torch.zeros(2))


def encoder_to(distribution):
    """Return a patched model whose encode returns that."""
    model = SimpleNamespace(encode=lambda x: distribution)
    integrations.patch(model)
    return model


def test_a_distribution_in_a_tuple_is_replaced_there():
    (posterior,) = encoder_to((GaussianOfMoments(torch.randn(2, 8, 3, 3)),)).encode(None)
    assert isinstance(posterior, integrations.Posterior)


def test_a_distribution_that_does_not_draw_is_left_as_it_is():
    distribution = GaussianOfMoments(torch.randn(2, 8, 3, 3))
    distribution.deterministic = True
    assert encoder_to(distribution).encode(None) is distribution
    wrapped = SimpleNamespace(latent_dist=distribution)
    assert encoder_to(wrapped).encode(None).latent_dist is distribution


def test_moments_with_another_scale_than_logvar_are_refused():
    distribution = GaussianOfMoments(torch.randn(2, 8, 3, 3))
    distribution.scale = distribution.std
    with pytest.raises(
        TypeError, match="needs moments that are mu and logvar, got GaussianOfMoments, which has a scale"
    ):
        encoder_to(distribution).encode(None)


def test_patched_models_stacked_under_vmap_draw_and_measure_each_on_its_own():
    models, x = [initialised(TextbookVAE) for _ in range(3)], torch.randn(5, 6)
    for model, shift in zip(models, range(3), strict=True):
        integrations.patch(model)
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
    integrations.patch(model)

    def loss(weights, x):
        posterior = torch.func.functional_call(model, weights, (x[None],))
        return 0 * posterior.sample().sum() + posterior.kl().sum()

    model.forward = model.encode
    weights = dict(model.named_parameters())
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(weights, x)
    expected = torch.autograd.grad(GaussianOfMoments(model.encoder(x)).kl().sum(), model.encoder.weight)
    torch.testing.assert_close(gradients["encoder.weight"].sum(0), *expected)


@pytest.mark.parametrize(("shape", "dim"), [((5, 8), -1), ((3, 6, 2, 2), 1), ((3, 4, 6), -1)])
def test_halves_are_chunks_whose_gradients_are_joined_without_a_copy(shape, dim):
    h, h2 = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    parts, chunks = integrations.halves(h, dim), h2.chunk(2, dim)
    for part, chunk in zip(parts, chunks, strict=True):
        assert part.equal(chunk)
        assert part.data_ptr() - h.data_ptr() == chunk.data_ptr() - h2.data_ptr()
    apart = [torch.randn_like(part) for part in parts]
    (joined,), (expected,) = (torch.autograd.grad(p, x, apart) for p, x in ((parts, h), (chunks, h2)))
    assert joined.equal(expected)
    together = torch.randn(shape)
    (same,) = torch.autograd.grad(integrations.halves(h, dim), h, together.chunk(2, dim))
    assert same.equal(together)
    assert same.data_ptr() == together.data_ptr()


def test_halves_can_be_differentiated_twice():
    h = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(torch.cat(integrations.halves(h), -1).pow(3).sum(), h, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), h)
    torch.testing.assert_close((first, second), (3 * h**2, 6 * h))
    assert torch.autograd.gradgradcheck(lambda h: [part.pow(3) for part in integrations.halves(h)], h)


@pytest.mark.parametrize("dim", [-1, 0])
def test_halves_under_function_transforms(dim):
    h = torch.randn(3, 4, 6, dtype=torch.float64)

    def cubes(h):
        first, second = integrations.halves(h, dim)
        return (first**3).sum() + 2 * (second**3).sum()

    weight = torch.cat([torch.full_like(half, w) for w, half in zip((1, 2), h[0].chunk(2, dim), strict=True)], dim)
    torch.testing.assert_close(torch.func.vmap(cubes)(h), (weight * h**3).sum((1, 2)))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cubes))(h), 3 * weight * h**2)
    torch.testing.assert_close(torch.func.vmap(cubes, in_dims=1)(h.movedim(0, 1)), (weight * h**3).sum((1, 2)))
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(cubes))(h[0]).sum((2, 3)), 6 * weight * h[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:FutureWarning")  # torch's own, in its first jvp
def test_halves_of_a_dual_tensor():
    h, direction = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    values, slopes = torch.func.jvp(lambda h: [part**3 for part in integrations.halves(h)], (h,), (direction,))
    torch.testing.assert_close(torch.cat(values, -1), h**3)
    torch.testing.assert_close(torch.cat(slopes, -1), 3 * h**2 * direction)
    each = torch.func.vmap(lambda h, d: torch.func.jvp(integrations.halves, (h,), (d,))[1])(h, direction)
    torch.testing.assert_close(torch.cat(each, -1), direction)


def test_halves_of_a_batch_of_gradients():
    h, gradients = torch.randn(3, 4, requires_grad=True), torch.randn(5, 3, 4)
    (joined,) = torch.autograd.grad(integrations.halves(h), h, gradients.chunk(2, -1), is_grads_batched=True)
    assert joined.equal(gradients)


def test_halves_that_lie_in_one_buffer_the_other_way_round_are_copied():
    h, gradient = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    first, second = gradient.chunk(2, -1)
    (joined,) = torch.autograd.grad(integrations.halves(h), h, (second, first))
    assert joined.equal(torch.cat([second, first], -1))


def test_an_odd_number_of_moments_is_refused():
    with pytest.raises(ValueError, match="an even number of entries along dim 1, got 3"):
        integrations.halves(torch.zeros(2, 3), 1)
