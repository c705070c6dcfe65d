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
