"""Which device a command computes on, and what to say when a row needs one that is not here."""

import ctypes
import os

import torch

from ffrepro.config import Experiment, Params, experiment
from ffrepro.errors import MachineError, UserError
from ffrepro.progress import duration

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)
DEVICES = ("auto", "cpu", "cuda")


def wanted(given: str | None = None) -> str:
    """The word given, or FFREPRO_DEVICE, or auto. Raises UserError for another word."""
    word = given or os.environ.get("FFREPRO_DEVICE") or "auto"
    if word not in DEVICES:
        raise UserError(f"device: given {word!r}; allowed: {', '.join(DEVICES)} (--device or FFREPRO_DEVICE)")
    return word


def choose(given: str | None = None) -> torch.device:
    """CUDA where there is one, unless the CPU was asked for. Raises MachineError for CUDA where there is none.

    Also takes FFREPRO_THREADS, the number of CPU threads (default: PyTorch's own choice).
    """
    word, threads = wanted(given), os.environ.get("FFREPRO_THREADS")
    if threads:
        if not (threads.isdecimal() and 1 <= int(threads) <= 1024):
            raise UserError(f"FFREPRO_THREADS: given {threads!r}; allowed: a whole number from 1 to 1024")
        torch.set_num_threads(int(threads))
    if word == "cuda" and not torch.cuda.is_available():
        raise MachineError("device: cuda was asked for, and PyTorch finds no CUDA GPU here; use --device cpu")
    device = torch.device("cuda" if word != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_pages()
    return device


def fast() -> bool:
    """Whether FFREPRO_FAST asks for CUDA kernels that are picked by timing and do not repeat bit for bit."""
    return os.environ.get("FFREPRO_FAST", "") not in ("", "0")


def keep_states() -> bool:
    """Whether FFREPRO_KEEP asks for every epoch's state to stay, for `ffrepro audit`."""
    return os.environ.get("FFREPRO_KEEP", "") not in ("", "0")


def keep_pages() -> None:
    """Let glibc keep the memory that tensors give back, or a good part of a CPU step goes into fresh, zeroed pages.

    Without glibc nothing happens, and nothing depends on it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20)):
        mallopt(option, value)


def require(params: Params, name: str, given: str | None = None, *, measure: bool = False) -> None:
    """Raise MachineError when a row needs CUDA, there is none, and the CPU was not asked for in so many words.

    measure: say how long the CPU would take, which needs a step or two; a large network's take it seconds.
    """
    row = experiment(params, name)
    if row.requires == "cpu" or wanted(given) == "cpu" or torch.cuda.is_available():
        return
    instead = ", ".join([other for other, its in params.experiments.items() if its.requires == "cpu"][:2])
    takes = f"would take {cpu_time(row)} a seed (from measured steps)" if measure else "takes as `ffrepro doctor` says"
    raise MachineError(
        f"{name} needs a CUDA GPU and PyTorch finds none here; this CPU {takes}; "
        f"run {instead} instead, or the same with --device cpu (FFREPRO_DEVICE=cpu)"
    )


def cpu_time(row: Experiment) -> str:
    """How long one seed's training would take on this CPU, in words, from measured steps of few images."""
    from ffrepro.training import seconds_per_epoch

    return duration(seconds_per_epoch(row, torch.device("cpu")) * row.training.epochs)
