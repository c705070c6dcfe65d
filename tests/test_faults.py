"""What a machine does to a run: memory and disk run out, folders go, processes are killed, clocks jump."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref

import psutil
import pytest
import torch

from ffrepro import data, devices, layout, lock, network, pipeline, training
from ffrepro.errors import MachineError, UserError
from pipelines import train

WITH_LITTLE_MEMORY = """
import resource, sys
import torch
from ffrepro import backprop, engine, errors, hinton, training
from pipelines import train
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(errors.run(train.main, "digits", "0"))
"""


TOLD_TO_END = """
import os, signal, sys, time
from ffrepro import errors

def tell(number=signal.SIGTERM):
    os.kill(os.getpid(), number)

class Mistake(errors.UserError):
    def __str__(self):
        tell()
        return ""

class Told:
    def __del__(self):
        tell()

    @staticmethod
    def find_spec(name, *_):
        if name == "numpy._core.multiarray":
            tell()

def main():
    {main}

code = errors.run(main)
tell(signal.SIGINT)
tell()
sys.exit(code)
"""

IMPORTING = "sys.meta_path.insert(0, Told); import torch; time.sleep(20)"

# A signal's handler in C tells Python by `arrives`; here it is called, in C alone, after `signal.signal` has looked for
# signals that have arrived and before it sets the handler.
TOLD_AGAIN = """
import _signal, ctypes, functools, operator, os, signal, sys, types
from ffrepro import errors

python, number = ctypes.pythonapi, ctypes.c_int
arrives = ctypes.PYFUNCTYPE(number, number)(("PyErr_SetInterruptEx", python))
handles = ctypes.PYFUNCTYPE(number, number, number, ctypes.py_object)(("PyErr_SetInterruptEx", python))
late = [signal.SIGTERM]

def signal_signal(number, handler):
    if number not in late:
        return signal.signal(number, handler)
    late.remove(number)
    _signal.signal(signal.SIGCHLD, functools.partial(handles, number))
    handler = handler if callable(handler) else int(handler)
    calls = functools.partial(arrives, signal.SIGCHLD), functools.partial(_signal.signal, number, handler)
    return [*map(operator.call, calls)][1]

def main():
    errors.signal = types.SimpleNamespace(**{**vars(signal), "signal": signal_signal})
    os.kill(os.getpid(), signal.SIGTERM)

