"""What half precision does to gradients, computed in float32 with rounded values."""

import math

import pytest
import torch

from ffrepro import config, engine, network, training
from pipelines import gpu, precision


@pytest.fixture
def batches(row, digits):
    """(narrow network in training, its row, digits to train on, the draws of two batches)."""
    chosen = row(blocks="4 8P 8 8")
    made = training.build(chosen, 0, torch.device("cpu")).train()
    train = digits[0]
    draws, size = engine.draw(chosen, 0, 0, len(train.labels)), chosen.training.batch
    both = [draws.rows(torch.arange(first, first + size)) for first in (0, len(train.labels) - size)]
    return made, chosen, train, both


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
    """Beside bfloat16 as rows train in it on a CPU without it, here without the folding that goes another way."""
    made, chosen, train, (draws, _) = batches
    monkeypatch.setattr(network.Block, "_folds", lambda *_: False)
    monkeypatch.setattr(network, "emulates", lambda _: torch.is_autocast_enabled("cpu"))
    in_bfloat16 = config.changed(chosen, {"training.precision": "bfloat16"})
    exact, _ = precision.gradients(made, chosen, train, draws, parity)
    half, _ = precision.gradients(made, chosen, train, draws, parity, "bfloat16")
    autocast, _ = precision.gradients(made, in_bfloat16, train, draws, parity)
    assert half.keys() == exact.keys() == autocast.keys() == {0: {1, 2, 3, 4}, 1: {1, 2, 3}}[parity]
    for block, its in half.items():
        apart, off = precision.likeness(its, autocast[block]), precision.likeness(its, exact[block])
        assert apart.distance < off.distance / 100, (block, apart, off)
        assert 1 - apart.signs <= (1 - off.signs) / 5, (block, apart, off)


def test_likeness_by_hand():
    both = ([4.5, 1.0], [-0.25, 0.0]), ([4.0, 1.0], [0.5, 0.0])
    its, exact = ({"a": torch.tensor(a), "b": torch.tensor(b)} for a, b in both)
    assert precision.likeness(its, exact) == (pytest.approx(math.sqrt((0.25 + 0.5625) / 17.25)), 0.75)
    nothing, something = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    assert precision.likeness(nothing, nothing) == (0, 1)
    assert precision.likeness(something, nothing) == (math.inf, 0)
    assert precision.likeness(nothing, something) == (1, 0)


def test_of_each_block_in_each_role_the_distance_and_what_is_lost(batches):
    made, chosen, train, both = batches
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = list(precision.findings(made, chosen, train, both))
    roles = [(one.block, one.role.partition(" ")[0]) for one in found]
    even = [(1, "the"), (2, "its"), (3, "the"), (4, "its")]
    assert roles == [*even, (1, "its"), (2, "the"), (3, "its")]
    for one in found:
        finer, coarser = one.halves["float16"], one.halves["bfloat16"]
        assert 0 < finer.distance < coarser.distance < 0.5
        assert 1 >= finer.signs >= coarser.signs > 0.8
        assert 0 <= one.lost["bfloat16"] <= one.lost["float16"] < 0.5
        assert 0.5 < one.another.distance < 2
        assert 0.4 < one.another.signs < 0.95
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
    flat = config.changed(chosen, {"training.alpha": 1e-6})
    lost = {(one.block, one.role): one for one in precision.findings(made, flat, train, both)}
    for one in lost.values():
        assert one.lost["float16"] > 0.9
        assert one.lost["bfloat16"] < 0.01
        assert one.halves["float16"].distance > 5 * one.halves["bfloat16"].distance
    assert lost[2, "the next block's"].lost["float16"] == 1  # of what did not even arrive, too


def test_what_the_next_block_tells_is_lost_where_it_leaves_it(batches):
    made, chosen, train, both = batches
    _, lost = precision.gradients(made, chosen, train, both[0], 0, "float16")
    assert lost.keys() == {(block, place) for block in (1, 2, 3, 4) for place in ("input", "weight", "output")}
    first, second, *_ = precision.findings(made, chosen, train, both)
    assert first.lost["float16"] == lost[2, "input"] != lost[1, "output"]
    assert second.lost["float16"] == lost[2, "output"]


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
    assert {line.count("|") for line in (head, rule, *rows)} == {11}
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


def test_float32_keeps_within_the_bounds_that_are_its_and_half_precision_does_not(row, monkeypatch):
    """What tests/test_cuda.py asks of a GPU, here with a quarter of the width and the CPU's norms by channel."""
    blocks = "16 32P 32 32 32 64P 64 64 64 128P 128 128"
    chosen, cpu = row("cifar10", blocks=blocks, batch=32, precision="float32"), torch.device("cpu")
    exact = [gpu._exact_gradients(chosen, parity) for parity in (0, 1)]
    monkeypatch.setattr(gpu, "_exact_gradients", lambda _, parity: exact[parity])
    found = gpu.differences(chosen, cpu)
    assert [one["block"] for one in found] == [*range(1, 13), *range(1, 12)]
    assert gpu.in_float32(chosen, found, "by channel"), found
    for kind in (torch.float16, torch.bfloat16):
        with precision.rounding(kind, lambda *_: None):
            assert not gpu.in_float32(chosen, gpu.differences(chosen, cpu), "by channel")
