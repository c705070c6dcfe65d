"""The step is exactly the authors', and a training repeats and resumes bit for bit."""

import random
import shutil
import signal
import subprocess
import sys
import time

import oracle
import pytest
import torch

from ffrepro import augment, negatives, record, training
from ffrepro.data import DATASETS, Split
from ffrepro.errors import UserError
from ffrepro.goodness import wrong_labels
from ffrepro.training import build, draw, has_loss, train, train_epoch

CPU = torch.device("cpu")


def images(n, shape, classes=10):
    generator = torch.Generator().manual_seed(1)
    return Split(
        torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8),
        torch.randint(0, classes, (n,), generator=generator),
    )


def literal_training(row, seed, data, epochs):
    """The oracle over whole epochs, fed with the same draws."""
    network = build(row, seed, CPU)
    adams = oracle.optimizers(network, row.training)
    source = DATASETS[row.data.name]
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    for epoch in range(epochs):
        draws = draw(row, seed, epoch, len(data.labels))
        steps = len(data.labels) // row.training.batch
        for step in range(steps):
            rows = slice(step * row.training.batch, (step + 1) * row.training.batch)
            x, y = data[draws.order[rows]]
            x = augment.normalise(augment.apply(x, draws.geometry.rows(rows)), mean, std)
            x = x.contiguous(memory_format=torch.channels_last)
            rate = training.learning_rate(row.training, (epoch + step / steps) / row.training.epochs)
            for adam in adams:
                adam.param_groups[0]["lr"] = rate
            oracle.step(network, adams, x, y, wrong_labels(y, draws.wrong[rows], row.classes), step, row.training)
    return network


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing


SMALL = "8P 8 16P 16 16 32P"  # the ablation's 6 blocks and the 12 blocks, narrow
LARGE = "4 8P 8 8 8 16P 16 16 16 32P 32 32"


