"""Goodness of a sample at a block, and the two losses that a block can learn by.

Everything here is a formula on tensors: no parameters, no state, no device.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import softplus


def goodness(activation: Tensor) -> Tensor:
    """Mean squared activation of each sample, in float32 whatever the precision of the block.

    activation: (B, ...) block output, after pooling. Returns (B,) float32.
    Source: the authors' code (a mean; Hinton 2022, section 2, sums).
    """
    result: Tensor = _MeanSquare.apply(activation)  # type: ignore[no-untyped-call]  # torch's own gap
    return result


class _MeanSquare(Function):
    """g = mean h^2 and dh = 2 g' h / n: autograd's bits in float32; of a half-precision block no float32 copy stays."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor) -> Tensor:
        ctx.save_for_backward(activation)
        every = tuple(range(1, activation.ndim))
        if activation.dtype == torch.float32:
            return activation.square().mean(every)
        norm: Tensor = torch.linalg.vector_norm(activation, dim=every, dtype=torch.float32)  # reads it once
        return norm.square() / activation[0].numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (activation,) = ctx.saved_tensors
        scale = 2 * (gradient / activation[0].numel()).view(-1, *[1] * (activation.ndim - 1))
        product: Tensor = activation * scale
        return product.to(activation.dtype)


def symba_loss(positive: Tensor, negative: Tensor, alpha: float) -> Tensor:
    """mean softplus(-alpha (g+ - g-)) over the pairs: only the separation counts, not its place.

    positive, negative: (B,) goodness of the same images with true and with wrong labels. Returns ().
    Source: SymBa (Lee & Song 2023), as the Trifecta uses it with alpha = 4.
    """
    return softplus(-alpha * (positive - negative)).mean()


def threshold_loss(positive: Tensor, negative: Tensor, threshold: float, slope: float) -> Tensor:
    """mean of softplus(slope (threshold - g+)) and softplus(slope (g- - threshold)) over both halves.

    positive, negative: (B,) goodness of the true-label and the wrong-label half. Returns ().
    Source: the original Forward-Forward loss (Hinton 2022, equation 1), the ablation's other loss. Hinton's goodness is
    a sum over units, which a slope of their number makes of the mean; the threshold is one by unit.
    """
    return softplus(slope * torch.cat([threshold - positive, negative - threshold])).mean()


def wrong_labels(labels: Tensor, shift: Tensor, classes: int) -> Tensor:
    """The label `shift` places further round the circle of classes: never the true one.

    labels, shift: (B,) integers, shift uniform in 1 .. classes - 1, so that every wrong label is equally likely.
    """
    return (labels + shift) % classes
