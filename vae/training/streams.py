"""The random streams of a run, one for each purpose, from one seed.

numpy's SeedSequence mixes the seed and the number of the purpose into the seed of each stream. Streams of neighbouring
runs therefore have nothing in common, and neither have two streams of one run. torch's generator on a CPU uses the low
32 bits of a seed, a GPU's uses all 64.

Reference: O'Neill, Developing a seed_seq Alternative, 2015.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch


@dataclass(frozen=True)
class Streams:
    """The seed of each stream.

    Attributes:
        weights: initial weights, from torch's own generators.
        order: the order of the examples.
        codes: the seeds of the codes' noise, which the CPU draws, so that every device has the same noise.
        noise: prior samples, directions, dynamic binarisation and the dequantisation of a flow.
        layers: layers that draw, such as dropout, and a critic's initial weights, from torch's own generators.
        validation: the noise of the validation.
        evaluation: the noise of the evaluation.
    """

    weights: int
    order: int
    codes: int
    noise: int
    layers: int
    validation: int
    evaluation: int


def streams(seed: int) -> Streams:
    """Return the seeds of all streams of a run.

    Example:
        >>> streams(0).order == streams(0).order, streams(0).order == streams(1).order
        (True, False)
    """
    children = np.random.SeedSequence(seed).spawn(len(fields(Streams)))
    return Streams(*(int(child.generate_state(1, np.uint64)[0]) for child in children))


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator at the start of a stream, on the device that draws from it."""
    return torch.Generator(device).manual_seed(seed)


def evaluation_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator at the start of the stream of an evaluation with the setting eval.seed."""
    return generator(streams(seed).evaluation, device)
