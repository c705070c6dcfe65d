"""Wrong labels that are hard to tell from the true one, at no extra forward pass.

Not the authors' method, which draws them uniformly (`training.hardness: 0`): the wrong label of a step is drawn with
probability proportional to exp(hardness x margin), where the margin of an image and a label is g- - g+ as it was when
that pair was last trained on, or, before that, the running mean over images of the same class. A quarter stays
uniform, so that every pair is seen now and then.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

UNIFORM = 0.25  # share of wrong labels that stay uniform
KEEP = 0.9  # what a class's running mean keeps at each step


class Memory(NamedTuple):
    """Margins g- - g+ so far. Changed in place; part of the checkpoint."""

    images: Tensor  # (N, classes) float32; NaN for a pair that was never trained on
    classes: Tensor  # (classes, classes) float32, by true and wrong label


def memory(images: int, classes: int, device: torch.device) -> Memory:
    return Memory(torch.full((images, classes), torch.nan, device=device), torch.zeros(classes, classes, device=device))


def choose(memory: Memory, hardness: float, rows: Tensor, labels: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
    """A wrong label for each image of a batch: (B,) int64, never the true one.

    rows: (B,) places in the memory; labels, uniform: (B,) true and uniformly drawn wrong labels; noise: (B, classes +
    1) in [0, 1), the epoch's draws, so that the choice needs no generator.
    """
    known = memory.images[rows]
    margin = torch.where(known.isnan(), memory.classes[labels], known)
    gumbel = -torch.log(-torch.log(noise[:, 1:].clamp(1e-12, 1 - 1e-6)))  # arg max of score + Gumbel noise is a draw
    score = (hardness * margin + gumbel).masked_fill(one_hot(labels, margin.shape[1]).bool(), -torch.inf)
    return torch.where(noise[:, 0] < UNIFORM, uniform, score.argmax(1))


def remember(memory: Memory, rows: Tensor, labels: Tensor, wrong: Tensor, margin: Tensor) -> None:
    """Take note of a batch's margins (B,)."""
    classes = memory.classes.shape[0]
    memory.images[rows, wrong] = margin
    true, false = one_hot(labels, classes).float(), one_hot(wrong, classes).float()
    count = true.T @ false
    mean = true.T @ (false * margin.unsqueeze(1)) / count.clamp(min=1)
    memory.classes.copy_(torch.where(count > 0, KEEP * memory.classes + (1 - KEEP) * mean, memory.classes))
