"""A training repeats and resumes bit for bit."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from ffrepro import record
from ffrepro.data import Split
from ffrepro.training import train


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing


def test_training_repeats_bit_for_bit_and_depends_on_the_seed(row, digits):
    chosen = row(epochs=1, blocks="8 16P 16")
    data = digits[0][torch.arange(200)]
    first, history, *_ = train(chosen, 0, data)
    assert_same_weights(first, train(chosen, 0, data)[0])
    other, *_ = train(chosen, 1, data)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert [entry["epoch"] for entry in history] == [1]
    assert {"loss_1", "loss_3", "separation_1", "images_per_second", "seconds"} <= history[0].keys()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_keeps_float32_weights(row, digits, precision):
    chosen = row(epochs=1, blocks="4 8P", precision=precision)
    network, history, *_ = train(chosen, 0, digits[0][torch.arange(128)])
    assert {t.dtype for t in network.parameters()} == {torch.float32}
    assert history[0]["loss_2"] < 0.75


@pytest.mark.parametrize("hardness", [0, 2])
def test_resumed_training_equals_the_undisturbed_one(row, digits, tmp_path, hardness):
    chosen, data = row(epochs=4, blocks="8 16P 16", hardness=hardness), digits[0][torch.arange(200)]
    undisturbed, *_ = train(chosen, 0, data)

    class PowerCutError(Exception):
        pass

    def cut(epoch, step):
        if (epoch, step) == (2, 1):  # in the middle of an epoch
            raise PowerCutError

    lines = []
    with pytest.raises(PowerCutError):
        train(chosen, 0, data, checkpoint=tmp_path / "c.pt", progress=cut)
    resumed, history, *_ = train(chosen, 0, data, checkpoint=tmp_path / "c.pt", say=lines.append)
    assert lines == ["c.pt: going on after epoch 2"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert_same_weights(resumed, undisturbed)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("parameters", {"lr": 0.5}),
        ("seed", None),
        ("data", None),
        ("code", None),
        ("environment", None),
        ("torn", None),
    ],
)
def test_a_checkpoint_of_something_else_is_not_resumed(row, digits, tmp_path, monkeypatch, what, change):
    chosen, data, seed = row(epochs=1, blocks="4 4P"), digits[0][torch.arange(100)], 0
    path = tmp_path / "c.pt"
    train(chosen, seed, data, checkpoint=path)
    lines = []
    if what == "parameters":
        chosen = row(epochs=1, blocks="4 4P", **change)
    elif what == "seed":
        seed = 1
    elif what == "data":
        data = Split(data.images ^ 1, data.labels)
    elif what == "code":
        monkeypatch.setattr(record, "code_hash", lambda: "of another version")
    elif what == "environment":
        torch.set_num_threads(2)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    resumed, *_ = train(chosen, seed, data, checkpoint=path, say=lines.append)
    assert len(lines) == 1
    assert lines[0].endswith("not resumed, training starts anew")
    assert ("not a whole checkpoint" if what == "torn" else what) in lines[0]
    assert_same_weights(resumed, train(chosen, seed, data)[0])


def test_killed_training_ends_in_the_same_weights(project):
    """The train stage itself, killed at random moments of three epochs, then left to finish."""
    project.edit("params.yaml", "blocks: 48 96P 96 96", "blocks: 8 16P 16 16")
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"])
    folder, checkpoint = project.root / "runs" / "digits" / "0", project.root / "checkpoints" / "digits-0.pt"
    undisturbed = (folder / "weights.safetensors").read_bytes()
    shutil.rmtree(folder)
    command = [sys.executable, "-m", "pipelines.train", "digits", "0"]
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command, cwd=project.root, stderr=subprocess.DEVNULL)
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))  # an epoch takes about as long
        process.send_signal(how)
        assert process.wait() != 0
        assert not (folder / "weights.safetensors").exists()
    done = project.run("python", "-m", "pipelines.train", "digits", "0")
    assert done.returncode == 0
    assert "going on after epoch" in done.stderr
    assert (folder / "weights.safetensors").read_bytes() == undisturbed
    assert not checkpoint.exists()
