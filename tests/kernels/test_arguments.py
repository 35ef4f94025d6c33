"""What the public functions refuse, and that they say what was required and what arrived."""

import pytest
import torch

from vaebench import kernels
from vaebench.kernels import log_aggregate, mmd2, normal_noise, reparam_kl

X = torch.zeros(6, 3)
KNOWN = ("reference", "eager", "numba")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reparam_kl(X, torch.zeros(6, 4)), r"one shape \(B, \.\.\.\), got \(6, 3\) and \(6, 4\)"),
        (lambda: reparam_kl(torch.zeros(()), torch.zeros(())), r"one shape \(B, \.\.\.\), got \(\) and \(\)"),
        (lambda: reparam_kl(X.int(), X.int()), r"mu must have a dtype of float16, .*float64, got torch\.int32"),
        (lambda: reparam_kl(X, X.double()), r"logvar must be torch\.float32 on cpu like mu, got torch\.float64 on cpu"),
        (lambda: reparam_kl(X, X.to("meta")), r"logvar must be torch\.float32 on cpu like mu, got .* on meta"),
        (lambda: reparam_kl(X, X, reduction="mean"), r"reduction must be one of sample, none, dim, batch, got 'mean'"),
        (lambda: reparam_kl(X, X, seed=torch.zeros(4, dtype=torch.int64)), r"divides the 6 rows, got 4"),
        (lambda: reparam_kl(X, X, seed=torch.zeros(2)), r"seed must be int64 .*got torch\.float32 of shape \(2,\)"),
        (lambda: reparam_kl(X, X, seed=torch.zeros(0, dtype=torch.int64)), r"seed must be int64 with one value"),
        (lambda: reparam_kl(X, X, seed=2**63), r"seed must fit in 64 bits, .*got 9223372036854775808"),
        (lambda: reparam_kl(X, X, seed=1, generator=torch.Generator()), r"seed and generator both say"),
        (lambda: reparam_kl(X, X, generator=[torch.Generator()] * 4), r"divides the 6 rows, got 4"),
        (lambda: reparam_kl(X, X, generator=[]), r"one or a number of them that divides the 6 rows, got 0"),
        (lambda: reparam_kl(X, X, backend="cuda"), r"backend 'cuda' cannot run reparam_kl: .*choose from reference"),
        (lambda: mmd2(X, torch.zeros(6, 4)), r"\(N, K\) and \(M, K\) with one K, got \(6, 3\) and \(6, 4\)"),
        (lambda: mmd2(X[0], X[0]), r"\(N, K\) and \(M, K\) with one K, got \(3,\) and \(3,\)"),
        (lambda: mmd2(X[:1], X), r"estimator 'u' needs at least 2 rows in x and in y, got 1 and 6"),
        (lambda: mmd2(X, X, kernel="linear"), r"kernel must be one of imq, rbf, got 'linear'"),
        (lambda: mmd2(X, X, estimator="w"), r"estimator must be one of u, v, got 'w'"),
        (lambda: mmd2(X, X, bandwidth=0.0), r"bandwidth must be a positive finite number .*got 0\.0"),
        (lambda: mmd2(X, X, bandwidth=True), r"bandwidth must be a positive finite number .*got True"),
        (lambda: mmd2(X, X, bandwidth=()), r"bandwidth must be a positive finite number .*got \(\)"),
        (lambda: mmd2(X, X, bandwidth=(1.0, float("nan"))), r"bandwidth must be a positive finite number"),
        (lambda: log_aggregate(X, X[:, :2], X[:, :2]), r"z must be \(B, K\) and mu, logvar \(N, K\)"),
        (lambda: log_aggregate(X, X[:0], X[:0]), r"with N >= 1, got \(6, 3\), \(0, 3\) and \(0, 3\)"),
        (
            lambda: log_aggregate(X, X, X, log_weights=torch.zeros(5)),
            r"log_weights must be \(6,\) or \(6, 6\), got \(5,\)",
        ),
        (
            lambda: log_aggregate(X, X, X, log_weights=torch.zeros(6, dtype=torch.int64)),
            r"log_weights must be floating point on cpu, got torch\.int64",
        ),
        (
            lambda: log_aggregate(X, X, X, log_weights=torch.zeros(6, requires_grad=True)),
            r"log_weights is a constant: .*detach\(\)",
        ),
        (lambda: normal_noise(0, ()), r"shape must be \(B, \.\.\.\), whole numbers and none negative, got \(\)"),
        (lambda: normal_noise(0, (3, -1)), r"none negative, got \(3, -1\)"),
        (lambda: normal_noise(0, (2.7, 3)), r"whole numbers and none negative, got \(2\.7, 3\)"),
        (lambda: normal_noise(0, (True, 3)), r"whole numbers and none negative, got \(True, 3\)"),
        (lambda: normal_noise(0, b"ab"), r"whole numbers and none negative, got b'ab'"),
        (lambda: mmd2(X, X, bandwidth=10**400), r"bandwidth must be a positive finite number"),
        (lambda: normal_noise(0, 5), r"shape must be \(B, \.\.\.\), .*got 5"),
        (lambda: normal_noise(0, (3,), dtype=torch.int64), r"dtype must be one of float16, .*got torch\.int64"),
    ],
)
def test_values_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reparam_kl([0.0], [0.0]), r"mu must be a tensor, got list"),
        (lambda: mmd2(X, 3), r"y must be a tensor, got int"),
        (lambda: log_aggregate(X, X, X, log_weights=[0.0] * 6), r"log_weights must be a tensor, got list"),
        (lambda: reparam_kl(X, X, generator=5), r"generator must be a torch\.Generator or several of them, got int"),
        (lambda: reparam_kl(X, X, generator=[5]), r"generator must be a torch\.Generator or .*, got one int"),
        (lambda: normal_noise(1.5, (3,)), r"seed must be an int or an int64 tensor, got float"),
        (lambda: normal_noise(True, (3,)), r"seed must be an int or an int64 tensor, got bool"),
    ],
)
def test_types_that_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("op", ["reparam_kl", "mmd2", "log_aggregate"])
def test_auto_on_a_cpu_is_numba(op):
    cpu = torch.device("cpu")
    assert kernels.backends.resolve(op, "auto", cpu) is kernels.backends.resolve(op, "numba", cpu)
    assert set(KNOWN) <= set(kernels.backends.runnable(op, cpu))
