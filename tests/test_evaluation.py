"""Goodness per label -> prediction -> accuracy."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import update_bn

from ffrepro import augment, record
from ffrepro.augment import Geometry
from ffrepro.data import DATASETS, Split
from ffrepro.engine import Draws, draw
from ffrepro.evaluation import (
    CODE,
    accuracy,
    contenders,
    decide,
    evaluate,
    goodness_of_pairs,
    goodness_table,
    in_float32,
    metrics,
    predictions,
    restate,
)
from ffrepro.goodness import goodness, wrong_labels
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


class UnderLabels(nn.Module):
    """A network of one argument, for PyTorch's own function."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pair):
        return self.network(*pair)


def trained_a_little(row, split, **values):
    chosen = row(**{"blocks": "8 16P 16", "epochs": 1, "batch": 50, "rotation": 10, **values})
    return chosen, train(chosen, 0, split).network


def test_restated_statistics_are_those_of_pytorchs_own_function(row, digits):
    split = digits[0]
    chosen, network = trained_a_little(row, split)
    theirs = build(chosen, 0, CPU)
    theirs.load_state_dict(network.state_dict())
    draws, source, batches = draw(chosen, 0, 1, len(split.labels)), DATASETS["digits"], []
    for places in torch.arange(len(split.labels)).split(50)[:-1]:  # the last partial batch is dropped
        order = draws.order[places]
        images = augment.apply(split.images[order], draws.geometry.rows(places))
        images = augment.normalise(images, torch.tensor(source.mean), torch.tensor(source.std))
        labels = split.labels[order]
        wrong = wrong_labels(labels, draws.wrong[places], 10)
        batches.append([(torch.cat([images, images]), torch.cat([labels, wrong]))])
    update_bn(batches, UnderLabels(theirs.train()))

    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()
    restate(network, split, chosen, draws)
    assert not network.training
    assert all(block.norm.momentum == 0.1 for block in network.blocks)
    after = network.state_dict()
    for name, value in after.items():
        if "running" in name:
            assert not torch.allclose(value, before[name], rtol=1e-3)
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-5, atol=1e-6)
        elif "num_batches" not in name:
            assert torch.equal(value, before[name])


def test_restated_statistics_in_bfloat16_are_near_those_in_float32(row, digits):
    split = digits[0]
    chosen, network = trained_a_little(row, split, precision="bfloat16", blocks="16 16P 16")  # wide enough to be folded
    draws, twin = draw(chosen, 0, 1, len(split.labels)), build(chosen, 0, CPU)
    twin.load_state_dict(network.state_dict())
    restate(network, split, chosen, draws)
    restate(twin, split, in_float32(chosen), draws)
    for mine, its in zip(network.blocks, twin.blocks, strict=True):
        torch.testing.assert_close(mine.norm.running_mean, its.norm.running_mean, rtol=0.01, atol=1e-3)
        torch.testing.assert_close(mine.norm.running_var, its.norm.running_var, rtol=0.02, atol=1e-3)


def test_what_has_no_statistics_stays_and_the_backprop_twin_has_some(row, digits):
    split = digits[0]
    for values, changes in (({"norm": "layer"}, False), ({"update": "backprop", "loss": "cross-entropy"}, True)):
        chosen, network = trained_a_little(row, split, **values)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        restate(network, split, chosen, draw(chosen, 0, 1, len(split.labels)))
        changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(changed) is changes
        assert all("running" in name or "num_batches" in name for name in changed)


def test_the_blocks_that_vote_decide():
    # one image, three labels, three blocks: each block alone prefers another label
    table = torch.tensor([[[9.0, 0.0, 1.0], [0.0, 5.0, 0.0], [0.0, 0.0, 2.0]]])
    assert predictions(table, "last").item() == 2
    assert predictions(table, "last-2").item() == 1
    assert predictions(table, "all").item() == 0
    found = metrics(table, torch.tensor([2]), "last")
    assert (found["accuracy"], found["vote"], found["images"]) == (100, "last", 1)
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


@pytest.mark.parametrize("vote", ["last", "last-2", "all"])
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
    voters = {"last": 1, "last-2": 2, "all": 3}[vote]
    assert torch.equal(table[~close], half[~close])
    assert torch.equal(table[..., : 3 - voters], half[..., : 3 - voters])
    torch.testing.assert_close(table[close][:, -voters:], full[close][:, -voters:], rtol=1e-5, atol=0)
    assert torch.equal(predictions(table, vote), predictions(full, vote))
    again, told = evaluate(network, digits[1], chosen)
    assert torch.equal(again, table)
    assert told == {
        **metrics(table, digits[1].labels, vote),
        "decided_in_float32": pairs,
        "weights": record.tensors_hash(network.state_dict()),
        "test_data": record.tensors_hash(digits[1]._asdict()),
        "goodness_table": record.tensors_hash({"goodness": table}),
        "environment": record.environment(CPU),
        "code": record.code_hash(CODE),
    }


@pytest.mark.parametrize("name", ["cifar10", "ablation-symba-layer-overlapping", "hinton", "ablation-digits-backprop"])
def test_on_a_gpu_nothing_is_left_on_the_cpu(row, name):
    """On PyTorch's tensors without values: shapes and devices are a GPU's, and two devices in one operation fail."""
    chosen = row(name, precision="float32", batch=16)
    network, drawn, n = build(chosen, 0, CPU), draw(chosen, 0, 1, 48), 48
    state = network.state_dict()

    def there(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    with FakeTensorMode():
        network.load_state_dict({key: there(value) for key, value in state.items()}, assign=True)
        draws = Draws(*map(there, drawn[:3]), Geometry(*map(there, drawn.geometry)))
        split = Split(there(torch.empty(n, *chosen.shape, dtype=torch.uint8)), there(torch.empty(n, dtype=torch.int64)))
        restate(network, split, chosen, draws)
        found = [goodness_table(network, split.images, chosen), *network.state_dict().values()]
        if chosen.training.update != "backprop":
            found.append(goodness_of_pairs(network, split.images, split.labels, chosen))
    assert {tensor.device.type for tensor in found} == {"cuda"}
