"""Two processes that train one model against one process with the whole batch: the same figures and weights."""

import contextlib
import json
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist

from tests import chaos
from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Run
from vaebench.vae.errors import DivergedError
from vaebench.vae.training import distributed
from vaebench.vae.training import fit as train
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.fit import fit

SMALL = {
    "train.epochs": 2,
    "train.batch_size": 301,  # odd, so that the two have rows of different number
    "train.device": "cpu",
    "train.seed": 1,
    "train.learning_rate": 0.01,
    "model.hidden": "16",
    "model.latent": 3,
}
CASES = {
    "beta": {"objective.beta": 4.0},
    "mmd": {"objective.alpha": 0.5, "objective.lambda": 50.0},
    "kl of q(z)": {"objective.alpha": 0.5, "objective.lambda": 3.0, "objective.divergence": "kl"},
    "tc": {"objective.name": "tc_vae", "objective.w_tc": 6.0},
    "flow prior": {"model.prior": "flow", "objective.alpha": 0.5, "objective.lambda": 5.0},
    "flow posterior": {"model.posterior": "iaf"},
    "early stopping": {"train.patience": 1, "train.epochs": 4, "train.learning_rate": 0.2},
}


def trained(case):
    """Return the history of a training and its weights."""
    result = fit(Run().replace(SMALL | CASES[case]))
    history = [{name: v for name, v in epoch.items() if not name.startswith("perf/")} for epoch in result.history]
    return history, {name: tensor.double() for name, tensor in result.model.state_dict().items()}


def diverges():
    """Return the sentence with which a training diverges."""
    try:
        fit(Run().replace(SMALL | {"train.learning_rate": 1e30, "train.clip_norm": 1e30}))
    except DivergedError as error:
        return str(error)
    return ""


def stopped_and_resumed(folder):
    """Return the weights of four epochs that were interrupted after two."""
    config, epoch = Run().replace(SMALL | {"train.epochs": 4}), train.run_epoch

    def interrupted(state, *arguments):
        if state.epoch == 2:
            raise KeyboardInterrupt
        return epoch(state, *arguments)

    train.run_epoch = interrupted
    with contextlib.suppress(KeyboardInterrupt):
        fit(config, folder=folder)
    train.run_epoch = epoch
    dist.barrier()
    return fit(config, folder=folder).model.state_dict(), fit(config).model.state_dict()


def with_a_buffer(rank):
    """Return the warnings of sharing out a model, and its buffer of this process before and after two steps."""
    model = models.build(Run().replace(SMALL).model, (6,), levels=2)
    model.register_buffer("own", torch.tensor(float(rank)))
    found = [model.own.item()]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        apply = distributed.distribute(model, draws=1)
        for _ in range(2):
            apply(lambda model: objectives.terms(model, torch.ones(4, 6), seed=1).log_px.sum()).backward()
            found.append(model.own.item())
    return [str(warning.message) for warning in warned], found


def member(rank, folder):
    """Train everything as one of two processes, and leave the results in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    heard = []
    fit(Run().replace(SMALL), report=lambda epoch, metrics: heard.append(epoch), folder=folder / "kept")
    found = {case: trained(case) for case in CASES}
    resumed = stopped_and_resumed(folder / "stopped")
    told = {"found": found, "heard": heard, "diverged": diverges(), "resumed": resumed, "buffer": with_a_buffer(rank)}
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.start_processes(member, (folder,), nprocs=2, start_method="spawn")
    return folder, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_whole_batch(pair, case):
    history, weights = trained(case)
    for found, theirs in (member["found"][case] for member in pair[1]):
        assert len(found) == len(history)
        for ours, epoch in zip(history, found, strict=True):
            assert epoch == pytest.approx(ours, rel=2e-4, abs=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_one_process_writes_and_reports_and_both_hold_the_same_weights(pair):
    folder, (leader, follower) = pair
    assert (leader["heard"], follower["heard"]) == ([1, 2], [])
    assert (folder / "kept" / CURRENT).exists()
    for case in CASES:
        for name, tensor in leader["found"][case][1].items():
            assert torch.equal(tensor, follower["found"][case][1][name]), (case, name)


def test_both_diverge_at_the_same_step(pair):
    sentence = diverges()
    assert "training diverged in epoch 1 at step" in sentence
    for member in pair[1]:
        assert member["diverged"].partition(":")[0] == sentence.partition(":")[0]


def test_a_training_of_two_that_was_stopped_goes_on_to_the_same_bits(pair):
    for member in pair[1]:
        resumed, whole = member["resumed"]
        for name, tensor in whole.items():
            assert torch.equal(resumed[name], tensor), name


def test_each_process_keeps_its_own_buffers_and_nothing_warns(pair):
    for rank, member in enumerate(pair[1]):
        assert member["buffer"] == ([], [rank] * 3)


@pytest.mark.slow
def test_torchrun_trains_one_model_and_says_everything_once(tmp_path):
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(chaos.ROOT / "studies" / "train.py"), *settings, "--set", "eval.examples=20", "--folder", "two"]
    command += ["--tracking-uri", "none"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test/bits_per_dim") == 1
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines[:2]] == [1, 2]
    assert math.isfinite(lines[-1]["test/elbo"])


def test_alone_nothing_is_shared():
    assert (distributed.world_size(), distributed.is_main_process()) == (1, True)
    model = object()
    assert distributed.distribute(model, draws=1)(lambda given: given) is model
