"""Autocast changes no result and no gradient of a backend, except of eager, which is textbook code and follows it."""

import pytest
import torch

from tests.kernel_checks import seeded
from vaebench import kernels

X, Y = seeded(64, 32, dtype=torch.float32), seeded(64, 32, seed=1, dtype=torch.float32)
LARGE = seeded(600, 32, seed=2, dtype=torch.float32), seeded(600, 32, seed=3, dtype=torch.float32)
OPERATIONS = {
    "reparam_kl": lambda x, y, backend: sum(r.sum() for r in kernels.reparam_kl(x, y, seed=1, backend=backend)),
    "mmd2, imq": lambda x, y, backend: kernels.mmd2(x, y, backend=backend),
    "mmd2, rbf": lambda x, y, backend: kernels.mmd2(x, y, kernel="rbf", estimator="v", backend=backend),
    "log_aggregate": lambda x, y, backend: sum(r.sum() for r in kernels.log_aggregate(x, y, y / 2, backend=backend)),
}


def evaluate(function, x, y):
    """Return the value and both gradients. Forward and backward run under autocast if it is on."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = function(x, y)
    return value, *torch.autograd.grad(value.sum(), (x, y))


def assert_autocast_changes_nothing(function, x, y):
    expected = evaluate(function, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(function, x, y)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("samples", [(X, Y), LARGE], ids=["small", "large"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_value_and_gradients(operation, backend, samples):
    assert_autocast_changes_nothing(lambda x, y: OPERATIONS[operation](x, y, backend), *samples)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_within_vmap(operation):
    function = torch.func.vmap(lambda x, y: OPERATIONS[operation](x, y, "numba"))
    assert_autocast_changes_nothing(function, X.view(4, 16, 32), Y.view(4, 16, 32))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_compiled(operation):
    def function(x, y):
        return OPERATIONS[operation](x, y, "numba")

    def under_autocast(x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return function(x, y)

    expected = evaluate(torch.compile(function, fullgraph=True, backend="aot_eager"), X, Y)
    compiled = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, evaluate(compiled, X, Y), expected))
