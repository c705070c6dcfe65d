"""What this machine is, and what will repeat bit for bit on it: everything read back or measured, nothing assumed."""

import gc
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import NamedTuple

import torch

from ffrepro import __version__, config, determinism, devices, record, training
from ffrepro.config import Experiment, Params
from ffrepro.data import DATASETS, Split
from ffrepro.errors import MachineError
from ffrepro.layout import Layout
from ffrepro.progress import duration, tell

GIB = 2**30
NEEDED_GIB = 2  # CIFAR-10 packed, unpacked and as tensors, a checkpoint and the weights of a row


class Finding(NamedTuple):
    """good: True or False for what was checked, None for a plain fact."""

    what: str
    found: str
    good: bool | None = None


def findings(params: Params, project: Layout, device: torch.device) -> Iterator[Finding]:
    """Facts, switches, self-repeat, data, disk, and what each row would take, in the order of a report."""
    yield Finding("versions", f"ffrepro {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    yield Finding("packages", ", ".join(f"{name} {version(name)}" for name in ("torchvision", "dvc", "numpy")))
    for image in record.image().values():
        facts = f"revision {image['revision'][:12]}, base {image['base']}, {len(image['packages'])} packages"
        yield Finding("image", f"{image['config'] or 'digest not told'}; {facts}, SBOM {image['sbom'][:12]}")
    yield from _device(device)
    yield from switches()
    yield repeats(device)
    for data in dict.fromkeys(row.data.name for row in params.experiments.values()):
        yield Finding(f"data {data}", _data_state(data, project))
    free = shutil.disk_usage(project.root).free / GIB
    yield Finding("free disk", f"{free:.1f} GiB; {NEEDED_GIB} are needed", free >= NEEDED_GIB)
    originals, alike = config.original(project.params), 0
    for name, row in params.experiments.items():
        able = row.requires == "cpu" or device.type == "cuda"
        if not able and name not in originals:  # a step of a large network takes a CPU seconds
            alike += 1
            continue
        try:
            with devices.faults(f"row {name}", device):
                seconds, precision = devices.training_time(row, device)
        except MachineError as error:
            yield Finding(f"row {name}", str(error).removeprefix(f"row {name}: "), False)
            continue
        seeds = f"{len(row.seeds)} seed{'s' * (len(row.seeds) > 1)}"
        every = f"{duration(seconds * len(row.seeds))} for {seeds}"
        each = f"about {duration(seconds)} a seed, {every}{precision}, from a measured step"
        yield Finding(f"row {name}", each, able)
    if alike:
        yield Finding("more rows", f"{alike} need CUDA and are each like one above: not measured")


def _device(device: torch.device) -> Iterator[Finding]:
    threads = torch.get_num_threads()
    computing = f"{torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' if threads > 1 else ''}"
    yield Finding("CPU", f"{record.cpu_model()}, {computing}")
    if device.type != "cuda":
        there = torch.cuda.is_available()
        none = "not used" if there else f"none that PyTorch finds{devices.why_none()} (CUDA {torch.version.cuda} build)"
        yield Finding("GPU", f"{none}; rows that need CUDA wait")
        return
    gpu = torch.cuda.get_device_properties(device)
    facts = f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, {gpu.total_memory / GIB:.0f} GiB"
    facts += ", bfloat16 emulated" if gpu.major < 8 else ""
    libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    yield Finding("GPU", f"{facts}; {libraries}, driver {record.driver(device) or 'not told'}")


def switches() -> Iterator[Finding]:
    """Each switch of `determinism`, read back where PyTorch keeps it."""
    for what, found, right in determinism.switches():
        text, must = (("yes" if its else "no") if isinstance(its, bool) else str(its) for its in (found, right))
        variable = ", by CUBLAS_WORKSPACE_CONFIG; unset it" if what == "cuBLAS workspace" else ""
        yield Finding(what, text if found == right else f"{text}, must be {must}{variable}", found == right)


def repeats(device: torch.device) -> Finding:
    """Train a small network on random images twice, here and now, and compare all weights."""
    same, hashes = twice(config.Experiment.model_validate(PROBE), device)
    return Finding("4 steps, twice", f"weights {hashes[0]} and {hashes[1]}", same)


def twice(row: Experiment, device: torch.device) -> tuple[bool, list[str]]:
    """Train 4 steps of a row on random images twice: (whether all weights are equal, the beginnings of their
    hashes)."""
    row = config.changed(row, {"training.epochs": 1})
    n = 4 * row.training.batch
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *row.shape), generator=generator, dtype=torch.uint8)
    data = Split(images, torch.arange(n) % row.classes).to(device)
    hashes = []
    for _ in range(2):
        hashes.append(record.tensors_hash(training.train(row, 0, data).network.state_dict()))
        gc.collect()  # an engine and its steps hold one another, and with them a GPU's memory
    return hashes[0] == hashes[1], [one[:12] for one in hashes]


PROBE = {
    "title": "what `repeats` trains",
    "requires": "cpu",
    "seeds": [0],
    "data": {"name": "cifar10", "held_out": 0},
    "augmentation": {"crop": 4, "rotation": 15, "flip": True},
    "network": {"blocks": "16P 32P 32 32", "norm": "batch", "label_patch": 1},
    "training": {
        "update": "overlapping",
        "loss": "symba",
        "alpha": 4,
        "threshold": 2,
        "slope": 1,
        "hardness": 1,
        "epochs": 1,
        "batch": 32,
        "lr": 0.001,
        "schedule": "constant",
        "precision": "bfloat16",
    },
    "evaluation": {"vote": "last"},
    "verdict": {"reference_seeds": [1], "margin": 1, "alpha": 0.05},
}


def _data_state(name: str, project: Layout) -> str:
    if project.data(name).exists():
        return "prepared"
    contents = DATASETS[name].contents
    if not contents:
        return "embedded"
    there = sum((project.downloads / path).exists() for path in contents)
    return f"{there} of {len(contents)} files here; `ffrepro fetch {name}` brings and verifies them"


def promise(device: torch.device) -> str:
    """What is promised to be the same, and where, in one sentence."""
    key = ", ".join(f"{name} {value}" for name, value in record.environment(device).items())
    return f"The same row and seed give the same weights, bit for bit, wherever all of this is the same: {key}."


def report(params: Params, project: Layout, device: torch.device) -> bool:
    """Print the findings as they come; whether all that was checked is good. Rows are told of, and no fault."""
    with suppress(MachineError):  # a switch that does not stay is told of among the others
        determinism.switch_on()
    sound = True
    for what, found, good in findings(params, project, device):
        tell(f"{what}: {found}", good)
        sound &= good is not False or what.startswith("row ")
    print(promise(device))
    return sound
