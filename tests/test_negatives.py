"""Hard wrong labels: never the true one, drawn as stated."""

import pytest
import torch

from ffrepro.negatives import KEEP, UNIFORM, choose, memory, remember

CPU = torch.device("cpu")


def noise(n, classes, seed=0):
    return torch.rand(n, classes + 1, generator=torch.Generator().manual_seed(seed))


def test_labels_are_drawn_in_proportion_to_exp_of_the_margin():
    n, hardness = 60_000, 2.0
    known = memory(n, 4, CPU)
    margins = torch.tensor([0.0, -1.0, -0.2, 0.5])
    known.images[:] = margins
    labels = torch.zeros(n, dtype=torch.int64)
    uniform = 1 + torch.arange(n) % 3
    wrong = choose(known, hardness, torch.arange(n), labels, uniform, noise(n, 4))
    share = torch.bincount(wrong, minlength=4).double() / n
    hard = torch.exp(hardness * margins[1:].double())
    expected = UNIFORM / 3 + (1 - UNIFORM) * hard / hard.sum()
    assert share[0] == 0  # the true label, though its margin is not the lowest
    assert share[1:].tolist() == pytest.approx(expected.tolist(), abs=0.01)


def test_an_unseen_pair_counts_as_its_class_does():
    known = memory(1000, 3, CPU)
    known.classes[0] = torch.tensor([0.0, -50.0, 0.0])
    labels = torch.zeros(1000, dtype=torch.int64)
    draws = noise(1000, 3)
    draws[:, 0] = 1.0  # no uniform share
    assert (choose(known, 1.0, torch.arange(1000), labels, labels, draws) == 2).all()


def test_memory_holds_the_last_margin_and_the_running_mean_of_the_class():
    known = memory(3, 3, CPU)
    labels, wrong = torch.tensor([0, 0, 1]), torch.tensor([2, 2, 0])
    remember(known, torch.tensor([2, 0, 1]), labels, wrong, torch.tensor([1.0, 3.0, -1.0]))
    assert known.images[2, 2] == 1.0
    assert known.images[0, 2] == 3.0
    assert known.images[1, 0] == -1.0
    assert known.images.isnan().sum() == 6
    assert known.classes[0, 2] == pytest.approx((1 - KEEP) * 2.0)
    assert known.classes[1, 0] == pytest.approx((1 - KEEP) * -1.0)
    assert known.classes[2].tolist() == [0, 0, 0]
    before = known.classes.clone()
    remember(known, torch.tensor([1]), torch.tensor([1]), torch.tensor([0]), torch.tensor([-3.0]))
    before[1, 0] = KEEP * before[1, 0] + (1 - KEEP) * -3
    assert torch.equal(known.classes, before)  # a pair that is not in the batch keeps what it has


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_noise_are_as_likely_as_any(extreme):
    """The nearest to 0 and to 1 that float32 can draw neither forces a label nor forbids it."""
    known = memory(1, 3, CPU)
    labels, draws = torch.zeros(1, dtype=torch.int64), torch.full((1, 4), 0.5)
    draws[0, 2] = extreme
    for margin, label in ((-15.0, 2), (15.0, 1)):
        known.images[0, 1] = margin
        assert choose(known, 1.0, labels, labels, labels, draws) == label


def test_the_uniform_share_is_of_draws_below_it():
    known = memory(2, 3, CPU)
    known.images[:] = torch.tensor([0.0, -50.0, 50.0])
    draws = torch.full((2, 4), 0.5)
    draws[:, 0] = torch.tensor([UNIFORM - 2**-26, UNIFORM])
    labels, uniform = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    assert choose(known, 1.0, torch.arange(2), labels, uniform, draws).tolist() == [1, 2]