code = errors.run(main)
sys.exit(1 if late else code)
"""


def start(project, *arguments, out=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, "-m", "ffrepro", *arguments],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root)},
        stdout=out,
        stderr=out,
        text=True,
    )


def checkpoint_of(project, process):
    """Wait for the first checkpoint, and return its file."""
    path = project.root / "checkpoints" / "digits-0.pt"
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return path


def stage_of(process):
    """The process of the stage that runs under a command."""
    children = psutil.Process(process.pid).children(recursive=True)
    return next(one for one in children if any(word.startswith("pipelines.") for word in one.cmdline()))


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(TOLD_TO_END.format(main="tell()"), id="at work"),
        pytest.param(TOLD_TO_END.format(main="raise Mistake"), id="telling of a mistake"),
        pytest.param(TOLD_TO_END.format(main="Told(); time.sleep(20)"), id="in a __del__"),
        pytest.param(TOLD_TO_END.format(main=IMPORTING), id="in PyTorch's import"),
        pytest.param(TOLD_AGAIN, id="told again at the same instant"),
    ],
)
def test_what_is_told_to_end_says_so_in_one_line_however_often_it_is_told(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    line = "ffrepro: interrupted; a training goes on from its last checkpoint with the same command\n"
    assert (done.returncode, done.stdout, done.stderr) == (143, "", line)


def test_memory_that_is_not_there_is_a_line_with_the_batch_that_would_fit(row):
    given = row(blocks="4 4P", batch=32)
    line = (
        r"^digits-0: out of memory on cpu with training.batch 32; 16 would fit here now: free some and run again, or "
    )
    with pytest.raises(MachineError, match=line), devices.faults("digits-0", torch.device("cpu"), given):
        torch.empty(1 << 60)


def test_memory_that_is_not_there_is_a_line_of_every_command_that_computes(project, monkeypatch):
    project.shrink(seeds=[0])
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])
    monkeypatch.setattr(network, "conv2d", lambda *_, **__: torch.empty(1 << 60))
    folders = ("--scratch", "scratch", "--out", "out", "--device", "cpu")
    away = ("python", "-m", "pipelines.away")
    for command, name in (
        (["ffrepro", "verify", "runs/digits/0"], "verify"),
        (["ffrepro", "audit", "runs/digits/0", "--epochs", "1"], "audit"),
        (["ffrepro", "evaluate", "digits"], "digits-0"),
        (["ffrepro", "doctor"], "doctor"),
        ([*away, "run", "digits", "0", *folders], "digits-0"),
        ([*away, "try", "digits", "0", "--held-out", "100", *folders], "digits-0"),
    ):
        done = project.call(*command)
        assert done.returncode == 5, done.stderr
        assert done.stderr.startswith(f"ffrepro: {name}: out of memory on cpu"), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory")])
def test_what_the_failed_step_held_is_free_again_when_a_batch_is_tried(row, monkeypatch, error):
    held = []

    def step():
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        raise error

    monkeypatch.setattr(devices, "fitting_batch", lambda *_: 16 if held[0]() is None else None)
    with (
        pytest.raises(MachineError, match="; 16 would fit here now"),
        devices.faults("digits-0", torch.device("cpu"), row()),
    ):
        step()


@pytest.mark.chaos  # a library of PyTorch's may be the one that gets no memory, and crash: seen once in many
@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as Linux does")
def test_out_of_memory_names_the_batch_that_would_fit(project):
    project.edit("params.yaml", "blocks: 48 96P 96 96", "blocks: 64 64")
    project.edit("params.yaml", "      epochs: 20\n      batch: 32\n", "      epochs: 1\n      batch: 1400\n")
    project.stages(["check", "digits"], ["prepare", "digits"])
    done = project.run("python", "-c", WITH_LITTLE_MEMORY)
    assert done.returncode == 5, done.stderr
    found = re.fullmatch(
        r"ffrepro: digits-0: out of memory on cpu with training.batch 1400; (\d+) would fit here now: free some and "
        r"run again, or give that batch to a row of your own \(docs/adding.md\)\n",
        done.stderr,
    )
    assert found, done.stderr
    project.edit("params.yaml", "      batch: 1400\n", f"      batch: {found[1]}\n")
    project.stages(["check", "digits"])
    done = project.run("python", "-c", WITH_LITTLE_MEMORY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("row_given", [True, False])
def test_a_gpu_that_vanishes_is_one_line(row, row_given):
    """No GPU is at hand to take away: PyTorch's own class of error is raised instead of it."""
    with (
        pytest.raises(
            MachineError,
            match=r"^cifar10-0: the GPU failed \(CUDA error: unspecified\); once the GPU answers again, "
            + ("the same command goes on from the last checkpoint$" if row_given else "run again$"),
        ),
        devices.faults("cifar10-0", torch.device("cuda"), row() if row_given else None),
    ):
        raise torch.AcceleratorError("CUDA error: unspecified\nCUDA kernel errors might be reported later", 719)


def test_a_gpu_that_pytorch_has_no_code_for_is_told_what_to_do(monkeypatch):
    """One that is too old for it, or too new."""
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_120", "sm_90a", "compute_120"])
    line = (
        r"^digits-0: PyTorch has no code for this GPU \(CUDA error: no kernel .*\), only for compute capability 7\.5 "
        r"to 12\.0; use --device cpu \(FFREPRO_DEVICE=cpu\), or another GPU$"
    )
    with pytest.raises(MachineError, match=line), devices.faults("digits-0", torch.device("cuda")):
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore", 209)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("CUDA error: out of memory\nmore", "out of memory on cuda; free some and run again"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory on cuda; free"),
        ("CUDA driver error: out of memory", "out of memory on cuda; free"),
        ("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp", "out of memory on cuda; free"),
        (
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            r"the GPU failed \(cuDNN error: CUDNN_STATUS_EXECUTION_FAILED\); ",
        ),
        (
            "GET was unable to find an engine to execute this computation",
            "the GPU's memory is full, or the GPU failed, ",
        ),
    ],
)
def test_what_pytorch_has_no_class_for_is_a_line_too(said, line):
    with pytest.raises(MachineError, match=f"^digits-0: {line}"), devices.faults("digits-0", torch.device("cuda")):
        raise RuntimeError(said)


def test_gpus_that_pytorch_cannot_tell_apart_are_a_line():
    why = "CUDA call failed lazily at initialization with error: device >= 0 && device < num_gpus INTERNAL ASSERT"
    line = "PyTorch cannot tell the GPUs apart .*; name one with CUDA_VISIBLE_DEVICES$"
    with pytest.raises(MachineError, match=line), devices.faults("digits-0", torch.device("cuda")):
        raise torch.cuda.DeferredCudaCallError(f"{why}\n\nCUDA call was originally invoked at:\n\n...")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_there_is_no_gpu_is_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(
        MachineError, match=r"finds no CUDA GPU here \(.*CUDA_VISIBLE_DEVICES is '-1'\); use --device cpu$"
    ):
        devices.choose("cuda")

    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update.")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "init", too_old)
    assert devices.why_none() == " (The NVIDIA driver on your system is too old (found version 12040))"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (torch.AcceleratorError("CUDA error: busy", 46), torch.AcceleratorError),
        (OSError(errno.ESTALE, "Stale file handle"), MachineError),
    ],
)
def test_a_checkpoint_that_the_machine_does_not_read_is_not_called_damaged(
    row, digits, tmp_path, monkeypatch, error, expected
):
    chosen, path = row(blocks="4 8P", epochs=2), tmp_path / "digits-0.pt"
    path.write_bytes(b"whole, for all that is known")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(expected):
        training.train(chosen, 0, digits[0], checkpoint=path)
    assert path.read_bytes() == b"whole, for all that is known"


