"""Every switch that makes a run repeat bit for bit, set in one place before the first tensor is computed.

Promised: the same row, seed, code and environment (`record.environment`) give the same weights, bit for bit. The
number of CPU threads is part of the environment: one thread more adds the same numbers in another order.
"""

import os

import torch


def switch_on(*, fast: bool = False) -> None:
    """Set the switches for this process, before anything is computed on a device.

    fast: let CUDA's libraries pick their kernels by timing, which is quicker and does not repeat bit for bit; a run's
    record names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; older cuBLAS needs it
    torch.use_deterministic_algorithms(not fast)
    torch.backends.cudnn.benchmark = fast
    torch.backends.cudnn.deterministic = not fast
    # Filling fresh memory with NaN costs 7 % of a step and changes nothing: no step reads what nobody wrote, which
    # tests/test_engine.py checks by filling.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # The legacy names first, then the leaves: either alone leaves TF32 on somewhere in 2.11 (pytorch #179445, #166387).
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at import
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
