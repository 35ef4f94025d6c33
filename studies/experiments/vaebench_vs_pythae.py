"""The same VAE trained by vaebench and by pythae: `python studies/experiments/vaebench_vs_pythae.py --data-dir data`.

Has it the same likelihood, and how fast does it train? The data are bits of Fashion-MNIST; encoder and decoder have two
layers of 200 tanh units, the code 50 latents; the objective is the ELBO, or the bound of 5 or 50 draws. Both libraries
start from the same weights, with the same batch size and optimizer, and keep the epoch of the best validation. pythae's
IWAE has the plain gradient, so that vaebench trains with that and with dreg. It prints the nll of test images by one
estimator, the difference to pythae's over those that are resolved, with its error over examples and seeds, images/s
over whole epochs without the first, and the most memory of a process. Trainings of one k and seed take turns, an epoch
each; what they have found is kept in the folder and read by the next run. It needs pythae: pip install pythae==0.1.2.
It takes hours on two cores, nearly all of them with 50 draws.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vaebench.studies.experiments import output
from vaebench.studies.experiments.library_training import Trained, initial_vae, train_in_turns
from vaebench.studies.experiments.output import (
    Row,
    add_count,
    between,
    command_line,
    limit_count,
    mark_figure,
    mean_and_stderr,
    write_results,
)
from vaebench.studies.tracking.provenance import code_version
from vaebench.studies.whole_file import replacing
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, load
from vaebench.vae.data.decoding import count_cores
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.training.setup import pick_device
from vaebench.vae.training.streams import evaluation_generator

PYTHAE = "pythae"
DATASETS = ("fashion_mnist", "mnist")
NETWORKS = {"model.hidden": (200, 200), "model.latent": 50, "model.activation": "tanh", "model.likelihood": "bernoulli"}
OPTIMISER = {
    "train.batch_size": 100,
    "train.learning_rate": 1e-3,
    "train.schedule": "constant",
    "train.clip_norm": 1e9,  # pythae does not clip
    "train.precision": "float32",
}
NLL, DIFFERENCE = "nll", "above pythae's"


@dataclass(frozen=True)
class Measured:
    """A trained model: log p(x) of test examples `(N,)`, which of them are resolved, its speed and memory."""

    log_px: Tensor
    resolved: Tensor
    images_per_s: float
    peak_mb: float


Group = dict[str, Measured]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0], help=f"({DATASETS[0]})")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="the folder above the data set's (data)")
    parser.add_argument("--k", type=between(1), nargs="+", default=[1, 5, 50], help="draws; 1 is a VAE (1 5 50)")
    add_count(parser, "--epochs", 20, "epochs of each training", least=2)
    add_count(parser, "--seeds", 3, "trainings of each model", most=1000)
    add_count(parser, "--train", 50_000, "training images", least=2)
    add_count(parser, "--examples", 1000, "test images whose log p(x) is estimated", least=2)
    add_count(parser, "--threads", count_cores(), "threads of a training")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Train and measure all models, or read what an earlier run has finished, and write the results."""
    options.pythae = require_pythae()
    splits = load_data(options)
    groups: dict[int, list[Group]] = {}
    for seed, k in tqdm(list(itertools.product(range(options.seeds), options.k)), desc="seed, k", leave=False):
        groups.setdefault(k, []).append(measure_or_read(k, seed, splits, options))
    rows = {k: compare(k, found) for k, found in groups.items()}
    every = [row for found in rows.values() for row in found]
    write_results(every, plot(every), options, printed=[mark_figure(row, NLL) for row in every])


def require_pythae() -> str:
    """Return the version of pythae, or raise where it is not installed."""
    try:
        return importlib.metadata.version(PYTHAE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "vaebench_vs_pythae.py trains with pythae beside vaebench, and pythae is not installed; install it with: "
            "pip install pythae==0.1.2."
        ) from None


