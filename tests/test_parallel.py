"""One run by several processes against one process: the same method, and numbers that differ by rounding."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.run import __file__ as torchrun

from ffrepro import config, data, engine, negatives, parallel, step, training
from ffrepro.errors import UserError

ROWS = [
    "digits",
    "ablation-digits-symba-batch-layerwise",
    "ablation-digits-threshold-layer-overlapping",
    "ablation-digits-backprop",
]
ONE_STEP = """
import sys
import torch
from test_parallel import gradients
from ffrepro import parallel

with parallel.processes() as (rank, _):
    found = {name: gradients(parallel.Engine, name) for name in sys.argv[2:]}
    if not rank:
        torch.save(found, sys.argv[1])
"""


def gradients(made_by, name):
    """What the last of two steps, an even and an odd one, has left: gradients, running statistics, losses."""
    params = config.load(Path("params.yaml"))
    row = config.experiment(params, name)
    train, _ = data.read(row.data.name, Path())
    n = 2 * row.training.batch
    few = data.Split(train.images[:n], train.labels[:n])
    network = training.build(row, 0, torch.device("cpu"))
    adams = step.optimizers(network, row.training)
    for adam in adams:
        adam.param_groups[0]["lr"] = 0.0  # Adam's first update is a gradient's sign, which rounding may turn over
    memory = negatives.memory(n, row.classes, torch.device("cpu"))
    frozen = row.model_copy(update={"training": row.training.model_copy(update={"lr": 0.0})})
    loss, separation = made_by(network, adams, memory, few, frozen).epoch(0, 0)
    found = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return found | dict(network.named_buffers()) | {"loss": loss, "separation": separation}


def by(project, processes, *command):
    start = [sys.executable, torchrun, "--standalone", "--nproc-per-node", str(processes)]
    return project._run([*start, *command], {"FFREPRO_DEVICE": "cpu", "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def project(project_in, tmp_path_factory):
    small = project_in(tmp_path_factory.mktemp("parallel"))
    small.shrink("8 16P 16", epochs=3)
    small.stages(["prepare", "digits"], ["check", "digits"])
    return small


@pytest.fixture(scope="module")
def together(project, root):
    """What processes find beside one another, {processes: {row: `gradients`}}; one start for all rows."""
    (project.root / "one_step.py").write_text(f"import sys\nsys.path.insert(0, {str(root / 'tests')!r})\n{ONE_STEP}")
    found = {}
    for processes, names in ((4, ROWS[:1]), (2, ROWS)):
        done = by(project, processes, "one_step.py", "found.pt", *names)
        assert done.returncode == 0, done.stderr
        found[processes] = torch.load(project.root / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize(("name", "processes"), [("digits", 4), *((name, 2) for name in ROWS)])
def test_two_steps_gradients_and_statistics_are_those_of_one_process(project, together, monkeypatch, name, processes):
    monkeypatch.chdir(project.root)
    alone, shared = gradients(engine.Engine, name), together[processes][name]
    assert shared.keys() == alone.keys()
    gradient = max(float(value.abs().max()) for what, value in alone.items() if what.endswith((".weight", ".bias")))
    for what, value in alone.items():
        # a gradient that is zero but for rounding has no scale of its own: the network's largest one is everyone's
        scale = gradient if what.endswith((".weight", ".bias")) else max(float(value.nan_to_num().abs().max()), 0.01)
        difference = (shared[what] - value).nan_to_num().abs().max()
        assert difference <= 1e-4 * scale, what
        assert torch.equal(shared[what].isnan(), value.isnan())


def test_shares_without_global_statistics_would_be_told_apart(project, tmp_path, monkeypatch):
    """The tolerance above is tight enough to see the usual mistake: each process its own batch norm."""
    monkeypatch.chdir(project.root)
    alone = gradients(engine.Engine, "digits")

    class Half(engine.Engine):
        def __init__(self, *given):
            super().__init__(*given)
            self.places = self.places.chunk(2)[0]

    half = gradients(Half, "digits")
    gradient = max(float(value.abs().max()) for what, value in alone.items() if what.endswith((".weight", ".bias")))
    for what in ("blocks.0.conv.weight", "blocks.1.conv.weight", "blocks.2.norm.weight"):
        assert (half[what] - alone[what]).abs().max() > 1e-2 * gradient


ROW = ["-m", "pipelines.parallel", "digits", "0"]


def made(project):
    """(weights, record, history) of the run, as they are on the disk."""
    place = project.root / "runs" / "digits" / "0"
    files = {file: (place / file).read_bytes() for file in ("weights.safetensors", "record.json", "history.csv")}
    return files["weights.safetensors"], json.loads(files["record.json"]), files["history.csv"].decode()


@pytest.fixture(scope="module")
def by_two(project):
    """What a run by two processes makes, and its last checkpoint."""
    done = by(project, 2, *ROW)
    assert done.returncode == 0, done.stderr
    return made(project), (project.root / "checkpoints" / "digits-0.pt").read_bytes()


def test_a_run_by_two_processes_repeats_its_bits_goes_on_and_ends_near_one_process(project, by_two):
    (weights, record, history), _ = by_two
    saved = project.root / "checkpoints" / "digits-0.pt"
    assert record["environment"]["processes"] == 2
    saved.unlink()
    command = [sys.executable, torchrun, "--standalone", "--nproc-per-node", "2", *ROW]
    process = subprocess.Popen(
        command, cwd=project.root, env=project_env(project), stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not saved.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait()
    done = by(project, 2, *ROW)
    assert done.returncode == 0, done.stderr
    assert re.search(r"digits-0.pt: going on after epoch [123]", done.stderr)
    again, its, _ = made(project)
    assert again == weights
    assert its["chain"] == record["chain"]
    project.stages(["evaluate", "digits", "0"], ["train", "digits", "0"])
    losses = [
        [float(entry["loss"]) for entry in csv.DictReader(text.splitlines())] for text in (history, made(project)[2])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


APART = """
import os, sys
from ffrepro import checkpoint, errors
from pipelines import parallel

