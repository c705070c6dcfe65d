"""The authors' step, plain and literal: one Adam per block, one loss, backward and update after the other.

Written from the description of the algorithm (docs/algorithm.md), and slow on purpose: the fast step of
`ffrepro.training` must give the same weights, bit for bit, in float32. It shares the layout in memory, channels last:
in another one the same sums are added in another order.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu, softplus
from torch.optim import Adam

from ffrepro.config import Training
from ffrepro.network import Network


def optimizers(network: Network, training: Training) -> list[Adam]:
    """Block i's Adam holds the parameters of block i and of the block below; block 0's holds the embedding."""
    below: nn.Module = network.embedding
    adams = []
    for block in network.blocks:
        adams.append(Adam([*block.parameters(), *below.parameters()], lr=training.lr, fused=True))
        below = block
    return adams


def step(
    network: Network, adams: list[Adam], x: Tensor, y: Tensor, wrong: Tensor, step: int, training: Training
) -> None:
    planes = network.embedding(torch.cat([y, wrong])).view(-1, 1, *x.shape[2:])
    h = torch.cat([torch.cat([x, x]), planes], 1).contiguous(memory_format=torch.channels_last)
    for i, block in enumerate(network.blocks):
        h = relu(block.conv(block.norm(h)))
        if block.pool:
            h = max_pool2d(h, 2)
        if training.update == "overlapping" and (i + step) % 2 == 0:
            continue
        goodness = h.pow(2).mean((1, 2, 3))
        positive, negative = goodness[: len(x)], goodness[len(x) :]
        if training.loss == "symba":
            loss = softplus(-training.alpha * (positive - negative)).mean()
        else:
            loss = torch.cat([softplus(training.threshold - positive), softplus(negative - training.threshold)]).mean()
        adams[i].zero_grad()
        loss.backward()
        adams[i].step()
        h = h.detach()
