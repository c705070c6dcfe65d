"""What only a CUDA GPU can show (`nox -s cuda`); everything about CUDA that a CPU can show is in the other tests."""

import gc
import os
import re
import subprocess
import sys

import pytest
import torch

from ffrepro import (
    audit,
    augment,
    checkpoint,
    config,
    determinism,
    devices,
    doctor,
    evaluation,
    evidence,
    layout,
    negatives,
    record,
    training,
)
from ffrepro.data import Split
from ffrepro.engine import Engine, Graphs, draw
from ffrepro.errors import MachineError
from ffrepro.network import Block
from ffrepro.step import optimizers
from ffrepro.training import build
from pipelines import gpu, precision

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def switches():
    devices.choose("cuda")
    yield
    determinism.switch_on()
    gc.collect()  # engines that are gone, and with them their graphs' memory
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


@pytest.fixture
def small(row):
    """A network with every kind of block, in the shape of CIFAR-10, or the row's own with blocks=None."""

    def changed(blocks="16 32P 32 32P 32", batch=16, **values):
        shape = {"batch": batch} if blocks is None else {"blocks": blocks, "batch": batch}
        return row("cifar10", **{"epochs": 2, **shape, **values})

    return changed


def images(n, shape=(3, 32, 32)):
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *shape), generator=draws, dtype=torch.uint8)
    return Split(pixels, torch.randint(0, 10, (n,), generator=draws))


def engine(chosen, n, said=None):
    network = build(chosen, 0, CUDA)
    memory = negatives.memory(n, chosen.classes, CUDA)
    say = print if said is None else said.append
    return Engine(network, optimizers(network, chosen.training), memory, images(n).to(CUDA), chosen, say)


def table(found):
    """For an assertion's message, of which pytest would show the beginning otherwise."""
    return "\n".join(map(str, found))


def state(trained):
    """Everything that training changes."""
    learned = checkpoint.snapshot(trained.network, trained.adams, trained.memory)
    return checkpoint.hashes(learned)


# --- the same step as the CPU's --------------------------------------------------------------------------------------


def test_a_float32_step_of_the_large_network_is_near_to_float64_and_one_in_tf32_is_not(small, monkeypatch):
    torch.set_num_threads(devices.cores())  # float64 takes one of them minutes, and no bits are compared
    chosen = evaluation.in_float32(small(None, batch=gpu.COMPARED))
    exact = [gpu._exact_gradients(chosen, parity) for parity in (0, 1)]
    monkeypatch.setattr(gpu, "_exact_gradients", lambda _, parity: exact[parity])
    found = gpu.differences(chosen, CUDA)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    coarse = [
        {"parity": parity, "block": block, "gpu": gpu.distance(its, exact[parity][block])}
        for parity in (0, 1)
        for block, its in gpu._gradients(chosen, parity, CUDA).items()
    ]
    print(told := table(found + coarse))
    assert {one["block"] for one in found} == {one["block"] for one in coarse} == set(range(1, 13))
    assert gpu.in_float32(chosen, found, "gpu"), told
    assert not gpu.in_float32(chosen, coarse, "gpu"), told


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_by_rounding_is_what_autocast_computes(small, kind, parity, monkeypatch):
    """By rounding in float32, as tests/test_precision.py does on a CPU, which has no fast float16 to compare with.

    What is left between the two are sums that end elsewhere, and values that then round to the other neighbour: with
    float16, in the last blocks, up to two thirds of what rounding does, where a CPU imitated sums that are cut off.
    """
    monkeypatch.setattr(Block, "_folds", lambda *_: False)
    chosen, split = small(precision=kind, batch=64), images(64).to(CUDA)
    draws = draw(chosen, 0, 0, 64).to(CUDA)
    network, exact = build(chosen, 0, CUDA).train(), evaluation.in_float32(chosen)
    float32, _ = precision.gradients(network, exact, split, draws, parity)
    rounded, _ = precision.gradients(network, exact, split, draws, parity, kind)
    autocast, _ = precision.gradients(network, chosen, split, draws, parity)
    found = []
    for block, its in rounded.items():
        apart, off = precision.likeness(its, autocast[block]).distance, precision.likeness(its, float32[block]).distance
        share = 0.85 if kind == "float16" and block > 2 else 0.5
        found.append({"block": block, "apart": apart, "off": off, "good": apart < share * off})
    print(told := table(found))
    assert all(one["good"] for one in found), told


