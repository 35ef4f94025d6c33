"""Convolutions: the recipe of the literature, examples that never meet, and the layout of their weights."""

import pytest
import torch
from torch import nn

from tests.exact_models import generator
from tests.vae.training.test_fit import StopEarlyError, stop_after
from vaebench.vae import model as models
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import from_tensors
from vaebench.vae.model import networks
from vaebench.vae.training.fit import fit
from vaebench.vae.training.state import State, _load_moments, _moments

LITERATURE = Model(network="conv", hidden=(32, 32, 64, 64), dense=(256,), latent=10, likelihood="bernoulli")


def seeded(config, shape, parameters=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build(config, shape, parameters)


def shapes(network, kind):
    return [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, kind)]


def test_the_networks_of_the_disentanglement_literature():
    """4x4 convolutions of stride 2 with 32, 32, 64, 64 channels, 256 units, the code; and back."""
    encoder, decoder = seeded(LITERATURE, (1, 64, 64))
    assert shapes(encoder, nn.Conv2d) == [(32, 1, 4, 4), (32, 32, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4)]
    assert shapes(encoder, nn.Linear) == [(256, 1024), (20, 256)]
    assert shapes(decoder, nn.Linear) == [(256, 10), (1024, 256)]
    assert shapes(decoder, nn.ConvTranspose2d) == [(64, 64, 4, 4), (64, 32, 4, 4), (32, 32, 4, 4), (32, 1, 4, 4)]
    strides = {layer.stride for layer in (*encoder, *decoder) if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)}
    assert strides == {(2, 2)}


@pytest.mark.parametrize("network", ["conv", "residual"])
def test_dense_layers_lie_between_convolutions_and_code(network):
    config = Model(network=network, hidden=(8,), dense=(30, 20), latent=3)
    encoder, decoder = seeded(config, (1, 8, 8), 2)
    assert shapes(encoder, nn.Linear) == [(30, 128), (20, 30), (6, 20)]
    assert shapes(decoder, nn.Linear) == [(20, 3), (30, 20), (128, 30)]


@pytest.mark.parametrize(
    ("name", "function"), [("silu", nn.functional.silu), ("relu", torch.relu), ("tanh", torch.tanh)]
)
def test_an_mlp_applies_its_activation_after_each_hidden_layer(name, function):
    encoder, decoder = seeded(Model(hidden=(8, 6), latent=3, activation=name), (5,))
    for network, x in (
        (encoder, torch.randn(4, 5, generator=generator(0))),
        (decoder, torch.randn(4, 3, generator=generator(1))),
    ):
        first, second, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
        assert torch.equal(network(x), last(function(second(function(first(x))))))


@pytest.mark.parametrize("network", ["mlp", "conv", "residual", "linear"])
def test_no_example_sees_another(network):
    """Training or not: the gradient of one output in the other examples is exactly zero."""
    encoder, decoder = seeded(Model(network=network, hidden=(8, 16), latent=3), (3, 32, 32), 2)
    x, z = torch.randn(4, 3, 32, 32, generator=generator(0)), torch.randn(4, 3, generator=generator(1))
    for module, inputs in ((encoder, x), (decoder, z)):
        module.train()
        inputs.requires_grad_()
        outputs = module(inputs)
        (gradient,) = torch.autograd.grad(outputs[1].square().sum(), inputs)
        assert gradient[1].abs().max() > 0
        assert not gradient[[0, 2, 3]].any()
        torch.testing.assert_close(outputs[1:2], module(inputs[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (8, 2), (12, 1), (16, 4), (24, 2), (32, 8), (64, 8)])
def test_residual_blocks_add_to_what_they_are_given(channels, groups):
    block = networks.Residual(channels)
    norms = [layer for layer in block.modules() if isinstance(layer, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups] * 2
    x = torch.randn(2, channels, 5, 5, generator=generator(0))
    assert not torch.equal(block(x), x)
    with torch.no_grad():
        block.branch[-1].weight.zero_()
        block.branch[-1].bias.zero_()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 32, 32)])
def test_a_residual_network_halves_to_four_and_mirrors(shape):
    encoder, decoder = seeded(Model(network="residual", hidden=(4, 8), latent=3), shape, 2)
    halvings = {64: 4, 32: 3}[shape[1]]
    blocks = [[layer for layer in module if isinstance(layer, networks.Residual)] for module in (encoder, decoder)]
    assert [len(found) for found in blocks] == [halvings] * 2
    assert decoder(torch.zeros(2, 3)).shape == (2, 2 * shape[0], *shape[1:])
    first, second = decoder(torch.randn(2, 3, generator=generator(0)))
    assert (first - second).abs().max() > 0.01, "the image depends on the code"


def test_channels_last_changes_no_result_but_the_last_digits():
    config = Model(network="residual", hidden=(8,), latent=3)
    encoder, decoder = seeded(config, (3, 32, 32), 2)
    x = torch.rand(2, 3, 32, 32, generator=generator(0))
    plain = decoder(encoder(x)[:, :3])
    for module in (encoder, decoder):
        module.to(memory_format=torch.channels_last)
    assert encoder[0](x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(decoder(encoder(x)[:, :3]), plain, rtol=1e-4, atol=1e-5)


def test_moments_come_back_in_the_layout_of_the_weights():
    """As the fused optimizer of a GPU requires."""
    model = models.build(Model(network="conv", hidden=(8,), latent=2), (1, 8, 8), 17).to(
        memory_format=torch.channels_last
    )
    state = State.start(model, Run(), torch.device("cpu"))
    for parameter in state.parameters:
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    kept = {name: t.contiguous().clone() for name, t in _moments(state.optimizer).items()}
    fresh = State.start(model, Run(), torch.device("cpu"))
    _load_moments(fresh.optimizer, kept)
    for parameter in state.parameters:
        for name, moment in fresh.optimizer.state[parameter].items():
            assert torch.equal(moment, state.optimizer.state[parameter][name])
            assert moment.stride() == (parameter.stride() if moment.ndim else ())


def test_a_model_stays_as_it_is_on_a_cpu():
    model = models.build(Model(network="conv", hidden=(8,), latent=2), (3, 8, 8), 17)
    before = [parameter.stride() for parameter in model.parameters()]
    assert models.move_to_device(model, torch.device("cpu")) is model
    assert [parameter.stride() for parameter in model.parameters()] == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_convolutions_lie_channels_last_on_a_gpu_and_are_gone_on_with(tmp_path):
    """Stopped after an epoch and taken up again, weights and moments have the layout that they had."""
    x = torch.randint(0, 17, (64, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    data = from_tensors(x, x, x, levels=17)
    config = Run(model=Model(network="residual", hidden=(8,)), train=Train(epochs=2, checkpoint_epochs=1))
    with pytest.raises(StopEarlyError):
        fit(config, data=data, folder=tmp_path, report=stop_after(1))
    result = fit(config, data=data, folder=tmp_path)
    layers = [layer for layer in result.model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) > 10
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in layers)
