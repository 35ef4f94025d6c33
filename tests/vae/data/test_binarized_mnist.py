"""The published binarisation of MNIST: rows of bits as text."""

import gzip

import numpy as np
import pytest
import torch

from vaebench.vae import data
from vaebench.vae.config.run import Data
from vaebench.vae.data import binarized_mnist
from vaebench.vae.errors import InputError


def write_amat(folder, *counts):
    """Write files with so many images in train, valid and test, as the published ones are written; return the bits."""
    folder.mkdir(parents=True)
    bits = [np.random.default_rng(count).integers(0, 2, (count, 784)) for count in counts]
    for name, rows in zip(("train", "valid", "test"), bits, strict=True):
        np.savetxt(folder / f"binarized_mnist_{name}.amat", rows, fmt="%d", delimiter=" ", newline=" \n")
    return bits


def test_the_splits_are_those_of_the_files(tmp_path):
    bits = write_amat(tmp_path / "BinarizedMNIST", 5, 3, 4)
    splits = data.load(Data(name="binarized_mnist", dir=str(tmp_path)))
    assert (splits.levels, splits.shape) == (2, (1, 28, 28))
    for split, rows in zip((splits.train, splits.valid, splits.test), bits, strict=True):
        assert torch.equal(split.stored, torch.from_numpy(rows).to(torch.uint8).reshape(-1, 1, 28, 28))


def test_an_archive_stands_for_its_file(tmp_path):
    write_amat(tmp_path / "BinarizedMNIST", 5, 3, 4)
    path = tmp_path / "BinarizedMNIST/binarized_mnist_valid.amat"
    expected, packed = binarized_mnist.read(path), gzip.compress(path.read_bytes())
    path.unlink()
    archive = path.with_name(f"{path.name}.gz")
    archive.write_bytes(packed)
    assert torch.equal(binarized_mnist.read(path), expected)
    for damaged in (packed[:100], b"0 1 1", packed[:50] + b"0" * 50 + packed[100:]):
        archive.write_bytes(damaged)
        with pytest.raises(InputError, match=r"binarized_mnist_valid\.amat\.gz is damaged or no archive"):
            binarized_mnist.read(path)


@pytest.mark.parametrize("text", ["", "0 1 1\n", "0 " * 784 + "2 ", "0.0 " * 784])
def test_a_file_that_is_something_else_is_refused_by_name(tmp_path, text):
    path = tmp_path / "binarized_mnist_train.amat"
    path.write_text(text)
    with pytest.raises(InputError, match=r"binarized_mnist_train\.amat must hold rows of 784 bits"):
        binarized_mnist.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"needs .*BinarizedMNIST/binarized_mnist_train\.amat \(No such file"):
        data.load(Data(name="binarized_mnist", dir=str(tmp_path)))
