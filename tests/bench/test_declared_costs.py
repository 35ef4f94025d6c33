"""Bytes and flops that the benchmarks declare, held to programs that compute the operation and count what they do.

Each number of a program counts the operations on it. The results of the programs are those of the definition.
"""

import math
from collections import Counter

import pytest
import torch

from vaebench import kernels
from vaebench.bench.cases import kernel_cases

CPU = torch.device("cpu")
done = Counter()


class Number(float):
    """A float that counts each operation and function of it."""

    def _apply(self, value):
        done["flops"] += 1
        return Number(value)

    def __add__(self, other):
        return self._apply(float(self) + float(other))

    def __sub__(self, other):
        return self._apply(float(self) - float(other))

    def __mul__(self, other):
        return self._apply(float(self) * float(other))

    def __truediv__(self, other):
        return self._apply(float(self) / float(other))

    def exp(self):
        return self._apply(math.exp(self))

    def expm1(self):
        return self._apply(math.expm1(self))


def numbers(tensor):
    """Return a tensor as nested lists of numbers."""
    return [numbers(row) for row in tensor] if tensor.ndim else Number(tensor.item())


def count_reparam_kl(mu, logvar, eps, dz, dkl):
    """Return z, the KL and the gradients, an element at a time; what forward computed, backward computes again."""
    kl, found = Number(0.0), []
    for m, v, e, d in zip(mu, logvar, eps, dz, strict=True):
        z = m + (v * 0.5).exp() * e
        kl = kl + (m * m + v.expm1() - v) * 0.5
        from_z = (v * 0.5).exp() * e * d * 0.5
        found.append((z, d + dkl * m, from_z + dkl * v.expm1() * 0.5))
    return kl, *zip(*found, strict=True)


def squared_distance(a, b):
    total = Number(0.0)
    for one, other in zip(a, b, strict=True):
        difference = one - other
        total = total + difference * difference
    return total


def count_mmd2(x, y):
    """Return MMD^2 of the kernel c / (c + d^2) and its gradients, a pair of points at a time."""
    points, N, M, c = [*x, *y], len(x), len(y), Number(2.0 * len(x[0]))
    gradient = [[Number(0.0) for _ in point] for point in points]
    sums = dict.fromkeys(("xx", "yy", "xy"), Number(0.0))
    factors = {"xx": 2 / (N * (N - 1)), "yy": 2 / (M * (M - 1)), "xy": -2 / (N * M)}
    pairs = [(i, j) for i in range(N + M) for j in range(i)]
    kinds = ["xx" if i < N else "yy" if j >= N else "xy" for i, j in pairs]
    for (i, j), kind in zip(pairs, kinds, strict=True):  # the forward pass
        sums[kind] = sums[kind] + c / (c + squared_distance(points[i], points[j]))
    for (i, j), kind in zip(pairs, kinds, strict=True):  # the backward pass
        root = c / (c + squared_distance(points[i], points[j]))
        slope = root * root * Number(-2 / c * factors[kind])
        for k, (one, other) in enumerate(zip(points[i], points[j], strict=True)):
            step = slope * (one - other)
            gradient[i][k] = gradient[i][k] + step
            gradient[j][k] = gradient[j][k] - step
    total = sum(factors[kind] * float(value) for kind, value in sums.items())
    return total, gradient[:N], gradient[N:]


