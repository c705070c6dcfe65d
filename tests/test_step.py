"""The step is exactly the authors', and touches what it may touch only."""

import math

import pytest
import torch

from ffrepro import augment, plain
from ffrepro.data import DATASETS, Split
from ffrepro.engine import draw
from ffrepro.goodness import wrong_labels
from ffrepro.step import has_loss, learners, learning_rate, local_losses, optimizers
from ffrepro.training import build, train

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
    adams = plain.optimizers(network, row.training, fused=True)
    source = DATASETS[row.data.name]
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    for epoch in range(epochs):
        draws = draw(row, seed, epoch, len(data.labels))
        steps = len(data.labels) // row.training.batch
        for step in range(steps):
            rows = slice(step * row.training.batch, (step + 1) * row.training.batch)
            x, y = data[draws.order[rows]]
            x = augment.normalise(augment.apply(x, draws.geometry.rows(rows)), mean, std)
            wrong = wrong_labels(y, draws.wrong[rows], row.classes)
            rate = learning_rate(row.training, (epoch + step / steps) / row.training.epochs)
            for adam in adams:
                adam.param_groups[0]["lr"] = rate
            plain.step(network, adams, x, y, wrong, step, row.training)
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
    network, *_ = train(chosen, 7, data)
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


def test_learning_rates_by_hand(row):
    half = math.sqrt(0.5)
    shares = {
        "constant": [1, 1, 1, 1],
        "linear": [1, 0.75, 0.5, 0.25],
        "cosine": [1, (1 + half) / 2, 0.5, (1 - half) / 2],
    }
    for schedule, share in shares.items():
        training = row(schedule=schedule, lr=0.004).training
        rates = [learning_rate(training, progress) for progress in (0, 0.25, 0.5, 0.75)]
        assert rates == pytest.approx([0.004 * one for one in share])


@pytest.mark.parametrize("loss", ["symba", "threshold"])
def test_losses_and_separations_of_a_step_by_hand(row, loss):
    chosen = row(blocks="4 8P 8", loss=loss, threshold=1.5, slope=2.0).training
    network = build(row(blocks="4 8P 8"), 0, CPU)
    x, y, wrong = torch.rand(5, 1, 8, 8), torch.arange(5), torch.arange(5) + 5
    losses, separations = local_losses(network, x, y, wrong, 1, chosen)
    for found, separation, block in zip(losses, separations, (0, 2), strict=True):
        activations = network(torch.cat([x, x]), torch.cat([y, wrong]))[block]
        positive, negative = activations.double().pow(2).mean((1, 2, 3)).chunk(2)
        torch.testing.assert_close(separation.double(), positive - negative)
        if loss == "symba":
            expected = torch.log1p(torch.exp(-4 * (positive - negative))).mean()
        else:
            both = torch.cat([2 * (1.5 - positive), 2 * (negative - 1.5)])
            expected = torch.log1p(torch.exp(both)).mean()
        torch.testing.assert_close(found.double(), expected)


def test_windows_overlap_and_alternate():
    def losses(step, blocks):
        return [i for i in range(blocks) if has_loss(i, step, "overlapping")]

    assert losses(0, 6) == [1, 3, 5]  # windows (0, 1) (2, 3) (4, 5)
    assert losses(1, 6) == [0, 2, 4]  # windows (0) (1, 2) (3, 4); block 5 waits
    assert losses(0, 5) == [1, 3]
    assert [has_loss(i, s, "layer-wise") for i in range(3) for s in range(2)] == [True] * 6


@pytest.mark.parametrize("update", ["overlapping", "layer-wise"])
def test_learners_are_the_blocks_with_a_loss(update):
    for step in range(3):
        assert list(range(7))[learners(step, update)] == [i for i in range(7) if has_loss(i, step, update)]


@pytest.mark.parametrize(("step", "still"), [(0, ["embedding"]), (1, ["blocks.5"])])
def test_a_step_leaves_what_is_in_no_window_unchanged(row, step, still):
    chosen = row("cifar10", blocks=SMALL, precision="float32")
    network = build(chosen, 0, CPU)
    before = {name: value.clone() for name, value in network.named_parameters()}
    x, y = images(4, (3, 32, 32))
    losses, _ = local_losses(network, x.float(), y, (y + 1) % 10, step, chosen.training)
    adam = optimizers(network, chosen.training)[step]
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
    losses, _ = local_losses(network, x.float(), y, (y + 1) % 10, 0, chosen.training)
    losses[window].backward()
    reached = {
        name.split(".")[1] for name, value in network.named_parameters() if value.grad is not None and value.grad.any()
    }
    assert reached == {str(2 * window), str(2 * window + 1)}
