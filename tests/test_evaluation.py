"""Goodness per label -> prediction -> accuracy."""

import pytest
import torch

from ffrepro import augment
from ffrepro.data import DATASETS
from ffrepro.evaluation import (
    accuracy,
    contenders,
    decide,
    evaluate,
    goodness_table,
    in_float32,
    metrics,
    predictions,
)
from ffrepro.goodness import goodness
from ffrepro.training import build, train

CPU = torch.device("cpu")


def test_table_is_one_pass_per_label(row, digits):
    """The batched table equals the literal ten passes, image by image."""
    chosen = row(blocks="4 8P 8")
    network = build(chosen, 0, CPU)
    images = digits[1].images[:130]  # more than one batch, the last one partial
    table = goodness_table(network, images, chosen)
    assert table.shape == (130, 10, 3)
    network.eval()
    source = DATASETS["digits"]
    with torch.no_grad():
        for i in (0, 99, 100, 129):
            x = augment.normalise(images[i : i + 1], torch.tensor(source.mean), torch.tensor(source.std))
            for label in range(10):
                literal = [goodness(h).item() for h in network(x, torch.tensor([label]))]
                torch.testing.assert_close(table[i, label], torch.tensor(literal))


def test_evaluation_leaves_the_network_as_it_was(row, digits):
    chosen = row(blocks="4 8P")
    network = build(chosen, 0, CPU)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    goodness_table(network, digits[1].images[:20], chosen)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_blocks_that_vote_decide():
    # one image, three labels, three blocks: each block alone prefers another label
    table = torch.tensor([[[9.0, 0.0, 1.0], [0.0, 5.0, 0.0], [0.0, 0.0, 2.0]]])
    assert predictions(table, "last").item() == 2
    assert predictions(table, "last-2").item() == 1
    assert predictions(table, "all").item() == 0
    found = metrics(table, torch.tensor([2]), "last")
    assert found["accuracy"] == 100
    assert found["blocks"] == {"1": 0, "2": 0, "3": 100}
    assert found["votes"] == {"last": 100, "last-2": 0, "last-3": 0, "all": 0}


def test_accuracy_is_in_percent():
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 75.0


def test_contenders_by_hand():
    goodness = torch.tensor([[10.0, 9.9, 0.0], [10.0, 9.7, 0.0], [1.98, 2.0, 1.97], [0.0, 1.0, 2.0]])
    found = contenders(goodness.unsqueeze(2), "last").tolist()
    assert found == [[True, True, False], [False] * 3, [True] * 3, [False] * 3]
    two = torch.stack([goodness, goodness.flip(1)], 2)  # two blocks of contrary opinions: their mean
    assert not contenders(two, "last-2")[0].any()
    assert contenders(two, "last-2")[3].tolist() == [True, True, True]


@pytest.mark.parametrize("vote", ["last", "last-2"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_where_rounding_could_decide_float32_does(row, digits, precision, vote):
    chosen = row(blocks="16 32P 32", precision=precision, epochs=2, vote=vote)
    network = train(chosen, 0, digits[0]).network
    images = digits[1].images
    half, full = goodness_table(network, images, chosen), goodness_table(network, images, in_float32(chosen))
    table, pairs = decide(half, network, images, chosen)
    if precision == "float32":
        assert torch.equal(table, half)
        assert pairs == 0
        return
    close = contenders(half, vote)
    assert 0 < pairs == close.sum() < close.numel()
    voters = 1 if vote == "last" else 2
    assert torch.equal(table[~close], half[~close])
    assert torch.equal(table[..., :-voters], half[..., :-voters])
    torch.testing.assert_close(table[close][:, -voters:], full[close][:, -voters:], rtol=1e-5, atol=0)
    assert torch.equal(predictions(table, vote), predictions(full, vote))
    assert evaluate(network, digits[1], chosen)[1]["decided_in_float32"] == pairs
