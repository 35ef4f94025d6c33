"""The counter-based noise stream: (seed, row, column) -> N(0, 1), the same numbers on every backend.

The 32-bit words are held in int64, because torch has shifts and products of int64 on every device. A product of two
words may wrap around in int64, but its two 32-bit halves stay correct.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._functorch import config

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
UNIFORM_SCALE = 4.6566127342e-10
UNIFORM_FLOOR = 1e-7

Generators = torch.Generator | Sequence[torch.Generator]

_WORD = 0xFFFFFFFF
_COUNTERS_PER_BLOCK = 65_536


def as_generators(generator: Generators) -> list[torch.Generator]:
    """Return a list of generators. Each draws for an equal share of the rows."""
    return [generator] if isinstance(generator, torch.Generator) else list(generator)


def draw_seed(device: torch.device, generator: Generators | None) -> Tensor:
    """Draw one seed from each generator, which may be on the CPU: then every device gets the same seeds.

    Refuse if the compiler may draw the seed again in backward, with other noise.
    """
    if torch.compiler.is_compiling() and (config.aggressive_recomputation or config.activation_memory_budget < 1):
        raise ValueError(
            "with aggressive_recomputation or an activation_memory_budget below 1, draw the seed outside the compiled "
            "function and pass it as seed: backward would draw another one."
        )
    if generator is None:  # torch.compile fails at a second batch size if it sees `generator=None`
        return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device)
    seeds = [
        torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=one.device, generator=one)
        for one in as_generators(generator)
    ]
    return (seeds[0] if len(seeds) == 1 else torch.cat(seeds)).to(device, non_blocking=True)


def normal(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the normals of `kernels.normal_noise`; seed is `(G,)`, G divides `shape[0]`."""
    rows = shape[0] // seed.numel()
    columns = math.prod(shape[1:])
    counters_per_row = -(-columns // 4)
    groups = [_stream(key, rows * counters_per_row) for key in seed.split(1)]
    padded = torch.cat(groups).view(shape[0], 4 * counters_per_row)
    return padded[:, :columns].reshape(shape).to(dtype)


def philox(counter: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words, held in int64, for each 64-bit counter (upper two counter words zero)."""
    c0, c1 = counter & _WORD, (counter >> 32) & _WORD
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(ROUNDS):
        low, high = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((high >> 32) & _WORD) ^ c1 ^ k0, high & _WORD
        c2, c3 = ((low >> 32) & _WORD) ^ c3 ^ k1, low & _WORD
        k0, k1 = (k0 + WEYL[0]) & _WORD, (k1 + WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _stream(key: Tensor, counters: int) -> Tensor:
    """Return the normals of counters 0 ... counters - 1, `(4 * counters,)`, computed in blocks that fit the cache."""
    block = counters if torch.compiler.is_compiling() else _COUNTERS_PER_BLOCK
    starts = range(0, max(counters, 1), max(block, 1))
    return torch.cat([_normals(torch.arange(i, min(i + block, counters), device=key.device), key) for i in starts])


def _normals(counter: Tensor, key: Tensor) -> Tensor:
    """Apply the Box-Muller transform to the four words of each counter, `(n,)` -> `(4 * n,)`."""
    a, b, c, d = map(_uniform, philox(counter, key))
    normals = []
    for u, v in ((a, b), (c, d)):
        radius = u.clamp_min(UNIFORM_FLOOR).log_().mul_(-2).sqrt_()
        angle = v.mul_(2 * math.pi)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, -1).view(-1)


def _uniform(word: Tensor) -> Tensor:
    """Map a word to [0, 1) as Triton does: read as int32, turn a negative x into -x - 1, times (2^-31 less an ulp)."""
    return torch.minimum(word, _WORD - word).to(torch.float32).mul_(UNIFORM_SCALE)
