"""MNIST, Fashion-MNIST and CIFAR-10 in their real formats: what is read, what is refused, what is fetched."""

import functools
import gzip
import hashlib
import http.server
import json
import pickle
import struct
import tarfile
import threading
import urllib.request

import numpy as np
import pytest
import torch
from torchvision import datasets

from vaebench.studies import train as train_command
from vaebench.vae import data
from vaebench.vae.config.run import Data
from vaebench.vae.data import torchvision_sets
from vaebench.vae.errors import InputError

PARTS = ("train", "valid", "test")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLOSED = "http://127.0.0.1:9/"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array):
    """Two zero bytes, 8 for unsigned bytes, the number of axes, each axis as a big-endian integer, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


CIFAR_NAMES = [f"kind {i}" for i in range(10)]


def write_mnist(folder, images, classes, test_images, test_classes):
    folder.mkdir(parents=True)
    for name, array in zip(IDX, (images, classes, test_images, test_classes), strict=True):
        (folder / name).write_bytes(idx(array))
    return {name: md5(folder / name) for name in IDX}


def write_cifar(folder, rows, classes, test_rows, test_classes):
    """Pickled as Python 2 did, rows of 1024 red, 1024 green and 1024 blue bytes."""
    folder.mkdir(parents=True)
    parts = [*zip(BATCHES, np.array_split(rows, 5), np.array_split(classes, 5), strict=True)]
    for name, x, y in [*parts, ("test_batch", test_rows, test_classes)]:
        batch = {"batch_label": name, "labels": y.tolist(), "data": x, "filenames": [f"{i}.png" for i in range(len(x))]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"num_cases_per_batch": len(rows) // 5, "label_names": CIFAR_NAMES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def cifar_class(folder, archive=None, address=""):
    """Return torchvision's class with the checksums of what was written, and where its archive is served."""

    class Small(datasets.CIFAR10):
        train_list = [[name, md5(folder / name)] for name in BATCHES]  # noqa: RUF012
        test_list = [["test_batch", md5(folder / "test_batch")]]  # noqa: RUF012
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}  # noqa: RUF012
        url = f"{address}{archive.name}" if archive else "http://nowhere.invalid"
        tgz_md5 = md5(archive) if archive else None

    return Small


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whatever reaches for the network without being asked to fails the test."""

    def refuse(request, *arguments, **options):
        url = request if isinstance(request, str) else request.full_url
        assert url.startswith("http://127.0.0.1:"), f"{url} was asked for"
        return opened(request, *arguments, **options)

    opened = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path):
    """Return a folder, and the address that it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Sixty training and twenty test digits, each with its number in its first pixel, ten of them held out."""
    drawn = np.random.default_rng(0).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    drawn[:, 0, 0] = np.arange(80)
    classes = (np.arange(80) * 7 % 10).astype(np.uint8)
    written = write_mnist(tmp_path / "MNIST" / "raw", drawn[:60], classes[:60], drawn[60:], classes[60:])
    monkeypatch.setitem(torchvision_sets.IDX_MD5, "mnist", written)
    monkeypatch.setitem(torchvision_sets.HELD_OUT, "mnist", 10)
    return tmp_path, drawn, classes


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    rows = np.random.default_rng(1).integers(0, 256, (70, 3072), dtype=np.uint8)
    rows[:, 0] = np.arange(70)
    classes = np.arange(70) * 3 % 10
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, rows[:50], classes[:50], rows[50:], classes[50:])
    monkeypatch.setattr(datasets, "CIFAR10", cifar_class(folder))
    monkeypatch.setitem(torchvision_sets.HELD_OUT, "cifar10", 5)
    return tmp_path, rows.reshape(70, 3, 32, 32), classes


def load(folder, name="mnist", **settings):
    return data.load(Data(name=name, dir=str(folder), **settings))


def require_partition(splits, images, classes, train, held_out):
    """Every image is in one split once, as it was written, with its class; test is the published one, in order."""
    assert [len(getattr(splits, name)) for name in PARTS] == [train - held_out, held_out, len(images) - train]
    assert (splits.levels, splits.shape, splits.label_names) == (256, images.shape[1:], ("class",))
    numbers = [getattr(splits, name).stored[:, 0, 0, 0].tolist() for name in PARTS]
    assert sorted(numbers[0] + numbers[1]) == list(range(train))
    assert numbers[2] == list(range(train, len(images)))
    for name, index in zip(PARTS, numbers, strict=True):
        split = getattr(splits, name)
        assert split.stored.dtype == torch.uint8
        assert torch.equal(split.stored, torch.from_numpy(images[index]))
        assert split.labels[:, 0].tolist() == classes[index].tolist()


def test_mnist_is_what_was_written(mnist):
    folder, images, classes = mnist
    require_partition(load(folder), images[:, None], classes, train=60, held_out=10)


def test_cifar_is_what_was_written_channels_first(cifar):
    folder, images, classes = cifar
    require_partition(load(folder, "cifar10"), images, classes, train=50, held_out=5)


@pytest.mark.slow
def test_cifar_trains_end_to_end_and_noise_costs_what_it_must(cifar, tmp_path, capsys):
    """Uniform noise has 8 bits a byte, and no model of what it never saw can need less."""
    small = {"model.network": "conv", "model.hidden": "8,8,8", "train.epochs": 9, "train.batch_size": 15}
    small |= {"train.device": "cpu", "train.learning_rate": 0.02, "eval.examples": 8}
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    where = ["--dataset", "cifar10", "--data-dir", str(cifar[0]), "--latent", "4", "--folder", str(tmp_path / "run")]
    assert train_command.main([*where, *settings, "--tracking-uri", "none"]) == 0
    assert "test/bits_per_dim" in capsys.readouterr().out
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 8 < last["test/bits_per_dim"] < 8.3


def test_valid_is_drawn_by_the_seed_and_test_is_not(mnist):
    folder, _, _ = mnist
    one, again, other = load(folder), load(folder), load(folder, seed=1)
    assert one.digest == again.digest != other.digest
    assert not torch.equal(one.valid.stored, other.valid.stored)
    assert torch.equal(one.test.stored, other.test.stored)


def test_the_published_sizes_leave_ten_thousand_of_mnist_and_five_thousand_of_cifar(tmp_path, monkeypatch):
    blank, classes = np.zeros((70_000, 28, 28), dtype=np.uint8), np.zeros(70_000, dtype=np.uint8)
    for name, folder in (("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")):
        written = write_mnist(
            tmp_path / folder / "raw", blank[:60_000], classes[:60_000], blank[60_000:], classes[60_000:]
        )
        monkeypatch.setitem(torchvision_sets.IDX_MD5, name, written)
        splits = load(tmp_path, name)
        assert [len(getattr(splits, part)) for part in PARTS] == [50_000, 10_000, 10_000]
        assert (splits.shape, splits.name) == ((1, 28, 28), name)
        assert splits.class_names[9:] == (("Ankle boot",) if name == "fashion_mnist" else ())
    rows = np.zeros((60_000, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, rows[:50_000], classes[:50_000], rows[50_000:], classes[50_000:60_000])
    monkeypatch.setattr(datasets, "CIFAR10", cifar_class(folder))
    splits = load(tmp_path, "cifar10")
    assert [len(getattr(splits, part)) for part in PARTS] == [45_000, 5_000, 10_000]
    assert list(splits.class_names) == CIFAR_NAMES


def test_archives_alone_are_read_however_they_were_packed(mnist):
    folder, images, classes = mnist
    for level, name in enumerate(IDX, start=1):
        path = folder / "MNIST" / "raw" / name
        (path.parent / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=level))
        path.unlink()
    data.download(Data(name="mnist", dir=str(folder)))
    require_partition(load(folder), images[:, None], classes, train=60, held_out=10)
    assert sorted(path.name for path in (folder / "MNIST" / "raw").iterdir()) == sorted(f"{name}.gz" for name in IDX)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def truncate(path, place):
    path.write_bytes(path.read_bytes()[:place])


@pytest.mark.parametrize("harm", [flip, truncate])
@pytest.mark.parametrize("name", IDX)
def test_a_damaged_file_of_mnist_is_named(mnist, name, harm):
    folder, _, _ = mnist
    path = folder / "MNIST" / "raw" / name
    harm(path, -1)
    with pytest.raises(InputError, match=rf"{path} is damaged, .* delete it and fetch it again with --download\."):
        load(folder)


@pytest.mark.parametrize(("harm", "place"), [(flip, 200), (flip, 12), (flip, 1), (truncate, 200), (truncate, 0)])
def test_a_damaged_archive_of_mnist_is_named(mnist, harm, place):
    """Of even bytes, so that they are compressed, and a flipped bit may be no code at all."""
    folder, _, _ = mnist
    path = folder / "MNIST" / "raw" / IDX[0]
    archive = path.parent / f"{IDX[0]}.gz"
    archive.write_bytes(gzip.compress(bytes(range(0, 256, 2)) * 400))
    path.unlink()
    harm(archive, place)
    with pytest.raises(InputError, match=rf"{archive} is damaged"):
        load(folder)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_file_of_cifar_is_named_before_anything_is_unpickled(cifar, monkeypatch, name):
    folder, _, _ = cifar
    path = folder / "cifar-10-batches-py" / name
    flip(path, -2)
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(InputError, match=rf"{path} is damaged"):
        load(folder, "cifar10")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
    ],
)
def test_a_missing_set_says_where_it_was_looked_for_and_both_ways_to_have_it(tmp_path, name, first):
    with pytest.raises(InputError) as refused:
        load(tmp_path, name)
    message = str(refused.value)
    assert f"there is no {tmp_path / first};" in message
    assert "--data-dir" in message
    assert f"vaebench train --dataset {name} --data-dir {tmp_path} --download." in message


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot read .*file/MNIST/raw/.*: Not a directory; give the folder with"):
        load(tmp_path / "file")


def test_mnist_is_fetched_when_asked_and_never_twice(mnist, served, tmp_path, monkeypatch):
    """Over HTTP, from the mirrors that a subclass of torchvision's class names."""
    folder, images, classes = mnist
    archives, address = served
    for name in IDX:
        (archives / f"{name}.gz").write_bytes(gzip.compress((folder / "MNIST" / "raw" / name).read_bytes()))

    class MNIST(datasets.MNIST):
        mirrors = [CLOSED, address]  # noqa: RUF012
        resources = [(f"{name}.gz", md5(archives / f"{name}.gz")) for name in IDX]  # noqa: RUF012

    monkeypatch.setattr(datasets, "MNIST", MNIST)
    fresh = Data(name="mnist", dir=str(tmp_path / "new"))
    data.download(fresh)
    require_partition(data.load(fresh), images[:, None], classes, train=60, held_out=10)
    monkeypatch.setattr(MNIST, "mirrors", [CLOSED])
    data.download(fresh)
    with pytest.raises(InputError, match=r"could not fetch mnist into .* try again, or put its files there") as refused:
        data.download(Data(name="mnist", dir=str(tmp_path / "newer")))
    assert "\n" not in str(refused.value)


def test_cifar_is_fetched_and_an_archive_of_other_bytes_is_refused(cifar, served, tmp_path, monkeypatch):
    folder, images, classes = cifar
    archives, address = served
    archive = archives / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets, "CIFAR10", cifar_class(folder / "cifar-10-batches-py", archive, address))
    fresh = Data(name="cifar10", dir=str(tmp_path / "new"))
    data.download(fresh)
    require_partition(data.load(fresh), images, classes, train=50, held_out=5)
    flip(archive, -1)
    with pytest.raises(InputError, match="could not fetch cifar10"):
        data.download(Data(name="cifar10", dir=str(tmp_path / "newer")))


def test_what_cannot_be_fetched():
    with pytest.raises(InputError, match=r"mnist, fashion_mnist, cifar10 can be fetched, got data\.name = digits"):
        data.download(Data())
