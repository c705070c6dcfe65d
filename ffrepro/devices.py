"""Which device a command computes on, and what to say when a row needs one that is not here."""

import contextlib
import ctypes
import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator

import torch

from ffrepro import negatives, portable, record, switched_on, training
from ffrepro.config import SHAPES, Experiment, Params, changed, experiment
from ffrepro.data import Split
from ffrepro.engine import Engine
from ffrepro.errors import MachineError, UserError
from ffrepro.step import optimizers

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)
DEVICES = ("auto", "cpu", "cuda")
TIMED = 8  # steps of an epoch that is timed: two launched, two captured, the rest replayed in the epoch before it


def wanted(given: str | None = None) -> str:
    """The word given, or FFREPRO_DEVICE, or auto. Raises UserError for another word."""
    word = given or os.environ.get("FFREPRO_DEVICE") or "auto"
    if word not in DEVICES:
        raise UserError(f"device: given {word!r}; allowed: {', '.join(DEVICES)} (--device or FFREPRO_DEVICE)")
    return word


def choose(given: str | None = None) -> torch.device:
    """CUDA where there is one, unless the CPU was asked for. Raises MachineError for CUDA where there is none.

    The portable profile is a CPU's: UserError for CUDA beside it. Also takes FFREPRO_THREADS, the number of CPU threads
    (default: PyTorch's own choice, and no more than `cores`; the portable profile has one). UserError, too, for
    variables with which a CPU cannot be trusted (`_variables`).
    """
    word, threads = wanted(given), os.environ.get("FFREPRO_THREADS")
    if threads:
        if not (threads.isdecimal() and len(threads) < 10 and 1 <= int(threads) <= 1024):
            raise UserError(f"FFREPRO_THREADS: given {threads!r}; allowed: a whole number from 1 to 1024")
        if not portable():
            torch.set_num_threads(int(threads))
    else:
        keep_to_cores()
    if word == "cuda" and portable():
        raise UserError("device: given cuda with the portable profile (FFREPRO_PORTABLE); allowed: auto, cpu")
    if word == "cuda" and not gpu_here():
        raise MachineError(
            f"device: cuda was asked for, and PyTorch finds no CUDA GPU here{why_none()}; use --device cpu"
        )
    device = torch.device("cuda" if word != "cpu" and gpu_here() else "cpu")
    if device.type == "cpu":
        _variables()
        keep_pages()
    else:
        # An engine that is gone lives on until the garbage collector comes, and with it its graphs; to free those while
        # another graph is captured would end that capture (pytorch #161037). So the collector comes before.
        torch.compiler.config.force_cudagraph_gc = True
    return device


def _variables() -> None:
    """Raise UserError for variables with which PyTorch's oneDNN does not do on a CPU what a record says, or hangs.

    It reads FPMATH_MODE when PyTorch is loaded, and computes float32 with fewer digits then, whatever PyTorch is told.
    Where OpenMP starts fewer threads than PyTorch counts on, it waits for the others for ever (torch 2.11.0, in the
    gradients of convolutions). The portable profile has one thread, and AVX2, which has no such digits.
    """
    if portable():
        return
    threads = torch.get_num_threads()
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        if (mode := os.environ.get(name, "")).lower() not in ("", "strict"):
            raise UserError(f"{name}: given {mode!r}, by which float32 has fewer digits; allowed: strict, or unset it")
    if threads > 1 and _openmp("dynamic", 0):
        given = f"OMP_DYNAMIC: given {os.environ.get('OMP_DYNAMIC', 'true')!r}"
        raise UserError(
            f"{given}, by which CPU threads come and go with the machine's load; allowed: false, or unset it"
        )
    if threads > 1 and not _openmp("max_active_levels", 1):
        raise UserError("OMP_MAX_ACTIVE_LEVELS: given 0; allowed: 1 or more, or unset it")
    if (limit := _openmp("thread_limit", threads)) < threads:
        given = f"FFREPRO_THREADS: given {threads}"
        raise UserError(f"{given}; allowed: no more than the {limit} of OMP_THREAD_LIMIT, or unset that")


def _openmp(name: str, otherwise: int) -> int:
    """What the OpenMP that PyTorch has loaded made of its variables; `otherwise` where it cannot be asked."""
    try:
        return int(getattr(ctypes.CDLL(None), f"omp_get_{name}")())
    except (AttributeError, OSError, TypeError):
        return otherwise


