"""The label embedding, `Block` and `Network`. Nothing here trains.

12 blocks on CIFAR-10 have 8,496,520 parameters, the ablation's 6 blocks 2,818,568, embedding included.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from ffrepro.randomness import generator, normal, uniform

Norm = Literal["batch", "layer"]


class Block(nn.Module):
    """Norm, 3x3 convolution without bias, ReLU, and 2x2 max pooling where marked: the unit that has a loss.

    The norm stands before the convolution, so a block cannot read goodness off the length of its input
    (the Trifecta's first technique). `norm: layer` is the ablation's, over (C, H, W), affine.
    """

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], *, pool: bool, norm: Norm) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in) if norm == "batch" else nn.LayerNorm([channels_in, *size])
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H, W), or half of H and W where the block pools."""
        x = self.conv(self.norm(x))
        return relu(max_pool2d(x, 2) if self.pool else x)  # ReLU and max commute, and this order is cheaper


class Network(nn.Module):
    """A learned plane per label, concatenated to the image as one more channel, and a chain of blocks.

    blocks: (channels out, whether it pools) of each. shape: (C, H, W) of an image. Initial weights depend on `seed`
    alone and are the same on every machine: convolutions U(-1/sqrt(fan in), +), PyTorch's default for this layer;
    embedding N(0, 1), one draw a pixel as in the authors' code, or one for each square patch of `label_patch` pixels'
    side: 3x3 convolutions can read the label off any place of a smooth plane, and deeper blocks gain by it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        blocks: list[tuple[int, bool]],
        norm: Norm,
        seed: int,
        label_patch: int = 1,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.embedding = nn.Embedding(classes, height * width)
        self.blocks = nn.ModuleList()
        channels += 1
        for channels_out, pool in blocks:
            self.blocks.append(Block(channels, channels_out, (height, width), pool=pool, norm=norm))
            channels = channels_out
            if pool:
                height, width = height // 2, width // 2
        self._initialise(seed, shape, label_patch)

    @torch.no_grad()
    def _initialise(self, seed: int, shape: tuple[int, int, int], patch: int) -> None:
        draws = generator(seed, "initial weights")
        planes = normal((self.embedding.num_embeddings, shape[1] // patch, shape[2] // patch), draws)
        planes = planes.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        self.embedding.weight.copy_(planes.flatten(1))
        for block in self.blocks:
            weight = block.get_submodule("conv").get_parameter("weight")
            fan_in = math.prod(weight.shape[1:])
            weight.copy_(uniform(tuple(weight.shape), 1 / math.sqrt(fan_in), draws))

    def overlay(self, images: Tensor, labels: Tensor) -> Tensor:
        """Lay each label's plane beside its image: (B, C, H, W), (B,) -> (B, C + 1, H, W), channels last."""
        planes = self.embedding(labels).view(-1, 1, *images.shape[2:])
        return torch.cat([images, planes], 1).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The activations of every block, first to last, for normalised images under the given labels."""
        activations = [self.overlay(images, labels)]
        for block in self.blocks:
            activations.append(block(activations[-1]))
        return activations[1:]