def load_data(options: argparse.Namespace) -> Splits:
    """Return the data, binarised once, with as many training images as are asked for."""
    splits = load(configure(options, 1, 0).data)
    limit_count(options, "train", len(splits.train), "training images")
    limit_count(options, "examples", len(splits.test), "test images")
    return dataclasses.replace(splits, train=splits.train.subsample(options.train))


def configure(options: argparse.Namespace, k: int, seed: int, gradient: str = "plain") -> Run:
    """Return the settings of one training; of k = 1 the objective is the ELBO, its KL in closed form."""
    objective = {"objective.name": "iwae", "objective.samples": k, "objective.gradient": gradient} if k > 1 else {}
    data = {"data.name": options.dataset, "data.dir": options.data_dir, "data.binarise": "static"}
    length = {"train.epochs": options.epochs, "train.patience": options.epochs, "train.seed": seed}
    return Run().replace({**NETWORKS, **OPTIMISER, **data, **objective, **length})


def list_contenders(options: argparse.Namespace, k: int, seed: int) -> dict[str, tuple[str, Run]]:
    """Return what is trained for a k and a seed: the library and the settings of each, by name, pythae first."""
    plain = configure(options, k, seed)
    if k == 1:
        return {PYTHAE: (PYTHAE, plain), "vaebench": ("vaebench", plain)}
    dreg = configure(options, k, seed, "dreg")
    return {PYTHAE: (PYTHAE, plain), "vaebench, plain": ("vaebench", plain), "vaebench, dreg": ("vaebench", dreg)}


def measure_or_read(k: int, seed: int, splits: Splits, options: argparse.Namespace) -> Group:
    """Return a group of trainings that take turns; read it where the same command has finished it before."""
    file = options.folder / f"k{k}-seed{seed}.pt"
    contenders = list_contenders(options, k, seed)
    settings = {name: config.identity() for name, (_, config) in contenders.items()}
    origin = [splits.digest, options.examples, options.threads, options.pythae, code_version()]
    identity = json.dumps([settings, *origin], sort_keys=True)
    known = read(file, identity)
    if known is not None:
        return known
    trained = train_side_by_side(contenders, splits, options.threads)
    group = {name: measure(contenders[name][1], splits, found, options.examples) for name, found in trained.items()}
    stored = {"identity": identity, "group": {name: vars(measured) for name, measured in group.items()}}
    with replacing(file) as unfinished:
        torch.save(stored, unfinished)
    return group


def read(file: Path, identity: str) -> Group | None:
    """Return the group that a file holds, None if it is not there, damaged or of another identity."""
    try:
        stored = torch.load(file, weights_only=True)
        same = stored["identity"] == identity
        return {name: Measured(**values) for name, values in stored["group"].items()} if same else None
    except Exception:  # what torch.load raises on a damaged file depends on where the damage is
        return None