def test_a_gpu_that_others_have_is_a_line_of_every_evaluation(project, monkeypatch):
    """It is asked for the first time when the weights, or the images, are moved to it."""
    project.shrink(seeds=[0])
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])

    def refuse(*_):
        raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable", 46)

    for place, name in ((data.Split, "to"), (training, "build")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            for command in (
                ["ffrepro", "evaluate", "digits"],
                ["python", "-m", "pipelines.evaluate", "digits", "0"],
                ["python", "-m", "pipelines.precision", "digits", "0"],
            ):
                done = project.call(*command)
                assert done.returncode == 5, done.stderr
                assert done.stderr.startswith("ffrepro: digits-0: the GPU failed (CUDA error: CUDA-capable"), done


def test_another_error_of_pytorch_stays_itself():
    with pytest.raises(RuntimeError, match="shapes"), devices.faults("digits-0", torch.device("cpu")):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_second_reproduce_waits_for_the_first_and_finds_its_work_done(project):
    project.shrink(epochs=2, seeds=[0])
    first = start(project, "reproduce", "digits")
    checkpoint_of(project, first)
    second = start(project, "reproduce", "digits", "--json")
    out, err = second.communicate()
    assert first.wait() in (0, 3, 4)
    assert err.startswith(f"ffrepro: waiting until `ffrepro reproduce digits` (process {first.pid}) has ended\n")
    assert "pipelines.train" not in err
    assert second.returncode == first.returncode
    assert json.loads(out)["verdict"] in first.communicate()[0]


@pytest.mark.parametrize(
    ("what", "module", "arguments"),
    [
        ("report", "ffrepro", ["report"]),
        ("report", "pipelines.table", []),
        ("data-digits", "pipelines.prepare", ["digits"]),
    ],
)
def test_what_two_commands_may_write_is_written_by_one_at_a_time(project, what, module, arguments):
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, "PYTHONPATH": str(project.root)}
    with lock.alone(layout.Layout(project.root).lock(what), "a test"):
        process = subprocess.Popen(
            command, cwd=project.root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        waits = process.stderr.readline().decode()
    _, rest = process.communicate()
    assert (waits, process.returncode) == (f"ffrepro: waiting until a test (process {os.getpid()}) has ended\n", 0), (
        rest
    )


@pytest.mark.chaos
def test_a_stage_that_is_killed_says_so_and_the_training_goes_on(project):
    project.shrink(epochs=15, seeds=[0])
    process = start(project, "reproduce", "digits")
    checkpoint_of(project, process)
    stage_of(process).kill()
    _, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.endswith(
        'ffrepro: verdict@digits: DVC failed; why stands above (if it is "exited with -9": killed, mostly for want of '
        "memory)\n"
    )
    again = project.run("ffrepro", "reproduce", "digits")
    assert again.returncode in (0, 3, 4)
    assert "digits-0.pt: going on after epoch" in again.stderr


def test_a_training_that_lost_its_parents_is_waited_for(project):
    project.shrink(epochs=20, seeds=[0])
    process = start(project, "reproduce", "digits", out=subprocess.DEVNULL)
    checkpoint_of(project, process)
    orphan = stage_of(process)
    orphan.suspend()  # until the next command waits
    for one in (*reversed(psutil.Process(process.pid).children()), psutil.Process(process.pid)):
        one.kill()
    process.wait()
    assert orphan.status() != psutil.STATUS_ZOMBIE
    again = start(project, "reproduce", "digits")
    told = []
    while f"ffrepro: waiting until the training of digits-0 (process {orphan.pid}) has ended\n" not in told:
        told.append(again.stderr.readline())
        assert told[-1], told
    orphan.resume()
    _, err = again.communicate()
    assert again.returncode in (0, 3, 4), err
    assert "digits-0.pt: going on after epoch 20" in err


def test_a_run_s_files_are_written_before_another_process_may_train_it(project, monkeypatch):
    project.shrink(seeds=[0])
    project.stages(["check", "digits"], ["prepare", "digits"])
    held = []

    def write(*_):
        with layout.Layout(project.root).lock("digits-0").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(True)

    monkeypatch.setattr(train, "write", write)
    project.stages(["train", "digits", "0"])
    assert held


def test_a_signal_while_the_command_starts_or_is_over_is_no_traceback(project):
    begin = '"""Typer commands'
    project.edit("ffrepro/cli.py", begin, f"import os, signal; os.kill(os.getpid(), signal.SIGINT)\n{begin}")
    done = project.run("ffrepro", "list")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    project.edit("ffrepro/cli.py", "; os.kill(os.getpid()", "; import atexit; atexit.register(os.kill, os.getpid()")
    done = project.run("ffrepro", "list")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exit_code_that_a_full_disk_does_not_take_is_no_traceback(project, monkeypatch):
    done = project.call("python", "-m", "pipelines.train", "digits", "0", FFREPRO_EXIT_CODE_FILE="/dev/full")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "runs/digits/experiment.json: no such file" in done.stderr
    monkeypatch.setattr(tempfile, "tempdir", str(project.root / "none"))
    line = "no folder for temporary files can be made: No such file or directory; free some space, or name .* TMPDIR"
    with pytest.raises(UserError, match=f"^{line}$"):
        pipeline.repro(layout.Layout(project.root), ["report"], {})


@pytest.mark.chaos
@pytest.mark.parametrize("folder", ["checkpoints", "runs", "data"])
def test_a_folder_that_is_removed_while_a_training_runs_is_no_loss_of_truth(project, folder):
    project.shrink(epochs=10, seeds=[0])
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"])
    undisturbed = (project.root / "runs" / "digits" / "0" / "weights.safetensors").read_bytes()
    for name in ("checkpoints", "runs", "data"):
        shutil.rmtree(project.root / name)
    process = start(project, "reproduce", "digits")
    checkpoint_of(project, process)
    shutil.rmtree(project.root / folder, ignore_errors=True)
    _, err = process.communicate()
    assert "Traceback" not in err
    if process.returncode not in (0, 3, 4):
        assert err.splitlines()[-1].startswith("ffrepro: verdict@digits: ")
        again = project.run("ffrepro", "reproduce", "digits")
        assert again.returncode in (0, 3, 4), again.stderr
    assert (project.root / "runs" / "digits" / "0" / "weights.safetensors").read_bytes() == undisturbed


@pytest.fixture
def disk(project, tmp_path_factory, project_in):
    """A project on a disk of its own, and what mounts it again with other options."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root on Linux)")

    def again(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    yield project_in(folder), again
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def used(folder):
    return shutil.disk_usage(folder).used


@pytest.mark.chaos
def test_a_full_disk_at_any_moment_is_a_line_and_the_same_command_goes_on(disk):
    """The space that is left grows from nothing until the row is reproduced: each write has been the one that fails."""
    project, again = disk
    project.shrink(seeds=[0])
    start_of = used(project.root)
    failures, room = [], 0
    while True:
        again(f"size={(start_of + room) // 4096 * 4096}")
        # Python 3.11 leaves bytecode of its own that is cut off, where the disk is full, and stumbles over it
        own = {"TMPDIR": str(project.root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = project.run("ffrepro", "reproduce", "digits", **own)
        if done.returncode in (0, 3, 4):
            break
        assert "Traceback" not in done.stderr, done.stderr
        assert not [*project.root.rglob("*.part")]
        full = [line for line in done.stderr.splitlines() if "No space left on device" in line]
        assert full, done.stderr
        failures += full[:1]
        room = max(4096, room * 2)
    assert len(failures) >= 3
    print(f"\n{len(failures)} times too little, up to {room} bytes:", *dict.fromkeys(failures), sep="\n")
    chain = json.loads((project.root / "runs" / "digits" / "0" / "record.json").read_text())["chain"]
    assert len(chain) == 1


def test_a_folder_that_may_not_be_written_is_a_line(disk):
    project, again = disk
    again("ro")
    done = project.run("ffrepro", "reproduce", "digits")
    assert done.returncode == 2
    assert re.fullmatch(r"ffrepro: .*: cannot be written: Read-only file system; .*\n", done.stderr), done.stderr


@pytest.mark.chaos
@pytest.mark.skipif(not shutil.which("faketime"), reason="Debian's faketime is not installed")
def test_a_clock_that_jumps_back_changes_no_number(project):
    project.shrink(epochs=10, seeds=[0])
    process = start(project, "reproduce", "digits")
    checkpoint_of(project, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    done = project.run(shutil.which("faketime"), "-f", "-400d", sys.executable, "-m", "ffrepro", "reproduce", "digits")
    assert done.returncode in (0, 3, 4), done.stderr
    assert "digits-0.pt: going on after epoch" in done.stderr
    facts = json.loads((project.root / "runs" / "digits" / "0" / "record.json").read_text())
    assert facts["ended"] < facts["started"]  # as the clock told; nothing is decided by it
    assert project.run("ffrepro", "verify", "runs/digits").returncode == done.returncode
    assert project.run("ffrepro", "reproduce", "digits").returncode == done.returncode
