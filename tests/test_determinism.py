"""The switches are set, read back, and the portable profile narrows the CPU down."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ffrepro import PORTABLE, determinism
from ffrepro.errors import MachineError

PROGRAM = """
import json
import os
from ffrepro import determinism, doctor, config, record
determinism.switch_on()
import torch
row = config.changed(config.Experiment.model_validate(doctor.PROBE), {"training.precision": "float32"})
cpu = torch.device("cpu")
print(json.dumps([doctor.twice(row, cpu), record.environment(cpu)]))
"""


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


def portable(root, env, **settings):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env={**env, **settings}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_portable_profile_gives_the_same_bits_whatever_the_surroundings_ask_for(root, monkeypatch):

    env = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    (same, hashes), environment = portable(root, env, FFREPRO_PORTABLE="1")
    assert same
    assert environment["profile"] == "portable"
    assert (environment["cpu"], environment["threads"]) == ("AVX2", 1)
    other = portable(root, env, FFREPRO_PORTABLE="1", OMP_NUM_THREADS="2", ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    assert other == [[same, hashes], environment]
