"""What ran, on what, from what: hashes of tensors and code, the environment, and files that are whole or absent."""

import csv
import hashlib
import importlib
import io
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffrepro import portable
from ffrepro.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

NUMBERS = (
    "augment",
    "backprop",
    "data",
    "determinism",
    "engine",
    "goodness",
    "hinton",
    "negatives",
    "network",
    "randomness",
    "step",
    "training",
)
"""The modules whose source decides a training's numbers: a checkpoint of other code is not resumed."""


def tensors_hash(tensors: Mapping[str, "Tensor"]) -> str:
    """SHA-256 of tensors, not of a file: for each name in order, name, type and shape as text, then the values.

    The values are hashed as little-endian bytes, last index fastest, so device, strides and file format do not matter.
    """
    import torch

    def parts() -> "Iterator[tuple[str, str, Sequence[int], NDArray[Any]]]":
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            kind = str(tensor.dtype).removeprefix("torch.")
            yield name, kind, tensor.shape, tensor.flatten().view(torch.uint8).numpy()

    return _hash(parts())


def _hash(parts: Iterable[tuple[str, str, Sequence[int], "NDArray[Any]"]]) -> str:
    digest = hashlib.sha256()
    for name, kind, shape, values in parts:
        digest.update(f"{name}\0{kind}\0{list(shape)}\0".encode())
        digest.update(values.data)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def regular(path: Path) -> Path:
    """The path, to be read. Raises UserError for a pipe, which would be waited for, and a device, which may not end."""
    try:
        mode = path.stat().st_mode
    except OSError:  # what reads it says so
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: cannot be read: a pipe or a device, not a file")
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises UserError in one line when it cannot be read."""
    try:
        return hashlib.sha256(regular(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def every_module() -> list[str]:
    """The names of all modules of the package."""
    return [path.stem for path in Path(__file__).parent.glob("*.py")]


def lock_hash(root: Path) -> str | None:
    """SHA-256 of the project's locked requirements; None where only the source travelled."""
    files = sorted((root / "requirements").glob("*.txt"))
    return text_hash("\0".join(f"{file.name}\0{file.read_text(encoding='utf-8')}" for file in files)) if files else None


def code_hash(modules: Iterable[str] = NUMBERS) -> str:
    """SHA-256 of the named modules' source, line ends made alike."""
    folder = Path(__file__).parent
    sources = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in modules}
    return text_hash("\0".join(f"{name}\0{sources[name]}" for name in sorted(sources)))


def _cpuinfo() -> dict[str, str]:
    """What Linux tells of the first processor; {} elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return {}
    with info.open() as file:
        first = [line.partition(":") for line in takewhile(str.strip, file)]  # an empty line ends each
    return {name.strip(): value.strip() for name, _, value in first}


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


GENERATION = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
INSTRUCTIONS = re.compile(r"avx2|avx10_.*|avx512_(bw|vnni|bf16|fp16)|avx_.+|amx_.*|neon|bf16|i8mm|sve.*|sme.*")
"""Those by which PyTorch's libraries choose their code, and beside them whose numbers say which kind a processor is."""


def processor() -> str:
    """The processor's maker and generation, the `INSTRUCTIONS` that this process may use, and the size of a core's
    second cache, by which blocks of products are cut; "" where nothing is told.

    Many have one name: a virtual machine's is often "Intel(R) Xeon(R) Processor" or "AMD EPYC", and Arm's have none.
    """
    import torch

    its, able = _cpuinfo(), torch.cpu.get_capabilities()
    has = sorted(name for name, there in able.items() if there is True and INSTRUCTIONS.fullmatch(name))
    cache = able.get("l2_cache_size")
    told = [its[name] for name in GENERATION if name in its] + has
    return " ".join([*told, f"L2 {cache // 1024} KiB"] if cache else told)


CHOOSING = {
    "cpu": (
        "DNNL_CPU_ISA_HINTS",
        "DNNL_MAX_CPU_ISA",
        "GLIBC_TUNABLES",
        "MKL_CBWR",
        "MKL_ENABLE_INSTRUCTIONS",
        "MKL_NUM_STRIPES",
        "ONEDNN_CPU_ISA_HINTS",
        "ONEDNN_MAX_CPU_ISA",
    ),
    "cuda": (
        "CUBLASLT_WORKSPACE_SIZE",
        "CUBLAS_EMULATE_SINGLE_PRECISION",
        "CUBLAS_EMULATION_STRATEGY",
        "DISABLE_ADDMM_CUDA_LT",
        "NVIDIA_TF32_OVERRIDE",
        "TORCH_BLAS_PREFER_CUBLASLT",
        "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
        "TORCH_CUDNN_V8_API_DISABLED",
    ),
}
"""Variables by which PyTorch and its libraries choose other ways of computing on a device; few set any."""


