"""What every model offers to whoever uses it after training: samples, reconstructions, codes."""

import numpy as np
import pytest
import torch

from vaebench.vae import model as models
from vaebench.vae.config.run import Model
from vaebench.vae.errors import InputError

SHAPE, LEVELS = (1, 4, 4), 8
KINDS = {
    "vae": Model(hidden=(8,), latent=2),
    "flow prior": Model(hidden=(8,), latent=2, prior="flow"),
    "flow posterior": Model(hidden=(8,), latent=2, posterior="iaf"),
    "coupling": Model(kind="coupling", hidden=(8,), flow_layers=2),
    "autoregressive": Model(kind="autoregressive", hidden=(8,), flow_layers=1),
}


@pytest.fixture(params=KINDS)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build(KINDS[request.param], SHAPE, LEVELS).eval()


def examples(count=6):
    levels = torch.randint(LEVELS, (count, *SHAPE), generator=torch.Generator().manual_seed(0))
    return levels / (LEVELS - 1)


def test_samples_are_levels_without_gradients_from_the_generator_that_is_given_or_torchs_own(model):
    drawn = model.sample(5)
    assert drawn.shape == (5, *SHAPE)
    assert torch.equal(drawn, (drawn * (LEVELS - 1)).round() / (LEVELS - 1))
    assert not drawn.requires_grad
    first, again = (model.sample(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = model.sample(5)
        torch.manual_seed(1)
        assert torch.equal(model.sample(5), first)


def test_a_linear_vae_reconstructs_by_its_two_matrices():
    model = models.build(Model(network="linear", latent=3, likelihood="gaussian"), SHAPE, 0)
    x = examples()
    encoder, decoder = model.encoder.mu, model.decoder[0]
    weight, bias, out, shift = (
        parameter.detach().numpy() for parameter in (encoder.weight, encoder.bias, decoder.weight, decoder.bias)
    )
    expected = (x.flatten(1).numpy() @ weight.T + bias) @ out.T + shift
    found = model.reconstruct(x)
    assert not found.requires_grad
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(x).mu.detach().numpy(), x.flatten(1).numpy() @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_flow_encodes_to_a_point_and_reconstructs_what_it_was_given(kind):
    model, x = models.build(KINDS[kind], SHAPE, LEVELS).eval(), examples()
    q = model.encode(x)
    assert q.mu.shape == (6, 16)
    assert torch.equal(q.sample(), q.mu)
    assert torch.allclose(model.reconstruct(x), x, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "arrived"),
    [
        (examples()[0], r"torch\.float32 of shape \(1, 4, 4\)"),
        (examples().flatten(1), r"torch\.float32 of shape \(6, 16\)"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), r"torch\.uint8 of shape \(2, 1, 4, 4\)"),
        (examples().numpy(), "ndarray"),
    ],
)
def test_other_inputs_are_one_sentence(model, x, arrived):
    for use in (model.encode, model.reconstruct):
        with pytest.raises(InputError, match=rf"x must be a tensor of floats \(B, 1, 4, 4\), .*, got {arrived}\.$"):
            use(x)
