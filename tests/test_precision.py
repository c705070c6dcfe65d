"""What half precision does to gradients, computed in float32 with rounded values."""

import pytest
import torch

from ffrepro import config, engine, network, training
from pipelines import precision


@pytest.fixture
def batches(row, digits):
    """(narrow network in training, its row, digits to train on, the draws of two batches)."""
    chosen = row(blocks="4 8P 8 8")
    made = training.build(chosen, 0, torch.device("cpu")).train()
    train = digits[0]
    draws, size = engine.draw(chosen, 0, 0, len(train.labels)), chosen.training.batch
    return (
        made,
        chosen,
        train,
        [draws.rows(torch.arange(first, first + size)) for first in (0, len(train.labels) - size)],
    )


def test_values_and_gradients_are_rounded_and_what_becomes_0_is_told():
    told = []
    x = torch.tensor([1 + 2**-12, 1 + 2**-10], requires_grad=True)
    y = precision._Rounded.apply(x, torch.float16, lambda *both: told.extend(both))
    assert y.tolist() == [1, 1 + 2**-10]
    y.backward(torch.tensor([2**-26, 2**-24]))  # the smallest float16 number is 2^-24
    assert x.grad.tolist() == [0, 2**-24]
    assert [value.tolist() for value in told] == [[2**-26, 2**-24], [0, 2**-24]]


@pytest.mark.parametrize("parity", [0, 1])
def test_it_is_what_autocast_computes(batches, parity, monkeypatch):
    """Beside bfloat16 as rows train in it, here without the folding that goes another way."""
    made, chosen, train, (draws, _) = batches
    monkeypatch.setattr(network.Block, "_folds", lambda *_: False)
    exact, _ = precision.gradients(made, chosen, train, draws, parity)
    half, _ = precision.gradients(made, chosen, train, draws, parity, "bfloat16")
    autocast, _ = precision.gradients(
        made, config.changed(chosen, {"training.precision": "bfloat16"}), train, draws, parity
    )
    assert half.keys() == exact.keys() == autocast.keys() == {0: {1, 2, 3, 4}, 1: {1, 2, 3}}[parity]
    for block, its in half.items():
        apart = precision.distance(its, autocast[block])
        assert apart < precision.distance(its, exact[block]) / 3, (block, apart)


def test_of_each_block_in_each_role_the_distance_and_what_is_lost(batches):
    made, chosen, train, both = batches
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = list(precision.findings(made, chosen, train, both))
    roles = [(one.block, one.role.partition(" ")[0]) for one in found]
    even = [(1, "the"), (2, "its"), (3, "the"), (4, "its")]
    assert roles == [*even, (1, "its"), (2, "the"), (3, "its")]
    for one in found:
        assert 0 < one.distance["float16"] < one.distance["bfloat16"] < 0.5
        assert 0 <= one.lost["bfloat16"] <= one.lost["float16"] < 0.5
        assert one.another > one.distance["bfloat16"]
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(value.grad is None for value in made.parameters())


def test_layer_wise_updates_have_one_kind_of_step(batches, row):
    _, _, train, both = batches
    chosen = row(blocks="4 8P 8 8", update="layer-wise")
    made = training.build(chosen, 0, torch.device("cpu"))
    found = list(precision.findings(made, chosen, train, both))
    assert [(one.block, one.role) for one in found] == [(block, "its own loss") for block in (1, 2, 3, 4)]


def test_gradients_too_small_for_float16_are_lost(batches):
    made, chosen, train, both = batches
    with torch.no_grad():
        made.blocks[0].conv.weight.mul_(1e-3)
    small = next(precision.findings(made, config.changed(chosen, {"training.alpha": 1e-3}), train, both))
    assert small.block == 1
    assert small.lost["float16"] > 0.5
    assert small.lost["bfloat16"] < 0.01
    assert small.distance["float16"] > 5 * small.distance["bfloat16"]


def test_blocks_convolve_as_before_afterwards_also_after_an_error():
    def fail():
        with precision.rounding(torch.float16, lambda *_: None):
            assert network.convolve is not exact
            raise ZeroDivisionError

    exact = network.convolve
    with pytest.raises(ZeroDivisionError):
        fail()
    assert network.convolve is exact


def test_the_command(project):
    done = project.call("python", "-m", "pipelines.precision", "digits", "0", "--weights", "initial")
    assert done.returncode == 0, done.stderr
    title, _, head, rule, *rows = done.stdout.splitlines()
    assert title == "digits-0, initial weights, a batch of 32"
    assert {line.count("|") for line in (head, rule, *rows)} == {8}
    assert len(rows) == 7


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["digits", "0"], "runs/digits/0/record.json: no such file"),
        (["cifar10", "0", "--weights", "released"], "results/cifar10/0/record.json: no such file"),
        (["ablation-digits-backprop", "0", "--weights", "initial"], "does not convolve and learn block by block"),
        (["hinton-narrow", "0", "--weights", "initial"], "does not convolve and learn block by block"),
        (["digit", "0", "--weights", "initial"], "no experiment 'digit'"),
    ],
)
def test_what_it_cannot_do_is_a_line(project, arguments, line):
    done = project.call("python", "-m", "pipelines.precision", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
