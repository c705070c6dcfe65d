"""Reproduce The Trifecta (arXiv 2311.18130), Forward-Forward training of deep networks, and prove it."""

import os

__version__ = "0.1.0"

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""What the portable profile asks of PyTorch's libraries; they read it when they start."""


BINDING = ("GOMP_CPU_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""Variables by which PyTorch's OpenMP binds a process, and all that it starts, to one core; some clusters set them."""


def switched_on(name: str) -> bool:
    """Whether a variable is set, to anything but a word for no."""
    return os.environ.get(name, "").lower() not in ("", "0", "f", "false", "n", "no", "off")


def portable() -> bool:
    """Whether FFREPRO_PORTABLE asks for the CPU profile that aims at the same bits on every x86 CPU with AVX2."""
    return switched_on("FFREPRO_PORTABLE")


if portable():
    os.environ.update(PORTABLE)
for name in BINDING:
    os.environ.pop(name, None)
