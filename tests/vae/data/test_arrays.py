"""Arrays in files: what becomes of bytes, bits and other numbers, and how they are split."""

from pathlib import Path

import numpy as np
import pytest

from vaebench.vae.data import arrays
from vaebench.vae.errors import InputError

BYTES = np.random.default_rng(0).integers(0, 256, (40, 1, 3, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_array_is_split_by_the_seed():
    np.save("mine.npy", BYTES)
    splits = arrays.load(Path("mine.npy"))
    assert (splits.name, splits.levels, splits.shape) == ("mine", 256, (1, 3, 3))
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [32, 4, 4]
    both = np.concatenate([part.stored.numpy() for part in (splits.train, splits.valid, splits.test)])
    assert sorted(map(bytes, both)) == sorted(map(bytes, BYTES))
    assert arrays.load(Path("mine.npy")).digest == splits.digest
    assert arrays.load(Path("mine.npy"), seed=1).digest != splits.digest


@pytest.mark.parametrize(
    ("array", "levels", "dtype"),
    [
        (BYTES > 100, 2, "uint8"),
        ((BYTES > 100).astype(np.uint8), 2, "uint8"),
        (BYTES / 255, 0, "float32"),
        (BYTES.astype(np.int64), 0, "float32"),
    ],
)
def test_the_type_of_the_numbers_decides_the_levels(array, levels, dtype):
    np.save("mine.npy", array)
    splits = arrays.load(Path("mine.npy"))
    assert (splits.levels, str(splits.train.stored.dtype)) == (levels, f"torch.{dtype}")


def test_splits_of_ones_own_are_kept():
    np.savez("mine.npz", train=BYTES[:20], test=BYTES[20:])
    splits = arrays.load(Path("mine.npz"))
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [18, 2, 20]
    assert np.array_equal(splits.valid.stored.numpy(), BYTES[18:20])
    np.savez("mine.npz", train=BYTES[:20], valid=BYTES[20:30], test=BYTES[30:])
    splits = arrays.load(Path("mine.npz"))
    assert np.array_equal(splits.train.stored.numpy(), BYTES[:20])
    assert np.array_equal(splits.valid.stored.numpy(), BYTES[20:30])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: None, "cannot read mine.npz: No such file or directory."),
        (lambda: Path("mine.npz").write_text("text"), "holds no plain arrays of numbers"),
        (
            lambda: np.savez("mine.npz", a=BYTES, b=BYTES),
            "must hold one array, or train and test, and perhaps valid; got",
        ),
        (lambda: np.savez("mine.npz", BYTES[:9]), "must hold at least 10 examples, got 9."),
        (lambda: np.savez("mine.npz", np.array(["a"] * 20)[:, None]), "must hold numbers"),
    ],
)
def test_files_that_are_no_data_are_one_sentence(write, message):
    write()
    with pytest.raises(InputError) as caught:
        arrays.load(Path("mine.npz"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_sentence():
    np.savez_compressed("whole.npz", train=BYTES, test=BYTES)
    stored = Path("whole.npz").read_bytes()
    Path("cut.npz").write_bytes(stored[: len(stored) // 2])
    with pytest.raises(InputError, match="holds no plain arrays of numbers"):
        arrays.load(Path("cut.npz"))
