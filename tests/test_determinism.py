"""The switches are set, read back, and the portable profile narrows the CPU down."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from ffrepro import PORTABLE, determinism, devices
from ffrepro.errors import MachineError, UserError

PROGRAM = """
import json
import os
from ffrepro import determinism, devices, doctor, config, record
determinism.switch_on()
import torch
row = config.changed(config.Experiment.model_validate(doctor.PROBE), {"training.precision": os.environ["PRECISION"]})
cpu = devices.choose("cpu")
print(json.dumps([doctor.twice(row, cpu), record.environment(cpu)]))
"""
# What PROGRAM's training gave on an AMD EPYC with AVX2; on other makes of CPU it must give the same.
EXPECTED = {"float32": "191bad42757a", "bfloat16": "567a8463821d"}


@pytest.mark.parametrize(
    ("package", "name", "value"),
    [
        ("ffrepro", "OMP_PROC_BIND", "true"),
        ("ffrepro", "OMP_PLACES", "cores"),
        ("pipelines", "GOMP_CPU_AFFINITY", "0-99"),
    ],
)
def test_openmp_binds_no_process_to_one_core(root, package, name, value):
    program = f"import {package}, torch, os; print(len(os.sched_getaffinity(0)))"
    command, env = [sys.executable, "-c", program], os.environ | {name: value}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(os.sched_getaffinity(0))


def test_a_switch_that_does_not_stay_stops_everything(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(MachineError, match="cuBLAS workspace is ':0:0' and must be ':4096:8'"):
        determinism.switch_on()


def test_fast_is_another_set_of_switches():
    try:
        determinism.switch_on(fast=True)
        assert torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        determinism.switch_on()
    assert not torch.backends.cudnn.benchmark


def portable(root, *emulator, precision="float32", **settings):
    env = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    env |= {"FFREPRO_PORTABLE": "1", "PRECISION": precision, **settings}
    command = [*emulator, sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_portable_profile_gives_the_same_bits_whatever_the_surroundings_ask_for(root):
    (same, hashes), environment = portable(root)
    assert same
    assert environment["profile"] == "portable"
    assert (environment["cpu"], environment["threads"]) == ("AVX2", 1)
    assert not {"python", "model", "processor"} & environment.keys()  # what may differ elsewhere
    other = portable(root, OMP_NUM_THREADS="2", ONEDNN_MAX_CPU_ISA="AVX512_CORE", FFREPRO_THREADS="2")
    assert other == [[same, hashes], environment]


@pytest.mark.slow
@pytest.mark.parametrize("precision", EXPECTED)
@pytest.mark.parametrize("cpu", ["this machine's", "Haswell"])
def test_the_portable_profile_gives_the_same_bits_on_other_makes_of_cpu(root, cpu, precision):
    """QEMU shows PyTorch an Intel Core of 2013 and computes its instructions exactly."""
    if cpu != "this machine's" and not shutil.which("qemu-x86_64"):
        pytest.skip("no qemu-x86_64; Debian's package is qemu-user")
    emulator = [] if cpu == "this machine's" else ["qemu-x86_64", "-cpu", cpu]
    (_, hashes), environment = portable(root, *emulator, precision=precision)
    assert environment["profile"] == "portable"
    assert hashes == [EXPECTED[precision]] * 2


@pytest.mark.parametrize(
    ("name", "value"), [("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"), ("DNNL_DEFAULT_FPMATH_MODE", "any")]
)
def test_a_variable_by_which_float32_has_fewer_digits_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=f"^{name}: given '{value}', by which float32 has fewer digits; allowed: strict, "
    ):
        devices.choose("cpu")
    for harmless in ("", "STRICT"):
        monkeypatch.setenv(name, harmless)
        devices.choose("cpu")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("FFREPRO_PORTABLE", "1")  # AVX2 has no bfloat16
    devices.choose("cpu")


def threaded(root, **settings):
    """PROGRAM with two threads, where OpenMP has variables of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FFREPRO_", "OMP_", "MKL_"))}
    env |= {"PRECISION": "float32", "OMP_NUM_THREADS": "2"} | settings
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("limit", ["1", "+1"])
def test_no_more_threads_than_openmp_starts(root, limit):
    """PyTorch does not ask for that limit: with a thread more, oneDNN would wait for it for ever."""
    done = threaded(root, OMP_THREAD_LIMIT=limit)
    (same, _), environment = json.loads(done.stdout)
    assert same
    assert environment["threads"] == 1


def test_a_process_s_share_of_the_cores_by_hand(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr(devices, "_openmp", lambda name, otherwise: {"thread_limit": 3}[name])  # of each process
    assert [devices.cores(processes) for processes in (1, 2, 4, 16)] == [3, 3, 2, 1]


def test_what_joblib_cannot_read_is_a_line(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert devices.cores() == 1
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "two")
    with pytest.raises(UserError, match=r"^LOKY_MAX_CPU_COUNT: given 'two'; allowed: a whole number, or unset it$"):
        devices.cores()


HANGING = [
    (
        {"OMP_THREAD_LIMIT": "1", "FFREPRO_THREADS": "2"},
        "FFREPRO_THREADS: given 2; allowed: no more than the 1 of OMP_THREAD_LIMIT, or unset that",
    ),
    (
        {"OMP_DYNAMIC": "TRUE", "FFREPRO_THREADS": "2"},
        "OMP_DYNAMIC: given 'TRUE', by which CPU threads come and go with the machine's load; allowed: false, or "
        "unset it",
    ),
    (
        {"OMP_MAX_ACTIVE_LEVELS": "0", "FFREPRO_THREADS": "2"},
        "OMP_MAX_ACTIVE_LEVELS: given 0; allowed: 1 or more, or unset it",
    ),
]


@pytest.mark.parametrize(("settings", "says"), HANGING)
def test_variables_with_which_training_would_hang_are_refused(root, settings, says):
    assert threaded(root, **settings).stderr.splitlines()[-1] == f"ffrepro.errors.UserError: {says}"


def test_with_one_thread_none_is_waited_for(root):
    every = {name: value for settings, _ in HANGING for name, value in settings.items()}
    assert threaded(root, **every | {"FFREPRO_THREADS": "1"}).returncode == 0


def test_the_portable_profile_uses_no_gpu(params, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with torch.compiler.config.patch(force_cudagraph_gc=False):
        assert devices.choose("auto").type == "cuda"
        assert torch.compiler.config.force_cudagraph_gc
    monkeypatch.setenv("FFREPRO_PORTABLE", "1")
    assert devices.choose("auto").type == "cpu"
    with pytest.raises(UserError, match=r"^device: given cuda with the portable profile .*; allowed: auto, cpu$"):
        devices.choose("cuda")
    with pytest.raises(MachineError, match=r"^cifar10 needs a CUDA GPU and the portable profile is a CPU's; this CPU "):
        devices.require(params, "cifar10", "auto")
    devices.require(params, "digits", "auto")