def test_augmentation_is_the_cpus_bit_for_bit():
    n = 256
    pixels = images(n).images
    geometry = augment.draw(n, (32, 32), 4, 15.0, True, torch.Generator().manual_seed(1))
    there = augment.apply(pixels.to(CUDA), geometry.to(CUDA))
    assert torch.equal(augment.apply(pixels, geometry), there.cpu())


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_evaluation_in_half_precision_predicts_what_float32_on_the_cpu_does(small, precision):
    chosen = small(precision=precision)
    test = images(200)
    trained = training.train(chosen, 0, images(320).to(CUDA))
    there, _ = evaluation.evaluate(trained.network, test.to(CUDA), chosen)
    here = evaluation.goodness_table(trained.network.to(CPU), test.images, evaluation.in_float32(chosen))
    assert torch.equal(evaluation.predictions(there, "last"), evaluation.predictions(here, "last"))


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"schedule": "linear"},
        {"hardness": 2},
        {"update": "layer-wise", "norm": "layer"},
        {"update": "backprop", "loss": "cross-entropy"},
    ],
)
def test_replayed_steps_are_the_launched_ones_bit_for_bit(small, precision, values):
    states = []
    for launched in (False, True):
        trained = engine(small(precision=precision, **values), 16 * 7)
        if launched:
            trained.run = trained._step
        for epoch in range(2):
            trained.epoch(0, epoch)
        if not launched:
            assert isinstance(trained.run, Graphs)
            assert len(trained.run.graphs) == len(trained.adams)
        states.append(state(trained))
    assert states[0] == states[1]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # "a prototype", PyTorch says when it is switched on
@pytest.mark.parametrize("hardness", [0, 2])
def test_a_step_waits_for_nothing(small, hardness):
    trained = engine(small(hardness=hardness), 16 * 7)
    trained.epoch(0, 0)
    with torch.cuda.stream(trained.stream):
        try:
            torch.cuda.set_sync_debug_mode("error")
            trained._step(0)
            trained._step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- the same bits again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_large_network_repeats_bit_for_bit(small, precision):
    chosen = small(None, batch=512, precision=precision)
    states = []
    for _ in range(2):
        trained = engine(chosen, 6 * chosen.training.batch)
        trained.epoch(0, 0)
        assert len(trained.run.graphs) == 2
        states.append(state(trained))
    assert states[0] == states[1]


@pytest.mark.parametrize("name", ["digits", "cifar10-quick", "hinton-narrow", "mnist", "ablation-digits-backprop"])
def test_rows_of_other_kinds_and_shapes_repeat_bit_for_bit(params, name):
    """Rows for a CPU, too, train on a GPU where there is one."""
    chosen = config.changed(params.experiments[name], {"training.epochs": 2, "training.batch": 16})
    split, lines = images(16 * 5, chosen.shape).to(CUDA), []
    chains = [training.train(chosen, 0, split, say=lines.append).chain for _ in range(2)]
    assert chains[0] == chains[1]
    assert lines == []  # by graphs


