"""How a backend is held to the float64 reference: its error may be at most twice that of eager in the same dtype."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def seeded(*shape, seed=0, dtype=torch.float64, scale=1.0, shift=0.0):
    """Return scaled and shifted normals from a generator of their own."""
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (drawn * scale + shift).to(dtype)


def values_and_gradients(function, inputs, upstream_seed=7):
    """Return the outputs and the gradients of all inputs under random upstream gradients, in float64."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [seeded(*out.shape, seed=upstream_seed + i).to(out) for i, out in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    return [tensor.detach().double() for tensor in (*outputs, *gradients)]


def assert_no_worse_than_twice_eager(run, cases, dtype, backend="numba"):
    """Hold `run(backend, *case)` to `run("reference", *case)`, pooling the errors of all cases for each output.

    The root mean square error may be twice eager's, and one rounding of the output, since eager's may be zero. In
    float64 the reference is no better than what it judges: there, 1e-13 of the output or of 1 is allowed, and the
    baseline, eager, is itself held to 1e-9.
    """
    results = {name: [run(name, *case) for case in cases] for name in (backend, "eager", "reference")}
    outputs = {name: zip(*found, strict=True) for name, found in results.items()}
    for i, parts in enumerate(zip(outputs[backend], outputs["eager"], outputs["reference"], strict=True)):
        found, eager, reference = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in parts)
        assert [t.shape for t in parts[0]] == [t.shape for t in parts[2]]
        if dtype == torch.float64:
            assert torch.allclose(found, reference, rtol=1e-13, atol=1e-13), f"output {i}"
            assert torch.allclose(eager, reference, rtol=1e-9, atol=1e-9), f"eager's output {i}"
        else:
            allowed = 2 * _rms(eager - reference) + torch.finfo(dtype).eps * _rms(reference)
            assert _rms(found - reference) <= allowed, f"output {i}: {_rms(found - reference):.3g} > {allowed:.3g}"


def assert_second_derivatives_are_refused(function, inputs):
    """To each input alone, by autograd and by torch.func; after a plain sum too, whose gradient has no derivative."""
    for i, power in itertools.product(range(len(inputs)), (1, 2)):

        def loss(x, i=i, power=power):
            return _total(function(*inputs[:i], x, *inputs[i + 1 :]), power)

        x = inputs[i].detach().requires_grad_()
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            first.sum().backward()
        (recomputed,) = torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), x, create_graph=True)
        assert recomputed.mul_(2).equal(2 * first)
        gradient = torch.func.grad(loss)
        for second in (torch.func.grad(lambda x, gradient=gradient: gradient(x).sum()), torch.func.jacrev(gradient)):
            with pytest.raises(RuntimeError, match="second derivative"):
                second(inputs[i])


def assert_compiled_transforms_are_right_or_refused(function, inputs):
    """Where the compiler looks into an autograd function, as that of torch 2.11 does, its gradient would be zero."""
    gradient = torch.func.grad(lambda *x: _total(function(*x), 1))
    try:
        found = torch.compile(gradient, fullgraph=True, backend="aot_eager")(*inputs)
    except RuntimeError as error:
        assert "lost the gradient" in str(error)  # noqa: PT017
    else:
        assert torch.allclose(found, gradient(*inputs))


def _total(outputs, power):
    return sum(out.pow(power).sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,)))


def _rms(x):
    return x.square().mean().sqrt().item() if x.numel() else 0.0


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
