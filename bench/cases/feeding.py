"""Train one epoch on the images of a folder, held in memory or mapped: `python bench/cases/feeding.py FOLDER mapped`.

The network is affine both ways with two latents, and sigma is fixed: a step does little more than read pixels.
"""

import argparse
import contextlib
import json
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from vaebench.vae import data
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import Splits
from vaebench.vae.training.fit import fit

STORAGES = ("in memory", "mapped")
PARTS = ("train", "valid", "test")
SHAPE, HELD_OUT_ROWS = (3, 64, 64), 256
ROWS_PER_BLOCK = 2**14
CONFIG = Run(
    model=Model(network="linear", latent=2, likelihood="gaussian"),
    train=Train(epochs=1, batch_size=64, patience=0, device="cpu"),
)


def write(folder: Path, gigabytes: float) -> int:
    """Write random bytes as the images of three splits, nearly all for training; return the number of these."""
    rows = int(gigabytes * 10**9) // math.prod(SHAPE)
    generator = np.random.default_rng(0)
    for name in PARTS:
        count = rows if name == "train" else HELD_OUT_ROWS
        array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(count, *SHAPE))
        for start in range(0, count, ROWS_PER_BLOCK):
            block = array[start : start + ROWS_PER_BLOCK]
            block[:] = generator.integers(0, 256, block.shape, dtype=np.uint8)
    return rows


def load(folder: Path, storage: str) -> Splits:
    """Return the splits of a folder, `mapped` or read into memory."""
    train, valid, test = (folder / f"{name}.npy" for name in PARTS)
    if storage == "mapped":
        return data.from_files(train, valid, test, levels=256)
    return data.from_tensors(*(torch.from_numpy(np.load(path)) for path in (train, valid, test)), levels=256)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; print images per second, the ELBO and the peak of resident anonymous memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with train.npy, valid.npy and test.npy")
    parser.add_argument("storage", choices=STORAGES, help="how the images are held")
    options = parser.parse_args(arguments)
    missing = [f"{name}.npy" for name in PARTS if not (options.folder / f"{name}.npy").is_file()]
    if missing:
        parser.error(f"images are required in {options.folder}, which has no {', '.join(missing)}.")
    with watch_anonymous_memory() as peak:
        history = fit(CONFIG, data=load(options.folder, options.storage)).history[0]
    found = {"images_per_s": history["perf/images_per_s"], "elbo": history["train/elbo"], "rss_anon_mb": peak[0]}
    print(json.dumps(found))
    return 0


@contextlib.contextmanager
def watch_anonymous_memory() -> Iterator[list[float]]:
    """Read the resident anonymous memory every 50 ms; the list holds its peak in MB."""
    peak, done = [read_anonymous_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], read_anonymous_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def read_anonymous_mb() -> float:
    """Return RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