def environment(device: "torch.device") -> dict[str, Any]:
    """What the bits of a run depend on besides code, parameters and data. Names no user, host or path."""
    import torch

    facts: dict[str, Any] = {"torch": torch.__version__, "device": device.type}
    if not portable():  # Python's version has no say in what PyTorch and the C library compute
        facts = {"python": platform.python_version(), **facts}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": gpu.name,
            "multiprocessors": gpu.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    else:
        facts |= {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
        if not portable():  # the libraries know more kinds of CPU than PyTorch's name for the instruction set tells
            facts["model"] = cpu_model()
            facts |= {"processor": told} if (told := processor()) else {}
    names = () if portable() else CHOOSING[device.type]  # the portable profile sets those that matter itself
    if chosen := [f"{name}={ascii(os.environ[name])[1:-1]}" for name in names if os.environ.get(name)]:
        facts["variables"] = " ".join(chosen)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        facts["processes"] = torch.distributed.get_world_size()
    kernels = "deterministic" if torch.are_deterministic_algorithms_enabled() else "fast"
    profile = {"profile": "portable"} if portable() else {}
    return facts | {"kernels": kernels, "machine": platform.machine()} | profile


def unlike(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """What two environments do not agree on, what only one of them tells included."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def same_environment(one: dict[str, Any], other: dict[str, Any]) -> bool | None:
    """Whether two environments promise the same bits; None where only one of them names its `processor`, as records
    have done since the end of 2026, and the rest is the same."""
    apart = unlike(one, other)
    if apart == {"processor"} and not ("processor" in one and "processor" in other):
        return None
    return not apart


IMAGE = Path(__file__).parent.parent / "image" / "identity.json"
"""What a container image holds, written while it was built (image/inventory.py); there is none outside of images."""
IMAGE_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")


def image() -> dict[str, Any]:
    """The container image that this runs in, as `{"image": ...}`; {} outside of one.

    revision, base, the SBOM's SHA-256, and each package with its version and the SHA-256 of its RECORD, were written
    down in the image; the digest of its configuration, which it cannot contain, is told by who started it, in
    FFREPRO_IMAGE_ID. Raises UserError for another word there.
    """
    if not IMAGE.exists():
        return {}
    told = os.environ.get("FFREPRO_IMAGE_ID") or None
    if told and not IMAGE_ID.fullmatch(told):
        allowed = "what `docker image inspect --format '{{.Id}}' ffrepro` prints, sha256: and 64 hexadecimal digits"
        raise UserError(f"FFREPRO_IMAGE_ID: given {told!r}; allowed: {allowed}")
    return {"image": {"config": told, **read_json(IMAGE)}}


def joules(device: "torch.device") -> float | None:
    """What the GPU has consumed since its driver was loaded; None where it does not tell, or on a CPU."""
    if device.type != "cuda":
        return None
    import torch

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    used = _nvml(lambda nvml: nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByUUID(uuid)))
    return None if used is None else used / 1000


def driver(device: "torch.device") -> str | None:
    """The version of the GPU's driver, such as 580.95.05; None where it does not tell, or on a CPU."""
    if device.type != "cuda":
        return None
    version = Path("/proc/driver/nvidia/version")  # none under WSL
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", version.read_text()) if version.exists() else None
    return found.group() if found else _nvml(lambda nvml: nvml.nvmlSystemGetDriverVersion())


def _nvml(ask: Callable[[Any], Any]) -> Any:
    """What NVIDIA's management library says; None where it is not there, or does not tell."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:  # a borrowed machine may lack it
        return None
    try:
        nvml.nvmlInit()
        return ask(nvml)
    except nvml.NVMLError:
        return None


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` make the file under a temporary name, flush it to the disk, and only then give it its name.

    Whatever stops the writer, the old content stays and nothing half-written is left.
    """
    # a node that Slurm has given up may still write what another one now writes too, on a file system without locks
    part = path.with_name(".".join(filter(None, (path.name, os.environ.get("SLURMD_NODENAME"), "part"))))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path.name}: cannot be written: {why}; free some space or rights and run again") from None


def write_bytes(content: bytes, path: Path) -> None:
    write(path, lambda part: part.write_bytes(content))


def write_text(text: str, path: Path) -> None:
    write_bytes(text.encode(), path)


def _json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_json(content: object, path: Path) -> None:
    write_text(_json(content), path)


def sealed(content: dict[str, Any]) -> str:
    """The one text of a record: JSON with its own SHA-256, made without it, as the last entry, `seal`.

    A seal finds damage and careless edits; it is no signature, since whoever changes the rest can make a new one.
    """
    content = {name: value for name, value in content.items() if name != "seal"}
    return _json({**content, "seal": text_hash(_json(content))})


def write_sealed(content: dict[str, Any], path: Path) -> None:
    write_text(sealed(content), path)


def read_sealed(path: Path, remedy: str = "") -> Any:
    """Read what `write_sealed` wrote. Raises UserError when it is missing, or any byte of it was changed since.

    remedy: what to do about it, instead of running the stage that writes it.
    """
    content, text = _json_and_text(path, remedy)  # once: a stage may replace the file now
    try:
        whole = sealed(content) == text
    except (AttributeError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path}: broken link: not what its seal was made of; it was changed after it was written")
    return content


def as_csv(header: Collection[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A line a row under the header, empty where a row lacks one of it."""
    text = io.StringIO()
    table = csv.DictWriter(text, header, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """One line a row under all rows' keys."""
    write_text(as_csv(dict.fromkeys(key for row in rows for key in row), rows), path)


DEEP = 32  # levels that a JSON file may have: ours have five, and Python's recursion would end at some hundred
WRITE, AGAIN = "run the stage that writes it (`dvc repro`)", "delete it and run again"


def read_json(path: Path) -> Any:
    """Raises UserError in one line when the file is missing or is not JSON as `write_json` writes it."""
    return _json_and_text(path)[0]


def _json_and_text(path: Path, remedy: str = "") -> tuple[Any, str]:
    """What JSON says, and its text, to the byte."""
    try:
        text = regular(path).read_bytes().decode()
        content = json.loads(text, parse_constant=_no_number)
        level = [content]
        for _ in range(DEEP + 1):
            inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
            level = [part for parts in inner for part in parts]
        if level:
            raise RecursionError
        return content, text
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy or WRITE}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        why = f"nested more than {DEEP} deep" if isinstance(error, RecursionError) else error
        remedy = remedy or "delete it and run the stage that writes it again"
        raise UserError(f"{path}: not JSON ({why}); {remedy}") from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def tensors_bytes(tensors: Mapping[str, "Tensor"]) -> tuple[bytes, str]:
    """Tensors as the bytes of a safetensors file with their hash in the header, and the hash.

    One metadata key only: with more, safetensors' bytes differ from process to process.
    """
    from safetensors.torch import save

    digest = tensors_hash(tensors)
    return save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"sha256": digest}), digest


