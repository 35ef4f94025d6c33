"""The noise of the Triton kernels. tests/fused_checks.py has the command."""

import numpy as np
import pytest
import torch

from tests.fused_checks import (
    DEVICE,
    DTYPES,
    REDUCTIONS,
    fused,
    large,
    normals,
    randn,
    skip_module_without_triton,
    slow_interpreted,
    values_and_gradients,
)
from tests.noise_oracle import box_muller, philox
from tests.reparam_kl_oracle import upstream
from vaebench import kernels

skip_module_without_triton()
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
launch = pytest.importorskip("vaebench.kernels.gpu.reparam_kl_launch")
fused_noise = pytest.importorskip("vaebench.kernels.gpu.noise")
normal_noise = pytest.importorskip("vaebench.kernels.gpu.normal_noise")
TILINGS = [{"TILE_BYTES": 512}, {"TILE_BYTES": 16384}, {"WARP_BYTES": 128}, {"LONGEST_UNCUT_WALK": 1}]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, 0x1234_5678_9ABC_DEF0])
@pytest.mark.parametrize("columns", [1, 4, 31, 514])
def test_noise_is_box_muller_of_philox(seed, columns):
    rows, per_row = 70, -(-columns // 4)
    right = box_muller(philox(np.arange(rows * per_row), seed)).reshape(rows, -1)[:, :columns]
    assert np.abs(normals((rows, columns), seed).cpu().numpy() - right).max() < 2e-6


def test_noise_agrees_with_the_public_stream():
    shape = (64, 3, 37)
    assert (normals(shape).cpu() - kernels.normal_noise(7, shape, device="cpu")).abs().max() < 2e-6


@pytest.mark.parametrize("seeds", [[7], [7, -8, 2**40]])
@pytest.mark.parametrize("shape", [(6, 37), (9,), (3, 4, 8), (3, 1200), (0, 5), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_of_normal_noise_draws_what_reparam_kl_draws(dtype, shape, seeds):
    assert_the_same_draws(dtype, shape, seeds)


@slow_interpreted
@pytest.mark.parametrize("seeds", [[7], [7, -8, 2**40]])
def test_the_kernel_of_normal_noise_draws_the_same_in_long_rows(seeds):
    assert_the_same_draws(torch.float32, (3, 2**14), seeds)


def assert_the_same_draws(dtype, shape, seeds):
    seed, zeros = torch.tensor(seeds, device=DEVICE), torch.zeros(shape, device=DEVICE)
    drawn = normal_noise.normal(seed, shape, dtype)
    assert drawn.dtype == dtype
    assert drawn.equal(fused(zeros, zeros, seed=seed)[0].to(dtype))


@triton.jit
def box_muller_kernel(words, out, N: tl.constexpr):
    i = tl.arange(0, N)
    cosine, sine = fused_noise._box_muller(tl.load(words + 2 * i), tl.load(words + 2 * i + 1))
    tl.store(out + 2 * i, cosine)
    tl.store(out + 2 * i + 1, sine)


def test_normals_of_the_rarest_words():
    """u = 0, u at the floor, u next to 1 where its logarithm vanishes, and angles next to every eighth of a turn."""
    rare = [0, 1, 213, 214, 215, 216, 2**31 - 1, 2**31, 2**31 - 128, 2**31 - 2**20, 2**31 - 2**25, 2**32 - 1, 2**30]
    eighths = [max(0, q * 2**28 + d) for q in range(16) for d in (-2, -1, 0, 1, 2)]
    pairs = np.array([(a, b) for a in rare for b in rare + eighths], np.uint32)
    n = triton.next_power_of_2(len(pairs))
    words, out = np.resize(pairs, (n, 2)), torch.empty(n, 2, device=DEVICE)
    box_muller_kernel[(1,)](torch.from_numpy(words.view(np.int32)).to(DEVICE), out, n, enable_fp_fusion=False)
    right = box_muller(words.reshape(-1, 4)).reshape(-1, 2)
    assert np.abs(out.cpu().numpy() - right).max() < 2e-6


@triton.jit
def normals_kernel(key, counter, out, N: tl.constexpr, VECTOR: tl.constexpr):
    first = tl.load(counter + tl.arange(0, 1))[:, None]
    tl.store(out + tl.arange(0, N)[None, :], fused_noise.normal_tile(tl.load(key), first, N, VECTOR))


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("counter", [2**32 - 3, 2**40 + 5, 2**62])
def test_counters_have_64_bits(counter, vector):
    key, first = (torch.tensor([x], device=DEVICE) for x in (11, counter))
    out = torch.empty(64, device=DEVICE)
    normals_kernel[(1,)](key, first, out, 64, vector, enable_fp_fusion=False)
    right = box_muller(philox(np.arange(counter, counter + 16, dtype=np.uint64), 11)).reshape(-1)
    assert np.abs(out.cpu().numpy() - right).max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 50), *large((37, 24), (5, 1000))])
def test_every_tiling_gives_the_same_bits(monkeypatch, shape, dtype):
    mu, logvar = (randn(*shape, dtype=dtype, seed=i) for i in (3, 4))
    z, kl, dmu, dlogvar = values_and_gradients(mu, logvar, *upstream(mu, "sample"))
    for changes in TILINGS:
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setattr(launch, name, value)
            launch.choose_tiling.cache_clear()
            z2, kl2, dmu2, dlogvar2 = values_and_gradients(mu, logvar, *upstream(mu, "sample"))
        launch.choose_tiling.cache_clear()
        assert z.equal(z2)
        assert dmu.equal(dmu2)
        assert dlogvar.equal(dlogvar2)
        torch.testing.assert_close(kl, kl2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("columns", [10, 16])
def test_each_group_of_a_seed_draws_what_it_would_alone(columns, reduction):
    mu, logvar = randn(12, columns, seed=3), randn(12, columns, seed=4)
    dz, dkl = upstream(mu, reduction)
    seeds = torch.tensor([5, -9, 2**40], device=DEVICE)
    z, _, dmu, dlogvar = values_and_gradients(mu, logvar, dz, dkl, seed=seeds, reduction=reduction)
    for g in range(3):
        rows = slice(4 * g, 4 * g + 4)
        part = dkl[rows] if reduction in ("none", "sample") else dkl / 3
        alone = values_and_gradients(mu[rows], logvar[rows], dz[rows], part, seed=seeds[[g]], reduction=reduction)
        assert z[rows].equal(alone[0])
        torch.testing.assert_close(dmu[rows], alone[2])
        torch.testing.assert_close(dlogvar[rows], alone[3])


def test_manual_seed_and_generators_rule():
    mu = torch.zeros(4, 6, device=DEVICE)
    torch.manual_seed(3)
    first, second = fused(mu, mu, seed=None)[0], fused(mu, mu, seed=None)[0]
    torch.manual_seed(3)
    assert fused(mu, mu, seed=None)[0].equal(first)
    assert not first.equal(second)
    generators = [torch.Generator(DEVICE).manual_seed(8) for _ in range(2)]
    draws = [fused(mu, mu, seed=None, generator=generator)[0] for generator in generators]
    assert draws[0].equal(draws[1])


def test_each_generator_draws_for_its_rows_what_it_would_alone():
    mu = torch.zeros(6, 5, device=DEVICE)
    generators, alone = ([torch.Generator(DEVICE).manual_seed(seed) for seed in (8, 1)] for _ in range(2))
    z = fused(mu, mu, seed=None, generator=generators)[0]
    for rows, generator in zip(z.split(3), alone, strict=True):
        assert fused(mu[:3], mu[:3], seed=None, generator=generator)[0].equal(rows)
