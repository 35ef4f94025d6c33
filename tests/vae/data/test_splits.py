"""Data sets: sizes, levels, disjoint splits, hashes, binarisation, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tests import stats
from vaebench.vae import data
from vaebench.vae.config.run import Data
from vaebench.vae.data import linear, splits
from vaebench.vae.errors import InputError

NAMES = ("train", "valid", "test")


@pytest.fixture(scope="module")
def digits():
    return data.load(Data())


def rows(split):
    return {tuple(row) for row in split.stored.flatten(1).tolist()}


def test_digits_are_all_there_once(digits):
    """The digits hold no image twice, so that equal sets of rows mean disjoint splits."""
    original = {tuple(row) for row in load_digits().data.astype(np.uint8).tolist()}
    found = [rows(getattr(digits, name)) for name in NAMES]
    assert len(original) == 1797 == sum(map(len, found))
    assert set.union(*found) == original
    assert (digits.shape, digits.levels) == ((1, 8, 8), 17)
    assert [len(getattr(digits, name)) for name in NAMES] == [1439, 179, 179]


def test_a_batch_is_an_index_select_of_levels(digits):
    index = torch.tensor([5, 0, 5])
    x = digits.train.batch(index)
    assert x.dtype == torch.float32
    assert torch.equal(x * 16, digits.train.stored[index].float())
    assert digits.train.stored.dtype == torch.uint8


def test_a_batch_can_be_written_on_and_the_data_stay(digits):
    """Whatever is stored, with an index and without."""
    x, codes = torch.rand(9, 4), torch.arange(9)
    continuous = data.from_tensors(x, x, x).train
    rendered = splits.Split(codes, 0, render=lambda rows: rows)
    for split in (continuous, rendered, digits.train, data.load(Data(binarise="static")).train):
        before = split.stored.clone()
        for index in (None, torch.tensor([3, 1])):
            split.batch(index).zero_()
            assert torch.equal(split.stored, before)


def test_splits_follow_the_seed(digits):
    again, other = data.load(Data()), data.load(Data(seed=1))
    assert again.digest == digits.digest
    assert other.digest != digits.digest
    assert rows(other.train) != rows(digits.train)


def test_the_digest_sees_one_level_of_one_pixel(digits):
    changed = digits.test.stored.clone()
    changed[-1, 0, 0, 0] += 1
    other = data.from_tensors(digits.train.stored, digits.valid.stored, changed, levels=17, name="digits")
    same = data.from_tensors(
        digits.train.stored, digits.valid.stored, digits.test.stored.clone(), levels=17, name="digits"
    )
    assert same.digest == digits.digest
    assert other.digest != digits.digest


def test_classes_follow_their_digits_through_shuffling_and_binarisation(digits):
    """Every image that scikit-learn has is unique, so each can be looked up there."""
    known = load_digits()
    classes = {
        image.astype("uint8").tobytes(): target for image, target in zip(known.images, known.target, strict=True)
    }
    assert digits.label_names == ("class",)
    for name in NAMES:
        split = getattr(digits, name)
        assert [classes[image.numpy().tobytes()] for image in split.stored] == split.labels[:, 0].tolist()
        for mode in ("static", "dynamic"):
            assert torch.equal(getattr(data.load(Data(binarise=mode)), name).labels, split.labels)


def test_labels_of_your_own():
    x, factors = torch.zeros(9, 4), torch.arange(18, dtype=torch.uint8).reshape(9, 2)
    given = data.from_tensors(x, x, x, labels=[factors] * 3, label_names=["shape", "scale"])
    assert given.label_names == ("shape", "scale")
    assert given.test.labels.tolist() == factors.tolist()
    assert data.from_tensors(x, x, x, labels=[factors[:, 0]] * 3).train.labels.shape == (9, 1)
    with pytest.raises(InputError, match=r"split train must have labels of shape \(9, 3\), got \(9, 2\)"):
        data.from_tensors(x, x, x, labels=[factors] * 3, label_names="xyz")
    with pytest.raises(InputError, match=r"split train must have one class for each example, 0 to 2, as class_names"):
        data.from_tensors(x, x, x, labels=[factors] * 3, label_names="xy", class_names="abc")
    with pytest.raises(InputError, match=r"split valid must have labels of shape \(9, 2\), got \(8, 2\)"):
        data.from_tensors(x, x, x, labels=[factors, factors[1:], factors], label_names="xy")


def test_static_binarisation_is_drawn_once(digits):
    static = data.load(Data(binarise="static"))
    assert static.levels == 2
    assert torch.equal(static.train.batch(), static.train.batch())
    assert set(static.train.batch().unique().tolist()) == {0.0, 1.0}
    assert data.load(Data(binarise="static")).digest == static.digest
    always = digits.train.stored == 16
    never = digits.train.stored == 0
    assert static.train.stored[always].all()
    assert not static.train.stored[never].any()


def test_dynamic_binarisation_is_drawn_for_each_batch(digits):
    dynamic = data.load(Data(binarise="dynamic"))
    generator = torch.Generator().manual_seed(0)
    first, second = (dynamic.train.batch(generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    static = data.load(Data(binarise="static"))
    assert torch.equal(dynamic.test.batch(), static.test.batch())
    assert torch.equal(dynamic.valid.batch(), static.valid.batch())


def test_binarisation_has_the_level_as_its_mean():
    grey = torch.full((20_000, 1), 4, dtype=torch.uint8)
    splits_ = splits.binarise(data.from_tensors(grey, grey[:5], grey[:5], levels=17), "dynamic", seed=3)
    drawn = splits_.train.batch(generator=torch.Generator().manual_seed(1))
    stats.assert_mean_equal(drawn[:, 0], 4 / 16, discrepancy=0.03)


def test_linear_data_have_the_covariance_of_the_model():
    config = Data(name="linear", size=20_000, features=6, rank=2, noise=0.3)
    truth = linear.truth(config)
    drawn = torch.cat([getattr(data.load(config), name).stored for name in NAMES]).double()
    centred = drawn - truth.mean
    products = centred[:, :, None] * centred[:, None, :]
    expected = truth.weight @ truth.weight.T + 0.09 * torch.eye(6, dtype=torch.float64)
    stats.assert_mean_equal(products.flatten(1), expected.flatten(), discrepancy=0.9)


@pytest.mark.parametrize(
    ("tensors", "levels", "message"),
    [
        ([torch.zeros(9, 4)] * 3, 17, r"must be torch\.uint8 .* when levels = 17, got torch\.float32"),
        ([torch.zeros(9, 4, dtype=torch.uint8)] * 3, 0, r"must be torch\.float32 .* when levels = 0"),
        ([torch.full((9, 4), 17, dtype=torch.uint8)] * 3, 17, r"must hold levels 0 to 16, got 17"),
        ([torch.full((9, 4), float("nan"))] * 3, 0, r"split train holds 36 values that are not finite"),
        (
            [torch.zeros(9, 4), torch.zeros(9, 4), torch.zeros(9, 5)],
            0,
            r"split test must hold at least 1 examples of shape \(4,\)",
        ),
        ([torch.zeros(1, 4), torch.zeros(9, 4), torch.zeros(9, 4)], 0, r"split train must hold at least 2 examples"),
        ([torch.zeros(9, 4, dtype=torch.uint8)] * 3, 1, r"levels must be 0, for floats, or 2 to 256, got 1"),
        ([[0.0]] * 3, 0, r"split train must be a tensor, got list"),
        ([torch.zeros(9, 4), torch.zeros(0, 4), torch.zeros(9, 4)], 0, r"split valid must hold at least 1 examples"),
    ],
)
def test_tensors_that_are_refused(tensors, levels, message):
    with pytest.raises(InputError, match=message):
        data.from_tensors(*tensors, levels=levels)


def test_unknown_and_impossible_sets():
    with pytest.raises(InputError, match=r"no data set 'imagenet'; choose from digits, .* cifar10, folder\."):
        data.load(Data(name="imagenet"))
    with pytest.raises(InputError, match=r"data\.rank < data\.features, got 4 and 3"):
        data.load(Data(name="linear", features=3))
    with pytest.raises(InputError, match=r"needs data with levels; linear is continuous"):
        data.load(Data(name="linear", binarise="static"))


def test_digits_without_scikit_learn_name_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install scikit-learn"):
        data.load(Data())
