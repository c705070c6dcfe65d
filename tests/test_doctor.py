"""`ffrepro doctor` reads back and measures; what is wrong shows."""

import ast
import re
from operator import attrgetter

import pytest
import torch

from ffrepro import config, determinism, devices, doctor, layout
from ffrepro.engine import Engine

CPU = torch.device("cpu")


def test_every_switch_reads_back_as_set():
    determinism.switch_on()
    found = list(doctor.switches())
    assert len(found) == 8
    assert all(one.good for one in found), [one for one in found if not one.good]


@pytest.mark.parametrize(
    ("what", "undo"),
    [
        ("deterministic algorithms", lambda: torch.use_deterministic_algorithms(False)),
        ("... as warnings, not errors", lambda: torch.use_deterministic_algorithms(True, warn_only=True)),
        ("cuDNN picks kernels by timing", lambda: setattr(torch.backends.cudnn, "benchmark", True)),
        ("cuDNN deterministic", lambda: setattr(torch.backends.cudnn, "deterministic", False)),
        ("TF32 in convolutions", lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32")),
        ("TF32 in matrix products", lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")),
    ],
)
def test_a_switch_that_is_off_shows_and_the_others_do_not(what, undo):
    determinism.switch_on()
    try:
        undo()
        assert [one.what for one in doctor.switches() if not one.good] == [what]
    finally:
        determinism.switch_on()


def test_it_trains_twice_to_the_same_weights():
    one = doctor.repeats(CPU)
    assert one.good, one
    assert one == doctor.repeats(CPU)


def test_a_training_that_does_not_repeat_shows(monkeypatch):
    from ffrepro import training

    real, seeds = training.train, iter((0, 1))
    monkeypatch.setattr(training, "train", lambda row, _, data: real(row, next(seeds), data))
    assert not doctor.repeats(CPU).good


def test_a_row_that_does_not_fit_into_memory_says_so_and_the_next_are_measured(params, project, monkeypatch):
    def measured(row, device):
        if row == params.experiments["digits"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 60.0, ""

    monkeypatch.setattr(devices, "training_time", measured)
    rows = {
        one.what: one
        for one in doctor.findings(params, layout.Layout(project.root), CPU)
        if one.what.startswith("row ")
    }
    assert rows["row digits"] == ("row digits", "out of memory on cpu; free some and run again", False)
    assert rows["row cifar10-quick"].good


def test_an_epoch_of_replayed_steps_is_measured_over_the_rows_own_steps(row, monkeypatch):
    chosen, epochs = row(blocks="4 4P", epochs=2), []
    monkeypatch.setattr(devices.time, "perf_counter", iter((10.0, 10.0 + devices.TIMED)).__next__)
    monkeypatch.setattr(Engine, "epoch", lambda engine, seed, epoch: epochs.append((engine.steps, epoch)))
    assert devices.seconds_replayed(chosen, CPU) == chosen.steps
    assert epochs == [(devices.TIMED, 0), (devices.TIMED, 1)]


def test_an_epoch_of_replayed_steps_trains(row):
    assert devices.seconds_replayed(row(blocks="4 4P", epochs=2), CPU) > 0


def test_the_report_of_a_machine_without_cuda(project):
    """With rows of each kind; all take a CPU a minute."""
    project.keep(
        "digits",
        "cifar10-quick",
        "cifar10",
        "hinton",
        "hinton-narrow",
        "original-large-cifar10",
        "ablation-digits-symba-batch-overlapping",
        "ablation-digits-deep",
        "ablation-digits-backprop",
    )
    done = project.call("ffrepro", "doctor", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok 4 steps, twice: ") for line in lines)
    assert any(line.startswith("ok row digits: about ") for line in lines)
    assert any(line.startswith("NO row cifar10: about ") for line in lines)
    assert any(
        re.search(r" a seed, .* for 5 seeds in (bfloat16|float32), from a measured step", line) for line in lines
    )
    assert any(line.startswith("ok row ablation-digits-deep: about ") for line in lines)
    told = sum(line[3:].startswith("row ") for line in lines)
    (more,) = (line for line in lines if line.startswith("-- more rows: "))
    assert told + int(more.split()[3]) == len(config.load(project.root / "params.yaml").experiments)
    assert "-- data digits: embedded" in lines
    assert lines[-1].startswith("The same row and seed give the same weights, bit for bit, wherever all of this is the")


def test_another_workspace_of_cublas_shows_and_the_rest_is_told(params, project, monkeypatch, capsys):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    no_rows = params.model_copy(update={"experiments": {}})
    assert not doctor.report(no_rows, layout.Layout(project.root), CPU)
    said = capsys.readouterr().out
    assert "NO cuBLAS workspace: :16:8, must be :4096:8, by CUBLAS_WORKSPACE_CONFIG; unset it\n" in said
    assert "ok 4 steps, twice: weights" in said


def test_a_gpu_that_is_not_used_is_not_missing(monkeypatch):
    (gpu,) = (one for one in doctor._device(CPU) if one.what == "GPU")
    assert gpu.found.startswith("none that PyTorch finds (CUDA 13.0 build)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (gpu,) = (one for one in doctor._device(CPU) if one.what == "GPU")
    assert gpu.found == "not used; rows that need CUDA wait"


def test_every_name_of_pytorch_that_the_code_uses_is_there(root):
    """Also those that only a machine with a GPU comes to; mypy does not know what PyTorch makes at import."""
    for path in [*root.glob("ffrepro/*.py"), *root.glob("pipelines/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"torch(\.\w+)+", name):
                attrgetter(name.removeprefix("torch."))(torch)  # raises AttributeError
