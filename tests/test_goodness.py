"""Known values by hand, and the properties of wrong labels."""

import math

import pytest
import torch

from ffrepro.goodness import goodness, symba_loss, threshold_loss, wrong_labels


def test_goodness_is_the_mean_square_of_a_sample():
    activation = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    assert goodness(activation).tolist() == [7.5, 1.0]


def test_goodness_is_float32_for_half_precision_blocks():
    activation = torch.full((1, 1, 64, 64), 300.0, dtype=torch.float16)  # its square overflows float16
    assert goodness(activation).item() == 90_000.0


def test_symba_loss_by_hand():
    positive, negative = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2
    assert symba_loss(positive, negative, 4).item() == pytest.approx(expected, rel=1e-6)
    assert symba_loss(positive + 5, negative + 5, 4).item() == pytest.approx(
        expected, rel=1e-5
    )  # only separation counts
    assert symba_loss(positive, positive, 4).item() == pytest.approx(math.log(2))


def test_threshold_loss_by_hand():
    for slope in (1, 3):
        loss = threshold_loss(torch.tensor([3.0]), torch.tensor([0.0]), 2, slope)
        assert loss.item() == pytest.approx((math.log1p(math.exp(-slope)) + math.log1p(math.exp(-2 * slope))) / 2)


@pytest.mark.parametrize("loss", [lambda p, n: symba_loss(p, n, 4), lambda p, n: threshold_loss(p, n, 2, 3)])
def test_losses_push_positive_up_and_negative_down(loss):
    positive, negative = torch.rand(8, requires_grad=True), torch.rand(8, requires_grad=True)
    loss(positive, negative).backward()
    assert (positive.grad < 0).all()
    assert (negative.grad > 0).all()


def test_wrong_labels_are_uniform_and_never_the_true_one():
    n = 90_000
    labels = torch.arange(n) % 10
    shift = torch.randint(1, 10, (n,), generator=torch.Generator().manual_seed(0))
    wrong = wrong_labels(labels, shift, 10)
    assert not (wrong == labels).any()
    counts = torch.bincount(labels * 10 + wrong, minlength=100).view(10, 10)
    off_diagonal = counts[~torch.eye(10, dtype=torch.bool)].double()
    chi_square = ((off_diagonal - 1000) ** 2 / 1000).sum()  # 80 degrees of freedom: 99.9 % lie below 124.8
    assert chi_square < 124.8


def test_the_gradient_is_autograds_of_a_single_sample_too():
    ours, theirs = (torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True) for _ in range(2))
    goodness(ours).sum().backward()
    theirs.square().mean(1).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_the_wrong_label_is_that_many_places_further_round():
    assert wrong_labels(torch.tensor([0, 7, 9]), torch.tensor([1, 5, 9]), 10).tolist() == [1, 2, 8]