def train_side_by_side(contenders: Mapping[str, tuple[str, Run]], splits: Splits, threads: int) -> dict[str, Trained]:
    """Train each contender in a process of its own; they take turns, an epoch each."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        folder, connections = Path(stack.enter_context(tempfile.TemporaryDirectory())), {}
        for name, (library, config) in contenders.items():
            ours, theirs = spawn.Pipe()
            arguments = (library, config, splits, threads, theirs, folder / name)
            process = spawn.Process(target=train_in_turns, args=arguments, daemon=True)
            process.start()
            stack.callback(process.terminate)
            theirs.close()
            connections[name] = ours
        epochs = next(config.train.epochs for _, config in contenders.values())
        for name, connection in [*list(connections.items())] * epochs:
            connection.send(None)
            await_turn(name, connection)
        for name, connection in connections.items():
            await_turn(name, connection)
        return {name: Trained(**torch.load(folder / name, weights_only=True)) for name in contenders}


def await_turn(name: str, connection: Any) -> None:
    """Wait until a process gives its turn back; raise what it tells, or that it has ended."""
    try:
        said = connection.recv()
    except EOFError:
        said = f"the process that trains {name} has ended; it may have had too little memory"
    if said is not None:
        raise InputError(f"a training stopped: {said.rstrip('.')}.")


def measure(config: Run, splits: Splits, trained: Trained, examples: int) -> Measured:
    """Estimate log p(x) of test examples by the policy of the project, whoever trained the weights."""
    device = pick_device(config.train)
    vae = initial_vae(config, splits)
    vae.load_state_dict(vae.state_dict() | trained.weights)
    vae.to(device).eval()
    x = splits.test.subsample(examples).to(device).batch()
    found = model_log_likelihood(vae, x, generator=evaluation_generator(0, device))
    speed = len(splits.train) / statistics.median(trained.seconds[1:])
    return Measured(found.value.cpu(), found.resolved.cpu(), speed, trained.peak_mb)


def compare(k: int, groups: Sequence[Group]) -> list[Row]:
    """Return a row for each contender of one k, pythae first; figures are means over the seeds.

    Differences are over the examples that are resolved in every training of the k.
    """
    rows: list[Row] = []
    common = torch.stack([measured.resolved for group in groups for measured in group.values()]).all(0)
    speed = statistics.median(group[PYTHAE].images_per_s for group in groups)
    for name in groups[0]:
        own = [group[name] for group in groups]
        nll, nll_stderr = mean_and_stderr([-measured.log_px.double().mean().item() for measured in own])
        gap, gap_stderr = difference([(group[PYTHAE].log_px - group[name].log_px)[common] for group in groups])
        images_per_s = statistics.median(measured.images_per_s for measured in own)
        row: Row = {
            "model": "VAE" if k == 1 else f"IWAE, k = {k}",
            "trained by": name,
            NLL: nll,
            f"{NLL} +-": nll_stderr,
            DIFFERENCE: gap,
            f"{DIFFERENCE} +-": gap_stderr if name != PYTHAE else math.nan,
            "unresolved": sum(int((~measured.resolved).sum()) for measured in own),
            "images/s": images_per_s,
            "times pythae's": images_per_s / speed,
            "peak MiB": max(measured.peak_mb for measured in own),
        }
        rows.append(row)
    return rows


def difference(seeds: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean of paired differences, one tensor `(N,)` for each of S seeds, and its standard error.

    The variances over examples, of the mean over seeds, and over seeds, of the mean over examples, are added; of one
    seed the second is unknown and left out. Fewer than two examples tell nothing.
    """
    d_SN = torch.stack(list(seeds)).double()
    S, N = d_SN.shape
    if N < 2:
        return math.nan, math.nan
    over_examples = d_SN.mean(0).var().item() / N
    over_seeds = d_SN.mean(1).var().item() / S if S > 1 else 0.0
    return d_SN.mean().item(), math.sqrt(over_examples + over_seeds)


def plot(rows: Sequence[Row]) -> Figure:
    """Return the differences of the nll with two standard errors, and the speeds."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    models = list(dict.fromkeys(row["model"] for row in rows))
    names = list(dict.fromkeys(row["trained by"] for row in rows))
    for i, name in enumerate(names):
        own = [row for row in rows if row["trained by"] == name]
        places = [models.index(row["model"]) + 0.25 * (i - 1) for row in own]
        errors = [2 * float(row[f"{DIFFERENCE} +-"]) for row in own]
        if name != PYTHAE:
            left.errorbar(
                places, [row[DIFFERENCE] for row in own], errors, fmt="o", capsize=3, label=name, color=f"C{i}"
            )
        right.bar(places, [row["images/s"] for row in own], width=0.23, label=name, color=f"C{i}")
    left.axhline(0, color="C0", label=PYTHAE)
    left.set(ylabel="nll above pythae's, nats, with two standard errors")
    right.set(ylabel="training images per second", yscale="log")
    for axes in (left, right):
        axes.set_xticks(range(len(models)), models)
    left.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
