"""Every switch that makes a run repeat bit for bit, set in one place before the first tensor is computed; read back.

Promised: the same row, seed, code and environment (`record.environment`) give the same weights, bit for bit. The
number of CPU threads is part of the environment: one thread more adds the same numbers in another order.

The portable profile (FFREPRO_PORTABLE=1) narrows a CPU down to one thread and AVX2, for weights that are meant to be
the same on every x86 that has it: `ffrepro/__init__.py` sets its variables before PyTorch starts.
"""

import os
from typing import NamedTuple

import torch

from ffrepro import PORTABLE, portable
from ffrepro.errors import MachineError


class Switch(NamedTuple):
    what: str
    found: object
    right: object


def switch_on(*, fast: bool = False) -> None:
    """Set the switches for this process, before anything is computed on a device.

    fast: let CUDA's libraries pick their kernels by timing, which is quicker and does not repeat bit for bit; a run's
    record names it. Raises MachineError when a switch does not stay where it was put.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; older cuBLAS needs it
    torch.use_deterministic_algorithms(not fast)
    torch.backends.cudnn.benchmark = fast
    torch.backends.cudnn.deterministic = not fast
    # Filling fresh memory with NaN costs time and changes nothing: no step reads what nobody wrote, which
    # tests/test_engine.py checks by filling.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # The legacy names first, then the leaves: either alone leaves TF32 on somewhere in 2.11 (pytorch #179445, #166387).
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at import
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    if portable():
        torch.set_num_threads(1)
    for what, found, right in switches(fast=fast):
        if found != right:
            raise MachineError(f"determinism: {what} is {found!r} and must be {right!r}; see `ffrepro doctor`")


def switches(*, fast: bool = False) -> list[Switch]:
    """Each switch as PyTorch has it, and as it must be."""
    backends = torch.backends
    found = [
        Switch("deterministic algorithms", torch.are_deterministic_algorithms_enabled(), not fast),
        Switch("... as warnings, not errors", torch.is_deterministic_algorithms_warn_only_enabled(), False),
        Switch("cuDNN picks kernels by timing", backends.cudnn.benchmark, fast),
        Switch("cuDNN deterministic", backends.cudnn.deterministic, not fast),
        Switch("TF32 in convolutions", backends.cudnn.conv.fp32_precision, "ieee"),  # type: ignore[attr-defined]
        Switch("TF32 in recurrent layers", backends.cudnn.rnn.fp32_precision, "ieee"),  # type: ignore[attr-defined]
        Switch("TF32 in matrix products", backends.cuda.matmul.fp32_precision, "ieee"),
        Switch("cuBLAS workspace", os.environ.get("CUBLAS_WORKSPACE_CONFIG"), ":4096:8"),
    ]
    if portable():
        found += [Switch(name, os.environ.get(name), value) for name, value in PORTABLE.items()]
        found += [
            Switch("instructions", torch.backends.cpu.get_cpu_capability(), "AVX2"),
            Switch("threads", torch.get_num_threads(), 1),
        ]
    return found
