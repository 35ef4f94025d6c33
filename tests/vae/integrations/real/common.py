"""What holds of a patched model of any library: the losses and gradients of the unpatched one, for the same noise."""

import copy
import io
import pickle

import pytest
import torch

from vaebench import kernels
from vaebench.vae import patch
from vaebench.vae.integrations import Patched

STEPS = 100
# Rounding grows along a training, since each step starts from the weights of the step before.
FIRST, LATER = {"rtol": 1e-5, "atol": 1e-6}, {"rtol": 2e-3, "atol": 1e-4}


def kernel_noise(shape, dtype=torch.float32, device=None, **_):
    """Return the noise of the kernel, for a seed drawn as the kernel draws its own."""
    return kernels.normal_noise(torch.randint(2**63 - 1, (1,)), tuple(shape), dtype=dtype)


def train(model, loss, *, steps=STEPS):
    """Return the losses of a training, and the gradients of its first step."""
    torch.manual_seed(1)
    optimizer, losses, gradients = torch.optim.Adam(model.parameters(), 1e-3), [], None
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        value = loss(model)
        value.backward()
        losses.append(value.item())
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    return losses, gradients


def assert_same_training(make, loss, monkeypatch, noise, part=lambda model: model):
    """Train a patched model, and one whose library draws the kernel's noise at the places that `noise` lists."""
    patched, plain = make(), make()
    handle = patch(patched)
    losses, gradients = train(part(patched), loss)
    with monkeypatch.context() as context:
        for owner, name, function in noise:
            context.setattr(owner, name, function)
        expected_losses, expected_gradients = train(part(plain), loss)
    assert expected_losses[-1] < expected_losses[0]
    assert gradients.keys() == expected_gradients.keys()
    assert any(gradient.any() for gradient in gradients.values())
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6 * largest)
    torch.testing.assert_close(losses[0], expected_losses[0], **FIRST)
    torch.testing.assert_close(losses, expected_losses, **LATER)
    handle.restore()
    assert_unpatched(part(patched), loss, monkeypatch, noise)


def assert_unpatched(model, loss, monkeypatch, noise):
    """A restored model draws the library's noise again."""
    calls = []
    with monkeypatch.context() as context:
        for owner, name, function in noise:
            context.setattr(owner, name, lambda *a, function=function, **k: (calls.append(1), function(*a, **k))[1])
        loss(model)
    assert calls


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def assert_stored_and_copied(make, loss, duplicates=(copy.deepcopy, pickled)):
    """The weights of a patched model load into a plain one, and copies are patched with objects of their own."""
    model, other = make(), make()
    patch(model)
    train(model, loss, steps=2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight)
    for duplicate in duplicates:
        twin = duplicate(model)
        torch.manual_seed(3)
        expected = loss(model).item()
        torch.manual_seed(3)
        torch.testing.assert_close(loss(twin).item(), expected)
        with torch.no_grad():
            next(twin.parameters()).add_(1.0)
        torch.manual_seed(3)
        assert loss(twin).item() != expected
        Patched.of(twin).restore()
        assert Patched.of(model) is not None


def assert_compiled(make, loss, **options):
    """A patched model compiles where a plain one does, to the same loss and gradients as without a compiler."""
    torch._dynamo.reset()
    try:
        torch.compile(loss, backend="aot_eager", **options)(make())
    except Exception as error:
        pytest.skip(f"unpatched, it does not compile either: {error}")
    model = make()
    patch(model)
    values = []
    for function in (loss, torch.compile(loss, backend="aot_eager", **options)):
        torch.manual_seed(4)
        value = function(model)
        values.append((value, torch.autograd.grad(value, list(model.parameters()), allow_unused=True)))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def assert_saved_by_the_library(make, loader, folder):
    """Save a patched model by its own method, and load it by the library's class for models of any kind."""
    model = make()
    patch(model)
    model.save(folder)
    again = loader.load_from_folder(folder)
    assert type(again) is type(model)
    torch.testing.assert_close(again.state_dict(), model.state_dict())
