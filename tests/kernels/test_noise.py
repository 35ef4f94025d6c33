"""The noise stream against Philox4x32-10 and Box-Muller in NumPy."""

import numpy as np
import pytest
import torch

from tests import noise_oracle, stats
from vaebench import kernels
from vaebench.kernels.shared import noise


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_published_vectors(counter, key, words):
    """The known answers of Random123, for all four counter words; ours leave the upper two at zero."""
    assert [int(word) for word in noise_oracle.rounds([np.uint64(c) for c in counter], key)] == words
    if counter[2:] == [0, 0]:
        assert noise_oracle.philox([counter[0] | counter[1] << 32], key)[0].tolist() == words


@pytest.mark.parametrize("key", [0, 1, 12345, 2**31 - 1, 2**32, 2**63 - 1, -1, -(2**63)])
def test_words_agree_bit_for_bit(key):
    counters = [*range(1000), 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**62 + 17]
    found = noise.philox(torch.tensor(counters), torch.tensor([key]))
    assert np.array_equal(torch.stack(found, 1).numpy(), noise_oracle.philox(counters, key))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (100, 5), (7, 1023), (20_000, 8)])
def test_normals_are_box_muller_of_the_words(rows, columns):
    found = kernels.normal_noise(99, (rows, columns)).double().numpy()
    words = noise_oracle.philox(np.arange(rows * -(-columns // 4)), 99)
    expected, near_one = (
        x.reshape(rows, -1)[:, :columns]
        for x in (noise_oracle.box_muller(words), noise_oracle.uniforms(words)[:, [0, 0, 2, 2]] > 1 - 1e-5)
    )
    error = np.abs(found - expected)
    assert error[~near_one].max() < 2e-6
    assert error.max() < 1e-3


def test_uniforms_next_to_one_and_below_the_floor():
    """Words whose fold is the largest and the smallest: no NaN from log 1, no infinity from log 0."""
    words = torch.tensor([0x7FFFFFFF, 0x80000000, 0, 0xFFFFFFFF])
    uniform = noise._uniform(words)
    assert uniform.tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert (uniform < 1).all()


def test_a_row_does_not_depend_on_how_many_follow():
    whole = kernels.normal_noise(5, (300, 7))
    assert torch.equal(kernels.normal_noise(5, (10, 7)), whole[:10])


def test_trailing_axes_are_columns():
    assert torch.equal(kernels.normal_noise(5, (6, 2, 3)).flatten(1), kernels.normal_noise(5, (6, 6)))


def test_groups_draw_what_each_would_alone():
    seeds = torch.tensor([3, -8, 2**62])
    together = kernels.normal_noise(seeds, (12, 5))
    alone = torch.cat([kernels.normal_noise(int(seed), (4, 5)) for seed in seeds])
    assert torch.equal(together, alone)


def test_seed_as_number_and_as_tensor():
    assert torch.equal(kernels.normal_noise(41, (3, 3)), kernels.normal_noise(torch.tensor(41), (3, 3)))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (1,), (5,)])
def test_small_and_empty_shapes(shape):
    assert kernels.normal_noise(1, shape).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_casts_of_the_same_numbers(dtype):
    assert torch.equal(kernels.normal_noise(1, (50, 3), dtype=dtype), kernels.normal_noise(1, (50, 3)).to(dtype))


def test_blocks_leave_no_seam(monkeypatch):
    whole = kernels.normal_noise(8, (50, 9))
    monkeypatch.setattr(noise, "_COUNTERS_PER_BLOCK", 7)
    assert torch.equal(kernels.normal_noise(8, (50, 9)), whole)


def test_moments_of_four_lanes():
    drawn = kernels.normal_noise(2, (250_000, 4)).double()
    stats.assert_mean_equal(drawn, [0.0] * 4, discrepancy=0.03)
    stats.assert_mean_equal(drawn**2, [1.0] * 4, discrepancy=0.05)
    products = torch.stack([drawn[:, i] * drawn[:, j] for i in range(4) for j in range(i)], 1)
    stats.assert_mean_equal(products, [0.0] * 6, discrepancy=0.03)
