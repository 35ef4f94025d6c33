"""Data in mapped files: the same batches and the same training as from memory, of which they take little."""

import dataclasses
import gc
import threading
import time

import numpy as np
import pytest
import torch

from tests import stats
from vaebench.vae import data
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import from_files, from_tensors
from vaebench.vae.data.memory_mapped import BATCHES_AHEAD, FileSplit, open_rows
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.codes import encode_all
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.objective import InfoVAE
from vaebench.vae.training import checkpoint
from vaebench.vae.training import epoch as epochs
from vaebench.vae.training.fit import fit

PARTS = ("train", "valid", "test")

# Dynamic binarisation, dropout and a batch statistic: whatever draws while it trains would draw in another order.
RESTLESS = Run(
    model=Model(latent=3, hidden=(24,), dropout=0.2, likelihood="discretised_logistic"),
    objective=InfoVAE(alpha=0.3, lambda_=5.0),
    train=Train(epochs=4, batch_size=64, patience=0, checkpoint_epochs=1, device="cpu"),
)


class StopEarlyError(Exception):
    pass


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": 331, "valid": 40, "test": 43}
    return {
        name: torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
        for name, size in sizes.items()
    }


@pytest.fixture
def files(images, tmp_path):
    return write_files(tmp_path, images)


def write_files(folder, tensors):
    paths = {name: folder / f"{name}.npy" for name in PARTS}
    for name, path in paths.items():
        np.save(path, tensors[name].numpy())
    return paths


def anonymous_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def readers():
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}