def unreadable(*_):
    raise errors.UserError("digits-0.pt: not a whole checkpoint")

if os.environ["LOCAL_RANK"] == "1":
    {of_the_second}
sys.exit(errors.run(parallel.main, "digits", "0"))
"""


@pytest.mark.parametrize(
    ("of_the_second", "line"),
    [
        ("os.environ['FFREPRO_THREADS'] = '2'", "processes with another threads than the first; allowed: all alike"),
        ("os.environ['MKL_CBWR'] = 'AVX2'", "processes with another variables than the first; allowed: all alike"),
        (
            "pass\nelse:\n    os.environ['MKL_CBWR'] = 'AVX2'",
            "processes with another variables than the first; allowed: all alike",
        ),
        ("checkpoint.read = unreadable", "not every process could read the checkpoint as the first did; run again"),
    ],
)
def test_processes_that_would_go_on_from_other_states_are_refused(project, by_two, of_the_second, line):
    """Their gradients would be of other networks, and fit one another in shape all the same."""
    _, before = by_two
    (project.root / "checkpoints" / "digits-0.pt").write_bytes(before)
    (project.root / "apart.py").write_text(APART.format(of_the_second=of_the_second))
    done = by(project, 2, "apart.py")
    assert done.returncode != 0
    assert f"ffrepro: torchrun: {line}" in done.stderr
    assert (project.root / "checkpoints" / "digits-0.pt").read_bytes() == before


def project_env(project):
    return {**os.environ, "PYTHONPATH": str(project.root), "FFREPRO_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


def test_what_would_be_another_method_is_refused(project, row):
    done = project.call("python", "-m", "pipelines.parallel", "digits", "0")
    line = "ffrepro: start this by torchrun: torchrun --nproc-per-node N -m pipelines.parallel ROW SEED\n"
    assert (done.returncode, done.stderr) == (2, line)
    with pytest.raises(UserError, match=r"^training.batch: given 32 for 3 processes; allowed: a multiple of them"):
        parallel.check(row(), 3)
    with pytest.raises(UserError, match=r"^training.hardness: given 3 for 2 processes; allowed: 0, "):
        parallel.check(row(hardness=3), 2)
    parallel.check(row(), 4)


def test_its_batch_norm_is_no_kind_of_batch_norm_with_a_shortcut():
    assert not issubclass(parallel.GlobalBatchNorm, nn.BatchNorm2d)
