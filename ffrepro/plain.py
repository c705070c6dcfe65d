"""The authors' loop, plain and literal: what the fast one must equal, and what it is measured against.

One Adam per block, one loss, backward and update after the other; worker processes that augment PIL images; evaluation
by ten passes. Written from the description of the algorithm (docs/algorithm.md), and slow on purpose. The tests compare
`step` bit for bit with `step.py`'s, in float32, on a network with channels last and with fused Adams, since in another
layout the same sums are added in another order; `ffrepro bench` runs it as it would be written at first, in PyTorch's
default layout.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu, softplus
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ffrepro.config import Experiment, Training
from ffrepro.data import DATASETS, Split
from ffrepro.network import Block, Convolutional


def optimizers(network: Convolutional, training: Training, *, fused: bool = False) -> list[Adam]:
    """Block i's Adam holds the parameters of block i and of the block below; block 0's holds the embedding."""
    below: nn.Module = network.embedding
    adams = []
    for block in network.blocks:
        adams.append(Adam([*block.parameters(), *below.parameters()], lr=training.lr, fused=fused))
        below = block
    return adams


def overlay(network: Convolutional, x: Tensor, labels: Tensor) -> Tensor:
    planes = network.embedding(labels).view(-1, 1, *x.shape[2:])
    return torch.cat([x, planes], 1)


def forward(block: Block, h: Tensor) -> Tensor:
    h = relu(block.conv(block.norm(h)))
    return max_pool2d(h, 2) if block.pool else h


def step(
    network: Convolutional,
    adams: list[Adam],
    x: Tensor,
    y: Tensor,
    wrong: Tensor,
    step: int,
    training: Training,
) -> None:
    """One training step. x: (B, C, H, W) normalised; y, wrong: (B,) labels; step: index of the batch in its epoch."""
    h = overlay(network, torch.cat([x, x]), torch.cat([y, wrong]))
    for i, block in enumerate(network.blocks):
        h = forward(block, h)
        if training.update == "overlapping" and (i + step) % 2 == 0:
            continue
        goodness = h.float().pow(2).mean((1, 2, 3))
        positive, negative = goodness[: len(x)], goodness[len(x) :]
        if training.loss == "symba":
            loss = softplus(-training.alpha * (positive - negative)).mean()
        else:
            slope, threshold = training.slope, training.threshold
            loss = torch.cat(
                [softplus(slope * (threshold - positive)), softplus(slope * (negative - threshold))]
            ).mean()
        adams[i].zero_grad()
        torch.autograd.backward(loss)
        adams[i].step()
        h = h.detach()


class PILImages(Dataset[tuple[Tensor, int]]):
    """A split as a worker process sees it: one PIL image at a time, augmented by torchvision."""

    def __init__(self, data: Split, experiment: Experiment) -> None:
        source, chosen = DATASETS[experiment.data.name], experiment.augmentation
        self.data = data
        self.transform = v2.Compose(
            [
                v2.ToPILImage(),
                v2.RandomHorizontalFlip(0.5 if chosen.flip else 0.0),
                v2.RandomCrop(experiment.shape[1:], padding=chosen.crop),
                v2.RandomRotation(chosen.rotation),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(source.mean, source.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.data.images[i]), int(self.data.labels[i])


def batches(data: Split, experiment: Experiment, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, epoch after epoch, from worker processes, to be moved to the device."""
    loader = DataLoader(
        PILImages(data, experiment),
        experiment.training.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        yield from loader


@torch.no_grad()
def evaluate(network: Convolutional, images: Tensor, experiment: Experiment) -> Tensor:
    """Goodness of every image under every label at every block, by one pass of the whole network per label.

    images: (N, C, H, W) normalised, one batch. Returns (N, classes, blocks). In eval mode, as the caller set it.
    """
    table = []
    for label in range(experiment.classes):
        h = overlay(network, images, torch.full((len(images),), label, device=images.device))
        goodness = []
        for block in network.blocks:
            h = forward(block, h)
            goodness.append(h.float().pow(2).mean((1, 2, 3)))
        table.append(torch.stack(goodness, 1))
    return torch.stack(table, 1)
