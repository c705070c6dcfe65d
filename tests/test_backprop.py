"""The backprop twin: the same blocks, one loss, and what it shares with Forward-Forward's engine."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ffrepro import backprop, evaluation, record, training
from ffrepro.backprop import Classifier
from ffrepro.network import Convolutional
from ffrepro.randomness import generator, uniform

CPU = torch.device("cpu")
TWIN = {"update": "backprop", "loss": "cross-entropy"}


def test_it_has_the_blocks_of_its_forward_forward_row_and_a_read_out(row):
    ours, theirs = (training.build(row(blocks="8 8P 16", **more), 0, CPU) for more in (TWIN, {}))
    assert isinstance(ours, Classifier)
    assert isinstance(theirs, Convolutional)
    shapes = [[tuple(value.shape) for value in network.blocks.parameters()] for network in (ours, theirs)]
    shapes[1][:3] = [(1,), (1,), (8, 1, 3, 3)]  # the first block sees no label plane: one channel less
    assert shapes[0] == shapes[1]
    assert ours.read_out.weight.shape == (10, 16 * 4 * 4)
    count = sum(value.numel() for value in ours.parameters())
    assert count == 2 + 72 + 16 + 576 + 16 + 1152 + 2560 + 10


def test_initial_weights_depend_on_the_seed_alone():
    one, again, other = (Classifier((1, 8, 8), 10, [(50, False), (40, True)], "batch", seed) for seed in (0, 0, 1))
    assert record.tensors_hash(one.state_dict()) == record.tensors_hash(again.state_dict())
    assert not torch.equal(one.read_out.weight, other.read_out.weight)
    assert torch.equal(one.blocks[0].conv.weight, uniform((50, 1, 3, 3), 1 / 3, generator(0, "initial weights")))
    assert one.classes == 10


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_step_is_that_of_a_plain_module(row, digits, norm):
    """Against nn.Sequential, cross-entropy and Adam, written down as anybody would."""
    chosen = row(epochs=1, blocks="8 8P", batch=32, crop=0, rotation=0.0, norm=norm, schedule="constant", **TWIN)
    data = digits[0][torch.arange(64)]
    plain = training.build(chosen, 5, CPU)
    model = nn.Sequential()
    for block in plain.blocks:
        model.extend([block.norm, block.conv, nn.ReLU(), *([nn.MaxPool2d(2)] if block.pool else [])])
    model.extend([nn.Flatten(), plain.read_out])
    adam = torch.optim.Adam(model.parameters(), lr=chosen.training.lr)
    order = torch.randperm(64, generator=training_order(5))
    source = evaluation.DATASETS["digits"]
    for batch in order.split(32):
        images = (data.images[batch].float() / 255 - source.mean[0]) / source.std[0]
        adam.zero_grad()
        cross_entropy(model(images), data.labels[batch]).backward()
        adam.step()
    trained = training.train(chosen, 5, data).network
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def training_order(seed):
    return generator(seed, "order", 0)


def test_its_loss_and_separation_by_hand():
    class Fixed(Classifier):
        def __init__(self, logits):
            nn.Module.__init__(self)
            self.fixed = logits

        def logits(self, images):
            return self.fixed

    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
    loss, separation = backprop.loss(Fixed(logits), torch.zeros(2, 1), torch.tensor([0, 1]))
    own = [2 - math.log(math.exp(2) + 1 + math.exp(-1)), 1 - math.log(1 + math.exp(1) + math.exp(3))]
    assert loss.tolist() == [pytest.approx(-sum(own) / 2)]
    assert separation.tolist() == [[2.0, -2.0]]


def test_every_block_learns_from_the_one_loss(row, digits):
    chosen = row(epochs=1, blocks="8 8P 8", batch=64, **TWIN)
    before, after = (training.build(chosen, 0, CPU), training.train(chosen, 0, digits[0][torch.arange(128)]).network)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert not torch.equal(old, new), name


def test_its_history_and_table_have_one_column(row, digits):
    chosen = row(epochs=2, blocks="8 8P 8", batch=64, precision="bfloat16", **TWIN)
    trained = training.train(chosen, 0, digits[0][torch.arange(256)])
    last = trained.history[-1]
    assert {key for key in last if key.startswith(("loss", "separation"))} == {"loss", "loss_3", "separation_3"}
    assert last["loss"] == last["loss_3"]
    table, metrics = evaluation.evaluate(trained.network, digits[1], chosen)
    assert table.shape == (360, 10, chosen.columns) == (360, 10, 1)
    assert metrics["decided_in_float32"] == 0
    again = evaluation.goodness_table(trained.network, digits[1].images, evaluation.in_float32(chosen))
    assert torch.equal(again, table)  # evaluated in float32 whatever it was trained in
    assert metrics["accuracy"] == metrics["votes"]["all"] == metrics["blocks"]["1"]


def test_it_learns_the_digits(row, digits):
    chosen = row(epochs=4, blocks="8 16P 16", **TWIN)
    trained = training.train(chosen, 0, digits[0])
    assert evaluation.evaluate(trained.network, digits[1], chosen)[1]["accuracy"] > 85


def test_it_repeats_and_depends_on_the_seed(row, digits):
    chosen, data = row(epochs=1, blocks="8P", batch=64, **TWIN), digits[0][torch.arange(128)]
    hashes = [record.tensors_hash(training.train(chosen, seed, data).network.state_dict()) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
