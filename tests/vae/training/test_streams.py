"""The streams of runs: no two overlap, on a CPU or on a GPU, and each purpose draws from its own."""

import dataclasses

import numpy as np
import pytest
import torch

from vaebench.vae.config.run import Run
from vaebench.vae.evaluation import evaluate as evaluations
from vaebench.vae.training import epoch as epochs
from vaebench.vae.training import setup, state
from vaebench.vae.training import streams as streams_module
from vaebench.vae.training.fit import fit
from vaebench.vae.training.streams import Streams, generator, streams

SEEDS, DRAWS, TABLE = 100, 10**6, 2**16


def all_seeds():
    """Return the seeds of all streams of runs 0 to 99."""
    return [value for seed in range(SEEDS) for value in dataclasses.astuple(streams(seed))]


def words(seed, count):
    """Return 31 bits of each of the first words of a CPU generator; `random_` of an int32 uses one word a draw."""
    return torch.empty(count, dtype=torch.int32).random_(generator=generator(seed)).numpy().astype(np.int64)


def starts_within(starts, stream):
    """Return the pairs of neighbouring words in a stream that are the first two of any stream, `(place, pair)`."""
    table = np.zeros(TABLE, dtype=bool)  # of the low bits: 1 in 90 pairs passes, and is compared with all starts
    table[starts % TABLE] = True
    pairs = stream[:-1] << 31 | stream[1:]
    candidates = np.flatnonzero(table[pairs % TABLE])
    known = set(starts.tolist())
    return [(int(place), int(pairs[place])) for place in candidates if int(pairs[place]) in known]


def test_no_two_streams_overlap_in_their_first_million_draws():
    """Of two streams of one generator that overlap, one begins within the other: its first two words are found there.

    Mersenne's period has one cycle, so every CPU stream is a part of it. The two words have 62 bits; among 700 streams
    of 10^6 words, the chance that any pair coincides without an overlap is 1e-7.
    """
    seeds = all_seeds()
    firsts = [words(seed, 2) for seed in seeds]
    starts = np.array([first << 31 | second for first, second in firsts])
    assert len(set(starts.tolist())) == len(seeds) == SEEDS * len(dataclasses.fields(Streams))
    for own, seed in zip(starts, seeds, strict=True):
        found = starts_within(starts, words(seed, DRAWS))
        assert found == [(0, own)], f"stream {seed} contains the start of another"


def test_a_stream_that_starts_within_another_is_found():
    stream = words(5, 1000)
    starts = np.array([int(stream[700] << 31 | stream[701]), 12345])
    assert starts_within(starts, stream) == [(700, starts[0])]


def test_streams_of_a_gpu_have_different_keys():
    """Philox draws number n of a stream as a function of n and of its key alone, and the key is a seed of 64 bits."""
    assert len({seed % 2**64 for seed in all_seeds()}) == SEEDS * len(dataclasses.fields(Streams))


CONFIG = Run().replace({"train.epochs": 1, "model.hidden": "8", "model.latent": 2, "train.device": "cpu"})
CONFIG = CONFIG.replace({"model.dropout": 0.3, "objective.lambda": 3, "eval.examples": 20})
# Where a stream of another seed shows, for a run with dropout and prior samples.
SHOWS = {
    "weights": {"train", "valid", "test"},
    "order": {"train", "valid", "test"},
    "codes": {"train", "valid", "test"},
    "noise": {"train", "valid", "test"},
    "layers": {"train", "valid", "test"},
    "validation": {"valid"},
    "evaluation": {"test"},
}


def outcome(monkeypatch, **replaced):
    """Return the metrics of a run, by their kind, in which streams begin at other seeds."""
    with monkeypatch.context() as patch:
        for module in (setup, state, epochs, evaluations, streams_module):
            patch.setattr(module, "streams", lambda seed: dataclasses.replace(streams(seed), **replaced))
        result = fit(CONFIG)
        found = result.history[0] | likelihood_metrics_of(result)
    kinds = {name.partition("/")[0] for name in found} - {"perf"}
    return {kind: {name: value for name, value in found.items() if name.startswith(kind)} for kind in kinds}


def likelihood_metrics_of(result):
    found = evaluations.likelihood_metrics(result.model, result.splits.test, result.config)
    return {f"test/{name}": value for name, value in found.items()}


@pytest.mark.parametrize("purpose", SHOWS)
def test_each_purpose_draws_from_its_own_stream_and_no_other_does(purpose, monkeypatch):
    usual, other = outcome(monkeypatch), outcome(monkeypatch, **{purpose: 987654321})
    assert {kind for kind in usual if usual[kind] != other[kind]} == SHOWS[purpose]
    assert list(SHOWS) == [field.name for field in dataclasses.fields(Streams)]