@pytest.mark.parametrize(("levels", "kind"), [(256, torch.uint8), (0, torch.float32)])
def test_batches_are_those_of_tensors_in_memory(tmp_path, images, levels, kind):
    tensors = {name: x if levels else torch.randn(x.shape) for name, x in images.items()}
    mapped = from_files(**write_files(tmp_path, tensors), levels=levels)
    held = from_tensors(**tensors, levels=levels)
    assert mapped.shape == held.shape == (1, 8, 8)
    assert mapped.train.render.array.dtype == str(kind).removeprefix("torch.")
    index = torch.tensor([330, 0, 7, 7, 100])
    assert torch.equal(mapped.train.batch(index), held.train.batch(index))
    assert torch.equal(mapped.valid.batch(), held.valid.batch())
    order = torch.randperm(331, generator=torch.Generator().manual_seed(1)).split(16)
    for one, other in zip(mapped.train.batches(order), held.train.batches(order), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_training_on_a_file_is_training_in_memory_bit_for_bit(files, images):
    for binarise in ("none", "dynamic"):
        likelihood = "discretised_logistic" if binarise == "none" else "bernoulli"
        config = RESTLESS.replace({"data.binarise": binarise, "model.likelihood": likelihood})
        one = fit(config, data=from_files(**files, levels=256))
        other = fit(config, data=from_tensors(**images, levels=256))
        for name, tensor in other.model.state_dict().items():
            assert torch.equal(one.model.state_dict()[name], tensor), name
        if binarise == "none":
            assert [epoch["valid/elbo"] for epoch in one.history] == [epoch["valid/elbo"] for epoch in other.history]
            found, expected = (measure(result.model, result.splits, config) for result in (one, other))
            assert found == expected


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, files, stopped_after):
    config = RESTLESS.replace({"data.binarise": "dynamic", "model.likelihood": "bernoulli"})

    def report(epoch, metrics):
        if epoch == stopped_after:
            raise StopEarlyError

    whole = fit(config, data=from_files(**files, levels=256), folder=tmp_path / "whole")
    with pytest.raises(StopEarlyError):
        fit(config, data=from_files(**files, levels=256), folder=tmp_path / "stopped", report=report)
    fit(config, data=from_files(**files, levels=256), folder=tmp_path / "stopped")
    one, other = (checkpoint.read(tmp_path / name / checkpoint.CURRENT)[0] for name in ("whole", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.best_epoch > 0


def test_a_reader_is_a_few_batches_ahead_and_leaves_when_it_is_left(files):
    split = from_files(**files, levels=256).train
    read = []
    render = split.render
    spied = dataclasses.replace(split, render=lambda numbers: read.append(len(numbers)) or render(numbers))
    others = readers()
    batches = spied.batches(torch.arange(331).split(10))
    assert (read, readers() - others) == ([], set())
    next(batches)
    deadline = time.monotonic() + 10
    while len(read) < BATCHES_AHEAD + 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(read) == BATCHES_AHEAD + 1
    assert len(readers() - others) == 1
    del batches
    gc.collect()
    assert readers() - others == set()
    assert sum(len(batch) for batch in spied.batches(torch.arange(331).split(10))) == 331


def test_what_a_reader_meets_reaches_the_one_who_asked(files):
    split = from_files(**files, levels=256).train

    def broken(numbers):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(dataclasses.replace(split, render=broken).batches([torch.arange(3)]))


def test_a_large_file_takes_no_anonymous_memory(tmp_path):
    """A sparse file of 400 MB, gone through twice: hashed, then read in random batches and encoded."""
    path, small = tmp_path / "large.npy", tmp_path / "small.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(100_000, 1, 64, 64))
    array[-1] = 255
    np.save(small, np.zeros((64, 1, 64, 64), dtype=np.uint8))
    del array
    before = anonymous_kib()
    splits = from_files(path, small, small, levels=256)
    after_hash = anonymous_kib()
    order = torch.randperm(100_000, generator=torch.Generator().manual_seed(0))
    total = sum(float(batch.sum()) for batch in splits.train.batches(order.split(256)))
    assert total == 64 * 64
    assert after_hash - before < 20_000
    assert anonymous_kib() - before < 60_000
    model = fit(RESTLESS.replace({"train.epochs": 1, "model.hidden": "4"}), data=from_files(*[small] * 3, levels=256))
    mu, _ = encode_all(model.model, splits.train.subsample(5000))
    assert len(mu) == 5000


def test_an_epoch_of_large_batches_holds_one_of_them(monkeypatch):
    """A hundred steps on 1.6 MB each: what a step leaves behind keeps none of the memory that it had."""
    x = torch.zeros(3200, 3, 64, 64, dtype=torch.uint8)
    model = Model(network="linear", latent=2, likelihood="gaussian")
    config = Run(model=model, train=Train(epochs=1, batch_size=32, patience=0, device="cpu"))
    held, real = [], epochs.take_step
    monkeypatch.setattr(epochs, "take_step", lambda *arguments: held.append(anonymous_kib()) or real(*arguments))
    fit(config, data=from_tensors(x, x[:4], x[:4], levels=256))
    assert len(held) == 100
    assert held[-1] - held[10] < 20_000


def test_the_digest_sees_one_byte_and_not_the_path(tmp_path, images, files):
    digest = from_files(**files, levels=256).digest
    (tmp_path / "moved").mkdir()
    moved = {name: path.rename(tmp_path / "moved" / f"other-{path.name}") for name, path in files.items()}
    assert from_files(**moved, levels=256).digest == digest
    changed = images["test"].clone()
    changed[-1, 0, 7, 7] ^= 1
    np.save(moved["test"], changed.numpy())
    assert from_files(**moved, levels=256).digest != digest


def test_a_run_resumes_on_moved_files_and_refuses_other_ones(tmp_path, images, files):
    config = RESTLESS.replace({"train.epochs": 1})
    fit(config, data=from_files(**files, levels=256), folder=tmp_path / "run")
    (tmp_path / "moved").mkdir()
    moved = {name: path.rename(tmp_path / "moved" / path.name) for name, path in files.items()}
    assert len(fit(config, data=from_files(**moved, levels=256), folder=tmp_path / "run").history) == 1
    np.save(moved["train"], images["train"].flip(0).numpy())
    with pytest.raises(InputError, match="holds a run on other data"):
        fit(config, data=from_files(**moved, levels=256), folder=tmp_path / "run")


def test_static_binarisation_is_one_draw_for_each_row_for_good(tmp_path):
    """Of grey level 64 of 255 alone: a mean of 64 / 255 whatever is read with what, and other draws in each split."""
    grey = torch.full((300, 1, 8, 8), 64, dtype=torch.uint8)
    grey[:, :, 0, 0], grey[:, :, 0, 1] = 0, 255
    mapped = from_files(**write_files(tmp_path, dict.fromkeys(PARTS, grey)), levels=256)
    static, again, dynamic = (data.splits.binarise(mapped, mode, 3) for mode in ("static", "static", "dynamic"))
    assert static.levels == 2
    x = static.train.batch()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    index = torch.tensor([299, 5, 5])
    assert torch.equal(static.train.batch(index), x[index])
    assert torch.equal(again.train.batch(), x)
    assert not x[:, 0, 0, 0].any()
    assert x[:, 0, 0, 1].all()
    stats.assert_mean_equal(x.flatten(1)[:, 2:].flatten(), 64 / 255, discrepancy=0.03)
    assert len(x.flatten(1).unique(dim=0)) == 300
    assert not torch.equal(static.valid.batch(), static.test.batch())
    assert torch.equal(static.test.batch(), dynamic.test.batch())
    assert not torch.equal(dynamic.train.batch(index), dynamic.train.batch(index))
    assert static.digest == again.digest
    assert len({static.digest, dynamic.digest, mapped.digest, data.splits.binarise(mapped, "static", 4).digest}) == 4


def test_labels_stay_with_their_rows(files, images):
    labels = [torch.arange(len(images[name])) for name in PARTS]
    splits = from_files(**files, levels=256, labels=labels)
    assert splits.label_names == ("class",)
    few = splits.train.subsample(50)
    assert len(few) == 50
    assert torch.equal(few.batch() * 255, images["train"][few.labels[:, 0]].float())
    assert few.labels[:, 0].diff().min() >= 331 // 50
    assert splits.train.subsample(331) is splits.train


def test_a_split_on_a_device_leaves_its_file_where_it_is(files):
    split = from_files(**files, levels=256).train.to(torch.device("meta"))
    assert isinstance(split, FileSplit)
    assert split.device.type == "meta"
    assert (split.stored.device.type, split.render.array.shape) == ("cpu", (331, 1, 8, 8))


@pytest.mark.parametrize(
    ("content", "levels", "message"),
    [
        (None, 256, r"mine: cannot read .*x\.npy: No such file or directory"),
        (b"", 256, r"x\.npy must be a whole \.npy file of uint8 rows"),
        (b"PK\x03\x04 an archive of arrays", 256, r"must be a whole \.npy file"),
        (np.zeros((9, 4)), 0, r"must hold float32 of shape \(N, \.\.\.\) in C order when levels = 0, got float64"),
        (np.zeros((9, 4), dtype=">f4"), 0, r"must hold float32 .*, got >f4"),
        (np.zeros((9, 4), dtype=np.float32), 256, r"must hold uint8 .* when levels = 256, got float32"),
        (np.zeros(9, dtype=np.uint8), 256, r"got uint8 of shape \(9,\)"),
        (np.zeros((9, 4), dtype=np.uint8, order="F"), 256, r"got uint8 of shape \(9, 4\) in Fortran order"),
        (np.full((9, 4), 17, dtype=np.uint8), 17, r"mine: split train must hold levels 0 to 16, got 17"),
        (np.full((9, 4), np.nan, dtype=np.float32), 0, r"mine: split train holds 36 values that are not finite"),
        (np.array([["a", {}]], dtype=object), 256, r"must be a whole \.npy file"),
        (np.zeros((1, 4), dtype=np.uint8), 256, r"split train must hold at least 2 examples"),
        (np.zeros((0, 4), dtype=np.uint8), 256, r"split train must hold at least 2 examples"),
        (np.zeros((9, 4), dtype=np.uint8), 1, r"levels must be 0, for floats, or 2 to 256, got 1"),
    ],
)
def test_files_that_are_refused(tmp_path, content, levels, message):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message):
        from_files(path, path, path, levels=levels, name="mine")


def test_a_truncated_file_is_refused(files):
    path = files["train"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train\.npy must be a whole \.npy file"):
        from_files(**files, levels=256)


def test_rows_are_read_wherever_pages_begin(tmp_path):
    """Rows of 5000 bytes begin and end in the middle of a page."""
    array = np.random.default_rng(0).integers(0, 256, (50, 5000), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    rows = open_rows(tmp_path / "x.npy")
    numbers = torch.tensor([49, 0, 13])
    assert rows(numbers).numpy().tobytes() == array[[49, 0, 13]].tobytes()
    assert np.concatenate(list(rows.blocks())).tobytes() == array.tobytes()