def keep_to_cores() -> None:
    """No more CPU threads than `cores`."""
    if (most := cores()) < torch.get_num_threads():
        torch.set_num_threads(most)


def cores(processes: int = 1) -> int:
    """How many CPU cores there are for each of some processes: also by a container's, a pod's or a job's share of time,
    or by OMP_THREAD_LIMIT, which each has to itself. PyTorch knows of neither: it would start a thread for every core
    that it sees. Raises UserError for a LOKY_MAX_CPU_COUNT that is no number."""
    try:
        from joblib import cpu_count
    except ImportError:  # a borrowed machine
        there = len(os.sched_getaffinity(0))
    else:
        try:
            there = int(cpu_count())
        except ValueError:
            given = f"LOKY_MAX_CPU_COUNT: given {os.environ.get('LOKY_MAX_CPU_COUNT')!r}"
            raise UserError(f"{given}; allowed: a whole number, or unset it") from None
    share = max(1, there // processes)
    return min(share, _openmp("thread_limit", share))


def gpu_here() -> bool:
    """Whether there is a GPU that may be used: the portable profile has none."""
    return torch.cuda.is_available() and not portable()


def stand_in(row: Experiment, device: torch.device) -> str:
    """The row's precision, or what stands in for float16 on a CPU, which would take days for it."""
    if device.type != "cpu" or row.training.precision != "float16":
        return row.training.precision
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def fast() -> bool:
    """Whether FFREPRO_FAST asks for CUDA kernels that are picked by timing and do not repeat bit for bit."""
    return switched_on("FFREPRO_FAST")


def keep_states() -> bool:
    """Whether FFREPRO_KEEP asks for every epoch's state to stay, for `ffrepro audit`."""
    return switched_on("FFREPRO_KEEP")


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
    if row.requires == "cpu" or wanted(given) == "cpu" or gpu_here():
        return
    instead = ", ".join([other for other, its in params.experiments.items() if its.requires == "cpu"][:2])
    cpu, takes = torch.device("cpu"), "takes as `ffrepro doctor` says"
    if measure:
        from ffrepro.progress import duration  # with rich, which a borrowed machine may lack

        seconds, precision = training_time(row, cpu)
        takes = f"would take {duration(seconds)} a seed{precision} (from measured steps)"
    same = ", or the same with --device cpu (FFREPRO_DEVICE=cpu)"
    if row.training.precision != stand_in(row, cpu):
        same = f"; in {row.training.precision}, which this row has, a CPU takes many times as long"
    none = "the portable profile is a CPU's" if portable() else f"PyTorch finds none here{why_none()}"
    raise MachineError(f"{name} needs a CUDA GPU and {none}; this CPU {takes}; run {instead} instead{same}")


def why_none() -> str:
    """In brackets, why PyTorch finds no GPU, in its own words; "" where there simply is none."""
    words = []
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # of several classes
        words = [str(error).partition(". ")[0].partition("\n")[0]]
    if words and "Found no NVIDIA driver" in words[0]:
        driver = record.driver(torch.device("cuda"))
        words = ["NVIDIA's driver is there without its libraries: in a container, --gpus all"] if driver else []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        words.append(f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}")
    return f" ({'; '.join(words)})" if words else ""


# What PyTorch has no class of its own for: memory of the host, of cuBLAS, of a GPU whose management library is shut off
# (MIG in a container), and what cuDNN and cuBLAS say of a GPU that failed.
NO_MEMORY = re.compile("can't allocate memory|CUDA.*(out of memory|ALLOC_FAILED)|NVML_SUCCESS")
FAILED = re.compile(r"^(CUDA|cuDNN) error|^(GET|FIND) was unable to find an engine|CUDA_CALL|CUDACachingAllocator")


@contextlib.contextmanager
def faults(run: str, device: torch.device, row: Experiment | None = None) -> Iterator[None]:
    """What the machine does to a computation, as one line: MachineError where memory ran out or the GPU failed.

    run: its name. With its row, for a training, the line names the largest half, quarter, ... of the batch that fits
    here, found by trying.
    """
    full = None
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        full = error.__traceback__
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        why = "".join(str(error.args[0]).splitlines()[:1]) if error.args else ""
        if NO_MEMORY.search(why):
            full = error.__traceback__
        elif isinstance(error, torch.AcceleratorError | torch.cuda.DeferredCudaCallError) or FAILED.search(why):
            raise _failed(
                run, why, "the same command goes on from the last checkpoint" if row else "run again"
            ) from None
        else:
            raise
    if full:
        where = f"{run}: out of memory on {device.type}"
        traceback.clear_frames(full)  # they hold the tensors of the step that failed, also here, after the handler
        del full
        gc.collect()
        if not row:
            raise MachineError(f"{where}; free some and run again")
        batch = fitting_batch(row, device)
        raise MachineError(
            f"{where} with training.batch {row.training.batch}; {batch or 'no smaller one'} would fit here now: free "
            "some and run again, or give that batch to a row of your own (docs/adding.md)"
        )


def _failed(run: str, why: str, again: str) -> MachineError:
    if "no kernel image" in why:
        known = sorted({_capability(name) for name in torch.cuda.get_arch_list()} or {0})
        return MachineError(
            f"{run}: PyTorch has no code for this GPU ({why}), only for compute capability {known[0] / 10:.1f} to "
            f"{known[-1] / 10:.1f}; use --device cpu (FFREPRO_DEVICE=cpu), or another GPU"
        )
    if "unable to find an engine" in why:  # cuDNN keeps to itself why each of its ways failed
        return MachineError(
            f"{run}: the GPU's memory is full, or the GPU failed, or cuDNN has no deterministic way for it ({why}); "
            f"see who uses it (nvidia-smi), then {again}"
        )
    if "num_gpus" in why:  # several MIG parts, of which CUDA sees one
        return MachineError(f"{run}: PyTorch cannot tell the GPUs apart ({why}); name one with CUDA_VISIBLE_DEVICES")
    return MachineError(f"{run}: the GPU failed ({why}); once the GPU answers again, {again}")


def _capability(architecture: str) -> int:
    """Ten times the compute capability of PyTorch's name for it, sm_75 say."""
    return int("".join(filter(str.isdecimal, architecture)) or 0)


def fitting_batch(row: Experiment, device: torch.device) -> int | None:
    """The largest half, quarter, ... of the row's batch of which two steps fit into memory beside the data set."""

    def fits(batch: int) -> bool:
        smaller = row.training.model_copy(update={"batch": batch})
        n = 2 * batch  # an even and an odd step
        try:
            beside = torch.zeros(SHAPES[row.data.name][1], *row.shape, dtype=torch.uint8, device=device)
            data = Split(beside[:n], torch.arange(n, device=device) % row.classes)
            untrained(row.model_copy(update={"training": smaller}), data).epoch(0, 0)
        except (MemoryError, RuntimeError):  # torch.OutOfMemoryError is one
            return False
        return True

    batch = row.training.batch // 2
    while batch > 1:
        if fits(batch):
            return batch
        gc.collect()
        batch //= 2
    return None


def untrained(row: Experiment, data: Split, say: Callable[[str], None] = lambda _: None) -> Engine:
    """The row's engine before its first epoch, over these images and on their device; for measuring."""
    device = data.images.device
    network = training.build(row, 0, device)
    memory = negatives.memory(len(data.labels), row.classes, device)
    return Engine(network, optimizers(network, row.training), memory, data, row, say)


def training_time(row: Experiment, device: torch.device) -> tuple[float, str]:
    """Seconds that one seed's training would take on `device`, from measured steps; " in bfloat16" or the like where
    that is another precision than the row's: some CPUs take minutes for one step in float16."""
    precision = stand_in(row, device)
    other = f" in {precision}" if precision != row.training.precision else ""
    row = changed(row, {"training.precision": precision})
    measure = seconds_replayed if device.type == "cuda" else training.seconds_per_epoch
    return measure(row, device) * row.training.epochs, other


def seconds_replayed(row: Experiment, device: torch.device) -> float:
    """What an epoch would take on a GPU: from the second of two epochs of a few steps, when graphs replay them.

    The first two steps, which `training.seconds_per_epoch` goes by, are launched one kernel at a time.
    """
    n = TIMED * row.training.batch
    data = Split(torch.zeros(n, *row.shape, dtype=torch.uint8), torch.arange(n) % row.classes)
    engine = untrained(row, data.to(device))
    engine.epoch(0, 0)
    begun = time.perf_counter()
    engine.epoch(0, 1)  # ends when its sums are read
    seconds = (time.perf_counter() - begun) / TIMED
    del engine
    gc.collect()  # an engine and its steps hold one another, and with them the graphs' memory
    return row.steps * seconds