def test_an_interrupted_training_goes_on_to_the_same_bits(small, tmp_path):
    chosen, split = small(epochs=3), images(16 * 6).to(CUDA)
    undisturbed = training.train(chosen, 0, split)

    def stop(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    lines = []
    with pytest.raises(KeyboardInterrupt):
        training.train(chosen, 0, split, checkpoint=tmp_path / "a.pt", finished=stop)
    resumed = training.train(chosen, 0, split, checkpoint=tmp_path / "a.pt", say=lines.append)
    assert lines == ["a.pt: going on after epoch 2"]
    assert resumed.chain == undisturbed.chain


def test_an_audited_epoch_follows_to_the_same_bits(small, tmp_path):
    """From a state alone, where the first steps of the epoch are launched and captured anew."""
    chosen, split = small(epochs=3, hardness=1), images(16 * 6).to(CUDA)
    trained = training.train(chosen, 0, split, checkpoint=tmp_path / "a.pt", keep=True)
    facts = {
        "seed": 0,
        "code": record.code_hash(),
        "data": trained.data,
        "chain": trained.chain,
        "environment": record.environment(CUDA),
    }
    run = evidence.Run(tmp_path, chosen, facts, {}, None, None)
    found = list(audit.audit(run, split, tmp_path / "a", [1, 2, 3], CUDA))
    assert [one.holds for one in found] == [True] * 3, table(found)
    assert all(one.found.startswith("the same bits") for one in found)


def test_doctor_on_a_gpu(params, project):
    """With a row of each kind; all would take a minute or more."""
    kinds = ("digits", "cifar10-quick", "cifar10", "hinton", "backprop-small-cifar10")
    params = params.model_copy(update={"experiments": {name: params.experiments[name] for name in kinds}})
    found = {one.what: one for one in doctor.findings(params, layout.Layout(project.root), CUDA)}
    assert found["GPU"].found.startswith(torch.cuda.get_device_name())
    assert found["4 steps, twice"].good
    assert all(one.good is not False for what, one in found.items() if not what.startswith("free disk")), table(
        found.values()
    )
    assert all(found[f"row {name}"].found.startswith("about ") for name in kinds)


def test_restated_statistics_are_the_cpus(small):
    chosen, split = small(precision="float32"), images(16 * 6)
    draws, found = draw(chosen, 0, 2, len(split.labels)), []
    for device in (CPU, CUDA):
        network = build(chosen, 0, device)
        evaluation.restate(network, split.to(device), chosen, draws.to(device))
        found.append(network.to(CPU).state_dict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    assert found[1]["blocks.4.norm.running_var"].ne(1).all()


def test_a_checkpoint_of_the_cpu_is_another_environments(small, tmp_path):
    chosen, split = small(epochs=2, precision="float32"), images(32)
    training.train(chosen, 0, split, checkpoint=tmp_path / "a.pt")
    lines = []
    training.train(chosen, 0, split.to(CUDA), checkpoint=tmp_path / "a.pt", say=lines.append)
    assert lines == ["a.pt: of other environment: not resumed, training starts anew"]


def test_initial_weights_are_the_cpus(small):
    chosen = small(None)
    assert record.tensors_hash(build(chosen, 3, CPU).state_dict()) == record.tensors_hash(
        build(chosen, 3, CUDA).state_dict()
    )


# --- what the record says of the GPU ---------------------------------------------------------------------------------


def test_the_environment_names_the_gpu_and_its_libraries():
    facts = record.environment(CUDA)
    assert facts["gpu"] == torch.cuda.get_device_name()
    assert facts["multiprocessors"] > 0
    assert facts["cudnn"] >= 90000
    assert facts["kernels"] == "deterministic"
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", record.driver(CUDA))


def test_variables_by_which_the_libraries_compute_otherwise_are_in_the_environment(monkeypatch):
    for name in record.CHOOSING["cuda"]:
        monkeypatch.delenv(name, raising=False)
    before = record.environment(CUDA)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "1024")
    after = record.environment(CUDA)
    assert "variables" not in before
    assert after == {**before, "variables": "CUBLASLT_WORKSPACE_SIZE=1024 NVIDIA_TF32_OVERRIDE=0"}


def test_the_energy_counter_counts(small):
    before = record.joules(CUDA)
    if before is None:
        pytest.skip("this GPU does not tell, or pynvml is missing")
    training.train(small(epochs=2), 0, images(320).to(CUDA))
    x = torch.rand(4096, 4096, device=CUDA)
    for _ in range(200):
        x = torch.nn.functional.normalize(x @ x)
    torch.cuda.synchronize()
    assert record.joules(CUDA) > before


def test_the_device_is_found_and_named(monkeypatch):
    monkeypatch.delenv("FFREPRO_DEVICE", raising=False)
    assert devices.choose().type == "cuda"
    assert devices.choose("cpu").type == "cpu"


# --- faults ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_names_a_batch_that_fits(small):
    chosen = small(blocks="128 128 128", batch=4096, precision="float32")
    share = 3 * 2**30 / torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with (
            pytest.raises(MachineError, match=r"out of memory on cuda with training.batch 4096; \d+ would fit"),
            devices.faults("cifar10-0", CUDA, chosen),
        ):
            training.train(chosen, 0, images(4096).to(CUDA))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_gpu_that_fails_gives_one_line():
    script = """
import torch
from ffrepro import devices
with devices.faults("cifar10-0", torch.device("cuda")):
    table = torch.zeros(4, device="cuda")
    table[torch.tensor([10**6], device="cuda")].cpu()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ}
    )
    line = r"MachineError: cifar10-0: the GPU failed \(.+\); once the GPU answers again, run again$"
    assert re.search(line, done.stderr, re.MULTILINE), done.stderr


def test_graphs_of_an_engine_that_is_gone_do_not_end_a_capture(small):
    """The garbage collector is held off until it comes in the middle of one. Among the last: what a capture that does
    fail leaves behind in PyTorch's memory would be other tests' too."""
    said = []
    gc.disable()
    try:
        engine(small(), 16 * 7).epoch(0, 0)
        later = engine(small(), 16 * 7, said)
        step = later.run.steps[0]

        def interrupted():
            if torch.cuda.is_current_stream_capturing():
                gc.collect()
            step()

        later.run.steps[0] = interrupted
        later.epoch(0, 0)
    finally:
        gc.enable()
    assert said == []
    assert len(later.run.graphs) == 2


def test_a_capture_that_fails_gives_one_notice_and_the_same_bits(small):
    """The last of all: what it breaks on purpose is the process's own CUDA."""
    chosen, said = small(), []
    expected = engine(chosen, 16 * 7)
    expected.epoch(0, 0)
    spoiled = engine(chosen, 16 * 7, said)
    step = spoiled.run.steps[1]

    def synchronising():
        step()
        spoiled.sums.sum().item()

    spoiled.run.steps[1] = synchronising
    spoiled.epoch(0, 0)
    assert len(said) == 1
    assert said[0].startswith("no CUDA graph (")
    assert state(spoiled) == state(expected)