def write_tensors(tensors: Mapping[str, "Tensor"], path: Path) -> str:
    """Write tensors as `tensors_bytes`; returns their hash."""
    content, digest = tensors_bytes(tensors)
    write_bytes(content, path)
    return digest


def read_tensors(path: Path, remedy: str = "") -> dict[str, "Tensor"]:
    """Read what `write_tensors` wrote. Raises UserError when it is missing, damaged, or not what its header says.

    remedy: as in `read_sealed`.
    """
    return _read(path, "pt", tensors_hash, remedy)


def read_arrays(path: Path) -> dict[str, "NDArray[Any]"]:
    """`read_tensors` for what needs no PyTorch, which takes a second or two to import."""
    return _read(
        path,
        "numpy",
        lambda arrays: _hash(
            (name, array.dtype.name, array.shape, array.reshape(-1).view("uint8"))
            for name, array in sorted(arrays.items())
        ),
    )


def _read(path: Path, framework: str, hashed: Callable[[dict[str, Any]], str], remedy: str = "") -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(path), framework) as file:
            said = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        if os.path.lexists(path):  # safetensors says so of all that cannot be opened
            raise UserError(f"{path}: cannot be read: no right to, or a link to a file that is not there") from None
        raise UserError(f"{path}: no such file; {remedy or WRITE}") from None
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # NumPy has no bfloat16, no float8
        why = f"{error}"[:200]  # which may quote a name from the file, at any length
        raise UserError(f"{path}: not a whole safetensors file ({why}); {remedy or AGAIN}") from None
    found = hashed(tensors)
    if found != said:
        said = said if re.fullmatch("[0-9a-f]{64}", said or "") else "what its header says"
        raise UserError(f"{path}: damaged: its tensors hash to {found}, not to {said}; {remedy or AGAIN}")
    return tensors