def count_log_aggregate(z, mu, logvar, upstream):
    """Return log q(z) jointly and per latent, and the gradients, with a loop over codes, posteriors and columns.

    Precisions and maxima are taken before the loops: they are numbers of posteriors and columns, or of codes and
    columns, and the declared flops are those of all three.
    """
    (B, K), N = (len(z), len(z[0])), len(mu)
    precision = [[math.exp(-value) for value in row] for row in logvar]
    constant = [[float(value) + math.log(2 * math.pi) for value in row] for row in logvar]
    z_mu = torch.tensor(z)[:, None] - torch.tensor(mu)
    known = -0.5 * (z_mu**2 * torch.tensor(precision) + torch.tensor(constant)) - math.log(N)
    largest = known.amax(1).tolist()

    def density(b, n, k):
        difference = z[b][k] - mu[n][k]
        square = difference * difference * precision[n][k]
        return difference, square, (square + constant[n][k]) * -0.5

    joints = [[Number(0.0)] * N for _ in range(B)]
    sums = [[Number(0.0)] * K for _ in range(B)]
    for b in range(B):
        for n in range(N):
            for k in range(K):
                log_q = density(b, n, k)[2]
                joints[b][n] = joints[b][n] + log_q
                sums[b][k] = sums[b][k] + (log_q - (largest[b][k] + math.log(N))).exp()
    marginals = [[math.log(s) + m for s, m in zip(*rows, strict=True)] for rows in zip(sums, largest, strict=True)]
    joint = torch.logsumexp(torch.tensor(joints) - math.log(N), 1)
    shares = torch.exp(torch.tensor(joints) - math.log(N) - joint[:, None]) * upstream[0][:, None]
    dz, dmu, dlogvar = ([[Number(0.0)] * K for _ in range(rows)] for rows in (B, N, N))
    for b in range(B):
        for n in range(N):
            for k in range(K):
                difference, square, log_q = density(b, n, k)
                share = (log_q - (marginals[b][k] + math.log(N))).exp() * float(upstream[1][b, k])
                share = share + float(shares[b, n])
                pull = share * difference * precision[n][k]
                dz[b][k] = dz[b][k] - pull
                dmu[n][k] = dmu[n][k] + pull
                dlogvar[n][k] = dlogvar[n][k] + share * (square - 1.0) * 0.5
    return joint, marginals, (dz, dmu, dlogvar)


def test_flops_of_reparam_kl_are_those_of_a_loop_over_elements():
    case = kernel_cases.reparam_kl((1, 9), torch.float64, CPU)
    eps = torch.linspace(-2, 2, 9, dtype=torch.float64)
    leaves = [x[0].clone().requires_grad_() for x in case.inputs]
    z = leaves[0] + torch.exp(leaves[1] / 2) * eps
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(leaves[0], torch.exp(leaves[1] / 2)), normal(0.0, 1.0)).sum()
    dz, dkl = case.upstream[0][0], case.upstream[1].double()
    gradients = torch.autograd.grad((z, kl), leaves, (dz, dkl[0]))
    done.clear()
    found = count_reparam_kl(*(numbers(x.detach()) for x in (*leaves, eps, dz)), Number(dkl.item()))
    for one, other in zip(found, (kl, z, *gradients), strict=True):
        torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other.detach())
    assert done["flops"] == pytest.approx(case.flops, rel=0.1)


@pytest.mark.parametrize("size", [(5, 4, 8), (3, 6, 16)])
def test_flops_of_mmd2_are_those_of_a_loop_over_pairs(size):
    case = kernel_cases.mmd2(size, torch.float64, CPU)
    outputs, gradients = case.expected
    done.clear()
    value, *found = count_mmd2(*(numbers(x) for x in case.inputs))
    assert value == pytest.approx(outputs[0].item())
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other)
    assert done["flops"] == pytest.approx(case.flops, rel=0.02)


@pytest.mark.parametrize("size", [(4, 6, 5), (3, 9, 2)])
def test_flops_of_log_aggregate_are_those_of_a_loop_over_codes_posteriors_and_columns(size):
    case = kernel_cases.log_aggregate(size, torch.float64, CPU)
    outputs, gradients = case.expected
    torch.set_default_dtype(torch.float64)
    try:
        done.clear()
        joint, marginals, found = count_log_aggregate(*(numbers(x) for x in case.inputs), case.upstream)
        counted = done["flops"]
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(joint, outputs[0])
    torch.testing.assert_close(torch.tensor(marginals, dtype=torch.float64), outputs[1])
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other)
    assert counted == pytest.approx(case.flops, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_mmd2_are_those_of_its_samples_and_their_gradients(dtype):
    """x and y are read by each pass; backward writes a gradient of each. What is a single number counts for nothing."""
    size = torch.finfo(dtype).bits // 8
    forward, backward = kernel_cases.mmd2((10, 20, 4), dtype, CPU).moved
    samples = (10 + 20) * 4 * size
    assert (forward, backward) == (samples, samples + samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_log_aggregate_are_those_of_what_each_pass_reads_and_writes(dtype):
    """Outputs and the gradients that arrive are float32 in any dtype, as the kernels return them."""
    B, N, K = 6, 10, 4
    size = torch.finfo(dtype).bits // 8
    case = kernel_cases.log_aggregate((B, N, K), dtype, CPU)
    outputs = kernels.log_aggregate(*case.inputs, backend="eager")
    inputs = (B * K + 2 * N * K) * size
    results = B * 4 + B * K * 4
    assert results == sum(output.nbytes for output in outputs)
    assert case.moved == (inputs + results, inputs + results + inputs + results)
