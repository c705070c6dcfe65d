"""Which blocks learn when, and the step: one forward, one backward, one Adam.

And yet bit for bit the authors' loop with its Adam per block (`plain.py`; float32, CPU). It holds because the windows
that learn in one step share no parameter, no block's update reaches what the next block has read, and Adam acts on
each tensor by itself; only a tensor's two roles, upper and lower block of its window, need a state each: they
alternate with the step's parity, hence the two Adams.
"""

import math

import torch
from torch import Tensor
from torch.optim import Adam

from ffrepro.config import Training
from ffrepro.goodness import goodness, symba_loss, threshold_loss
from ffrepro.network import Network


def has_loss(block: int, step: int, update: str) -> bool:
    """Whether a block has a local loss, and passes on a detached output, in this step of the epoch.

    Overlapping: even steps train the windows (0, 1) (2, 3) ..., odd steps (0) (1, 2) (3, 4) ...; a window's only loss
    is that of its last block, and a block that is left over at the end does not learn. Layer-wise: every block,
    always.
    """
    return update == "layer-wise" or (block + step) % 2 == 1


def learners(step: int, update: str) -> slice:
    """The blocks that have a loss in this step, as a slice of all blocks. Backprop's one loss is the last block's."""
    if update == "overlapping":
        return slice((step + 1) % 2, None, 2)
    return slice(None) if update == "layer-wise" else slice(-1, None)


def optimizers(network: Network, training: Training) -> list[Adam]:
    """The Adams of even and odd steps of overlapping updates, else one Adam. A tensor without gradient keeps its state.

    On CUDA a rate that changes lies on the device, for a captured step to read; a constant one needs no such place.
    """
    blocks, everything = [value for block in network.blocks for value in block.parameters()], list(network.parameters())
    groups = [blocks, everything] if training.update == "overlapping" else [everything]
    device = everything[0].device
    adams = [Adam(group, lr=training.lr, fused=True, capturable=device.type == "cuda") for group in groups]
    if device.type == "cuda" and training.schedule != "constant":
        for adam in adams:
            adam.param_groups[0]["lr"] = torch.tensor(training.lr, device=device)
    return adams


def learning_rate(training: Training, progress: float) -> float:
    """The rate at `progress` in [0, 1), the share of all steps that are done."""
    if training.schedule == "linear":
        return training.lr * (1 - progress)
    if training.schedule == "cosine":
        return training.lr * (1 + math.cos(math.pi * progress)) / 2
    return training.lr


def set_learning_rate(adam: Adam, rate: float) -> None:
    """Without waiting for the device."""
    group = adam.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def local_losses(
    network: Network, images: Tensor, labels: Tensor, wrong: Tensor, step: int, training: Training
) -> tuple[Tensor, Tensor]:
    """One forward of [images; images] under [labels; wrong]: (losses, separations) of the blocks that learn.

    images: (B, C, H, W) normalised; labels, wrong: (B,). Returns (L,) and (L, B), first block first.
    """
    h = network.overlay(torch.cat([images, images]), torch.cat([labels, wrong]))
    if not has_loss(0, step, training.update):
        h = h.detach()  # the first window spans two blocks: the authors' optimizer for it does not hold the embedding
    losses, separations = [], []
    for i, block in enumerate(network.blocks):
        learns = has_loss(i, step, training.update)
        if i == len(network.blocks) - 1 and not learns:
            block.observe(h)  # nobody reads its output: the convolution is spared
            break
        h = block(h)
        if learns:
            positive, negative = goodness(h).chunk(2)
            if training.loss == "symba":
                losses.append(symba_loss(positive, negative, training.alpha))
            else:
                losses.append(threshold_loss(positive, negative, training.threshold, training.slope))
            separations.append((positive - negative).detach())
            h = h.detach()
    return torch.stack(losses), torch.stack(separations)
