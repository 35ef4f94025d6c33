"""MNIST, Fashion-MNIST and CIFAR-10, fetched and read by torchvision, with the MD5 of every file checked first.

torchvision checks the MD5 of CIFAR-10's batches, and of MNIST's archives only while it fetches them. This module checks
the unpacked files, so that archives may be compressed differently, or be absent.
"""

import gzip
import os
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench.vae.config.run import Data
from vaebench.vae.data.splits import Splits, from_tensors
from vaebench.vae.errors import InputError

LEVELS = 256
CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
HELD_OUT = {"mnist": 10_000, "fashion_mnist": 10_000, "cifar10": 5_000}
IDX_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
FETCH_ERRORS = (OSError, RuntimeError, EOFError, HTTPException)  # that torchvision does not catch, such as URLError

ImagesAndClasses = tuple[Tensor, Tensor]
Contents = tuple[ImagesAndClasses, ImagesAndClasses, list[str]]  # train, test, and names of classes that are no digits


def load(config: Data) -> Splits:
    """Return uint8 images of 256 levels, `(1, 28, 28)` or `(3, 32, 32)`, with the published test split.

    `valid` is drawn from the published training set by the seed: 10 000 images, 5 000 for CIFAR-10.
    """
    (images, classes), test, class_names = (_read_cifar if config.name == "cifar10" else _read_mnist)(config)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    valid, train = order.split([HELD_OUT[config.name], len(images) - HELD_OUT[config.name]])
    return from_tensors(
        images[train],
        images[valid],
        test[0],
        levels=LEVELS,
        name=config.name,
        labels=[classes[train], classes[valid], test[1]],
        class_names=class_names,
    )


def download(config: Data) -> None:
    """Fetch a data set into `data.dir`, unless its files or their archives are there."""
    if config.name not in CLASSES:
        raise InputError(f"{', '.join(CLASSES)} can be fetched, got data.name = {config.name}; leave out --download.")
    if not list_missing(config):
        return
    try:
        torchvision_class(config.name)(_folder(config), download=True)
    except FETCH_ERRORS as error:
        raise InputError(
            f"could not fetch {config.name} into {config.dir} ({' '.join(str(error).split())}); try again, or put its "
            "files there by hand."
        ) from error


def torchvision_class(name: str) -> Any:
    """Return torchvision's class for a data set, which knows its files, addresses and checksums."""
    from torchvision import datasets  # the import takes a second, and only these sets need it

    return getattr(datasets, CLASSES[name])


def list_missing(config: Data) -> list[Path]:
    """Return the files of a set that are not there; an archive stands for its file."""
    return [path for path in _files(config) if not os.path.exists(path) and not os.path.exists(_archive(path))]


def _folder(config: Data) -> Path:
    return Path(config.dir).expanduser()


def _archive(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _files(config: Data) -> dict[Path, str]:
    """Return the files of a set with their MD5; for MNIST in the order train images, train classes, test images, ..."""
    if config.name in IDX_MD5:
        raw = _folder(config) / CLASSES[config.name] / "raw"
        return {raw / name: md5 for name, md5 in IDX_MD5[config.name].items()}
    kind = torchvision_class(config.name)
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {_folder(config) / kind.base_folder / name: md5 for name, md5 in listed}


def _read_mnist(config: Data) -> Contents:
    """Read the four idx files; a file that exists only as `.gz` is unpacked into a temporary folder."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    tensors = []
    with tempfile.TemporaryDirectory() as scratch:
        for path, md5 in _files(config).items():
            found = path if os.path.exists(path) else _unpack(config, path, scratch)
            _require_published(config, found, md5, shown=path if found == path else _archive(path))
            tensors.append(read_image_file(found)[:, None] if "images" in path.name else read_label_file(found))
    names = torchvision_class(config.name).classes if config.name == "fashion_mnist" else []
    return (tensors[0], tensors[1]), (tensors[2], tensors[3]), names


def _unpack(config: Data, path: Path, scratch: str) -> Path:
    """Unpack the archive of a file and return the new path, or the path as it is where there is no archive."""
    from torchvision.datasets.utils import extract_archive

    try:
        return Path(extract_archive(_archive(path), scratch))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged_error(config, _archive(path)) from error
    except OSError:
        return path


def _read_cifar(config: Data) -> Contents:
    for path, md5 in _files(config).items():
        _require_published(config, path, md5, shown=path)
    kind = torchvision_class(config.name)
    train, test = (kind(_folder(config), train=train) for train in (True, False))
    return _channels_first(train), _channels_first(test), train.classes


def _channels_first(dataset: Any) -> ImagesAndClasses:
    """Return the images of a torchvision data set, `(N, H, W, C)`, as `(N, C, H, W)`, with their classes."""
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


def _require_published(config: Data, path: Path, md5: str, *, shown: Path) -> None:
    """Raise an error where a file is missing, cannot be read, or is not the published one."""
    from torchvision.datasets.utils import check_md5

    try:
        intact = check_md5(path, md5)
    except FileNotFoundError:
        raise InputError(
            f"data set {config.name} is not in {config.dir}: there is no {shown}; say where it is with --data-dir, or "
            f"fetch it with: vaebench train --dataset {config.name} --data-dir {config.dir} --download."
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {shown}: {error.strerror}; give the folder with --data-dir.") from error
    if not intact:
        raise _damaged_error(config, shown)


def _damaged_error(config: Data, path: Path) -> InputError:
    return InputError(
        f"{path} is damaged, or not the file that {config.name} was published with; delete it and fetch it again with "
        "--download."
    )
