"""One stream of random numbers on every machine: CPU generators keyed by (seed, purpose, epoch).

Only `rand`, `randint` and `randperm` are drawn, in this order of trust: their values are the same for every
CPU instruction set, while `randn`, `uniform_` and the generators of CUDA depend on the machine. Since each
epoch has generators of its own, resuming at an epoch's start needs no generator state.
"""

import hashlib

import torch
from torch import Generator, Tensor


def generator(seed: int, purpose: str, epoch: int = 0) -> Generator:
    """A CPU generator that depends on (seed, purpose, epoch) and on nothing else."""
    key = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(key[:8], "big"))


def uniform(shape: tuple[int, ...], bound: float, generator: Generator) -> Tensor:
    """U(-bound, bound), drawn and scaled in float64, returned as float32."""
    return ((torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * bound).float()


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """N(0, 1) by the inverse normal CDF in float64, returned as float32.

    `rand` gives multiples of 2^-53 from 0 on; half a multiple more keeps the CDF's argument inside (0, 1).
    """
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64) + 2.0**-54
    quantile: Tensor = torch.special.ndtri(uniform)
    return quantile.float()
