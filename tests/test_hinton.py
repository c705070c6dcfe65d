"""Hinton's original network: fully connected, length-normalised, the label in the first pixels."""

import torch

from ffrepro import evaluation, training
from ffrepro.goodness import goodness
from ffrepro.hinton import FullyConnected, Layer
from ffrepro.randomness import generator, uniform

ORIGINAL = {"norm": "length", "update": "layer-wise", "loss": "threshold"}


def test_the_label_stands_in_the_first_pixels():
    network = FullyConnected((1, 4, 4), 3, [5], 0)
    images = torch.arange(32.0).view(2, 1, 4, 4)
    under = network.overlay(images, torch.tensor([0, 2]))
    assert under[:, :3].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert torch.equal(under[:, 3:], images.flatten(1)[:, 3:])


def test_a_layer_by_hand():
    layer = Layer(2, 2, normalises=True)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        layer.linear.bias.zero_()
    # (3, 4) has mean square 12.5; relu leaves the first unit of the two
    made = layer(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(made, torch.tensor([[3 / 12.5**0.5, 0.0]]))


def test_a_layer_cannot_read_the_length_of_its_input():
    layer = Layer(6, 4, normalises=True)
    x = torch.rand(3, 6)
    torch.testing.assert_close(layer(x), layer(x * torch.tensor([[0.1], [7.0], [100.0]])))
    first = Layer(6, 4, normalises=False)
    assert not torch.allclose(first(x), first(7 * x))


def test_every_layer_but_the_first_normalises_and_a_silent_input_leaves_the_bias():
    network = FullyConnected((1, 4, 4), 3, [5, 6, 7], 0)
    assert [layer.normalises for layer in network.blocks] == [False, True, True]
    layer = network.blocks[1]
    assert torch.equal(layer(torch.zeros(1, 5))[0], layer.linear.bias.relu())


def test_the_row_of_four_layers_of_2000_units(params):
    chosen = params.experiments["hinton"]
    network = training.build(chosen, 0, torch.device("cpu"))
    assert isinstance(network, FullyConnected)
    shapes = [tuple(block.linear.weight.shape) for block in network.blocks]
    assert shapes == [(2000, 784), (2000, 2000), (2000, 2000), (2000, 2000)]
    assert chosen.evaluation.vote == "last-3"  # all layers but the first
    assert chosen.training.slope == 2000  # goodness is a sum over units
    assert chosen.training.epochs == 60


def test_initial_weights_have_pytorchs_limits_and_depend_on_the_seed():
    one, again, other = (FullyConnected((1, 8, 8), 10, [50, 40], seed) for seed in (0, 0, 1))
    for a, b, c in zip(one.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    for layer, fan_in in zip(one.blocks, (64, 50), strict=True):
        for values in layer.parameters():
            assert values.abs().max() <= fan_in**-0.5
        assert layer.linear.weight.abs().max() > 0.95 * fan_in**-0.5
    first = uniform((50, 64), 64**-0.5, generator(0, "initial weights"))
    assert torch.equal(one.blocks[0].linear.weight, first)


def test_a_layers_update_leaves_the_others_as_they_are(row, digits):
    """Local losses: without any epoch of its own loss, layer 2's gradient is layer 2's alone."""
    network = training.build(row(blocks="20 20 20", **ORIGINAL), 0, torch.device("cpu"))
    activations = network(torch.rand(4, 1, 8, 8), torch.arange(4))
    assert [goodness(h).shape for h in activations] == [(4,)] * 3
    h = network.blocks[1](activations[0].detach())
    goodness(h).sum().backward()
    assert [block.linear.weight.grad is not None for block in network.blocks] == [False, True, False]


def test_it_learns_the_digits(row, digits):
    chosen = row(blocks="100 100 100", epochs=8, slope=20.0, threshold=0.5, vote="last-2", **ORIGINAL)
    trained = training.train(chosen, 0, digits[0])
    table, metrics = evaluation.evaluate(trained.network, digits[1], chosen)
    assert table.shape == (360, 10, 3)
    assert metrics["accuracy"] > 80
    first, last = trained.history[0], trained.history[-1]
    assert all(last[f"loss_{i}"] < first[f"loss_{i}"] for i in (1, 2, 3))