@pytest.mark.parametrize("blocks", [SMALL, LARGE, "8 8P 16"], ids=["small", "large", "odd-number"])
@pytest.mark.parametrize("update", ["overlapping", "layer-wise"])
@pytest.mark.parametrize("loss", ["symba", "threshold"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_step_is_bitwise_the_literal_loop(row, blocks, update, loss, norm):
    # 5 steps an epoch and 5 epochs: 25 steps, with two even steps meeting at each epoch's end
    chosen = row(
        "cifar10", blocks=blocks, update=update, loss=loss, norm=norm, batch=4, epochs=5, precision="float32", flip=True
    )
    data = images(22, (3, 32, 32))
    expected = literal_training(chosen, 7, data, 5)
    network, _ = train(chosen, 7, data)
    assert_same_weights(network, expected)
    assert not torch.equal(network.blocks[0].conv.weight, build(chosen, 7, CPU).blocks[0].conv.weight)


def test_schedules_are_bitwise_the_literal_loop(row):
    for schedule in ("linear", "cosine"):
        chosen = row(blocks="4 8P 8", schedule=schedule, batch=8, epochs=3, precision="float32")
        data = images(30, (1, 8, 8))
        assert_same_weights(train(chosen, 0, data)[0], literal_training(chosen, 0, data, 3))


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["128P 128 256P 256 256 512P", "64 128P 128 128 128 256P 256 256 256 512P 512 512"])
def test_step_is_bitwise_the_literal_loop_at_full_width(row, blocks):
    chosen = row("cifar10", blocks=blocks, batch=8, epochs=2, precision="float32")
    data = images(80, (3, 32, 32))
    assert_same_weights(train(chosen, 0, data)[0], literal_training(chosen, 0, data, 2))


def test_windows_overlap_and_alternate():
    def losses(step, blocks):
        return [i for i in range(blocks) if has_loss(i, step, "overlapping")]

    assert losses(0, 6) == [1, 3, 5]  # windows (0, 1) (2, 3) (4, 5)
    assert losses(1, 6) == [0, 2, 4]  # windows (0) (1, 2) (3, 4); block 5 waits
    assert losses(0, 5) == [1, 3]
    assert [has_loss(i, s, "layer-wise") for i in range(3) for s in range(2)] == [True] * 6


@pytest.mark.parametrize(("step", "still"), [(0, ["embedding"]), (1, ["blocks.5"])])
def test_a_step_leaves_what_is_in_no_window_unchanged(row, step, still):
    chosen = row("cifar10", blocks=SMALL, precision="float32")
    network = build(chosen, 0, CPU)
    before = {name: value.clone() for name, value in network.named_parameters()}
    x, y = images(4, (3, 32, 32))
    losses, _ = training.local_losses(network, x.float(), y, (y + 1) % 10, step, chosen.training)
    adam = training.optimizers(network, chosen.training)[step]
    losses.sum().backward()
    adam.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    expected = {name for name in before if not name.startswith(tuple(still))}
    assert moved == expected


@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_blocks_loss_reaches_its_own_window_only(row, window):
    chosen = row("cifar10", blocks=SMALL, precision="float32")
    network = build(chosen, 0, CPU)
    x, y = images(4, (3, 32, 32))
    losses, _ = training.local_losses(network, x.float(), y, (y + 1) % 10, 0, chosen.training)
    losses[window].backward()
    reached = {
        name.split(".")[1] for name, value in network.named_parameters() if value.grad is not None and value.grad.any()
    }
    assert reached == {str(2 * window), str(2 * window + 1)}


def test_training_repeats_bit_for_bit_and_depends_on_the_seed(row, digits):
    chosen = row(epochs=1, blocks="8 16P 16")
    data = digits[0][torch.arange(200)]
    first, history = train(chosen, 0, data)
    assert_same_weights(first, train(chosen, 0, data)[0])
    other, _ = train(chosen, 1, data)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert [entry["epoch"] for entry in history] == [1]
    assert {"loss_1", "loss_3", "separation_1", "images_per_second", "seconds"} <= history[0].keys()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_keeps_float32_weights(row, digits, precision):
    chosen = row(epochs=1, blocks="4 8P", precision=precision)
    network, history = train(chosen, 0, digits[0][torch.arange(128)])
    assert {t.dtype for t in network.parameters()} == {torch.float32}
    assert history[0]["loss_2"] < 0.75


@pytest.mark.parametrize("hardness", [0, 2])
def test_resumed_training_equals_the_undisturbed_one(row, digits, tmp_path, hardness):
    chosen, data = row(epochs=4, blocks="8 16P 16", hardness=hardness), digits[0][torch.arange(200)]
    undisturbed, _ = train(chosen, 0, data)

    class PowerCutError(Exception):
        pass

    def cut(epoch, step, _):
        if (epoch, step) == (2, 1):  # in the middle of an epoch
            raise PowerCutError

    lines = []
    with pytest.raises(PowerCutError):
        train(chosen, 0, data, checkpoint=tmp_path / "c.pt", progress=cut)
    resumed, history = train(chosen, 0, data, checkpoint=tmp_path / "c.pt", say=lines.append)
    assert lines == ["c.pt: going on after epoch 2 of 4"]
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
    resumed, _ = train(chosen, seed, data, checkpoint=path, say=lines.append)
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


def test_a_loss_that_is_no_number_stops_with_its_block(row, digits):
    chosen = row(epochs=1, blocks="4 4P", lr=10.0, loss="threshold", threshold=1000.0)
    data = digits[0][torch.arange(200)]
    network = build(chosen, 0, CPU)
    with torch.no_grad():
        network.blocks[0].conv.weight.fill_(float("nan"))
    adams = training.optimizers(network, chosen.training)
    memory = negatives.memory(200, 10, CPU)
    with pytest.raises(UserError, match=r"loss of block 1 is no number in epoch 3; .*training\.lr"):
        train_epoch(network, adams, memory, data, chosen, 0, 2)
