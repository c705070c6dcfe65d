"""A chain of blocks that sees an image under a label, and the Trifecta's kind of it. Nothing here trains.

12 blocks on CIFAR-10 have 8,496,520 parameters, the ablation's 6 blocks 2,818,568, embedding included.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn, relu_
from torch.nn.functional import batch_norm, conv2d, max_pool2d

from ffrepro import portable
from ffrepro.randomness import generator, normal, uniform

Norm = Literal["batch", "layer"]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The arithmetic of a row: convolutions in `precision`, everything that adds up in float32."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def emulates(x: Tensor) -> bool:
    """Whether x meets bfloat16 arithmetic on a CPU without it, where PyTorch's own way is a loop 15 times slower than
    float32. The portable profile always does, for all its CPUs to compute alike."""
    wanted = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not wanted or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return portable() or not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution with padding 1, in autocast's precision.

    Emulated: float32's of the rounded values, rounded, which is what bfloat16 units compute: of two bfloat16 numbers
    the product is exact in float32, and sums are float32's there too.
    """
    if not emulates(x):
        return conv2d(x, weight, padding=1)
    with torch.autocast("cpu", enabled=False):
        return conv2d(x.bfloat16().float(), weight.bfloat16().float(), padding=1).bfloat16()


def orthogonal(rows: Tensor) -> Tensor:
    """The rows (n, m > n) made orthogonal, one after the other (Gram-Schmidt), each of mean 0 and mean square 1.

    In Python's floats with correctly rounded sums, so that the bits are the same on every machine.
    """
    done: list[list[float]] = []
    for row in rows.double().tolist():
        mean = math.fsum(row) / len(row)
        row = [a - mean for a in row]
        for other in done:
            share = math.fsum(a * b for a, b in zip(row, other, strict=True)) / len(row)
            row = [a - share * b for a, b in zip(row, other, strict=True)]
        length = math.sqrt(math.fsum(a * a for a in row) / len(row))
        done.append([a / length for a in row])
    return torch.tensor(done, dtype=torch.float64).float()


def _added(y: Tensor, shift: Tensor) -> Tensor:
    """y + shift, (B, H, W, C) and (1, H, W, C), as a matrix product, whose backward is one too."""
    return torch.addmm(y.flatten(1), y.new_ones(len(y), 1), shift.flatten(1)).view_as(y)


class Unit(nn.Module):
    """What a network is a chain of, and what has a loss."""

    def observe(self, x: Tensor) -> None:
        """What is left of `forward` where nobody reads its output."""


class Block(Unit):
    """Norm, 3x3 convolution without bias, ReLU, and 2x2 max pooling where marked.

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
        x = self._folded(x) if self._folds(x) else convolve(self.norm(x), self.conv.weight)
        return relu_(max_pool2d(x, 2) if self.pool else x)  # ReLU and max commute, and this order is cheaper

    def _folds(self, x: Tensor) -> bool:
        kind = x.device.type
        bfloat16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        costly = self.conv.in_channels >= 16  # for the first block, the spared backward is cheaper than the addition
        return bfloat16 and costly and self.training and not x.requires_grad and isinstance(self.norm, nn.BatchNorm2d)

    def _folded(self, x: Tensor) -> Tensor:
        """conv(norm(x)) with the norm's scale s and shift b in the convolution: W * (s z + b) = Ws * z + W * b.

        Where nothing below learns, z needs no gradient, and the convolution's costly backward into its input is
        spared: a fifth of a step's arithmetic. The same function, rounded differently, and hence for bfloat16 only:
        float32 stays the literal loop's bit for bit, float16 the authors' with all that it flushes to zero.
        """
        norm, weight = self.norm, self.conv.weight
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.momentum is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        z = batch_norm(x, norm.running_mean, norm.running_var, training=True, momentum=norm.momentum, eps=norm.eps)
        y = convolve(z, weight * norm.weight.view(1, -1, 1, 1)).permute(0, 2, 3, 1)
        shift = convolve(norm.bias.view(1, -1, 1, 1).expand(1, -1, *x.shape[2:]), weight).permute(0, 2, 3, 1)
        if emulates(x):
            with torch.autocast("cpu", enabled=False):
                added = _added(y.float(), shift.float()).bfloat16()
        else:
            added = _added(y, shift)
        return added.permute(0, 3, 1, 2)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """The norm's running statistics."""
        self.norm(x)


def chain(
    shape: tuple[int, int, int], blocks: list[tuple[int, bool]], norm: Norm
) -> tuple[list[Block], tuple[int, int, int]]:
    """The blocks for an input of shape (C, H, W), one after the other, and the last one's output's shape.

    blocks: (channels out, whether it pools) of each.
    """
    channels, height, width = shape
    made = []
    for channels_out, pool in blocks:
        made.append(Block(channels, channels_out, (height, width), pool=pool, norm=norm))
        channels = channels_out
        if pool:
            height, width = height // 2, width // 2
    return made, (channels, height, width)


@torch.no_grad()
def initialise(layer: nn.Conv2d | nn.Linear, draws: torch.Generator) -> None:
    """Weights (and biases) U(-1/sqrt(fan in), +), PyTorch's default for these layers, the same on every machine."""
    limit = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
    layer.weight.copy_(uniform(tuple(layer.weight.shape), limit, draws))
    if layer.bias is not None:
        layer.bias.copy_(uniform(tuple(layer.bias.shape), limit, draws))


class Network(nn.Module):
    """A chain of blocks that sees an image under a label. How the label enters is `overlay`, each kind's own."""

    blocks: Sequence[Unit]  # a ModuleList, which does not know the type of what it holds
    classes: int

    def overlay(self, images: Tensor, labels: Tensor) -> Tensor:
        """What the first block sees of images (B, C, H, W), normalised, under labels (B,)."""
        raise NotImplementedError

    def under_every_label(self, images: Tensor) -> Tensor:
        """The first block's output for every image under every label: (N, C, H, W) -> (N x classes, ...).

        Image 0 comes first, under all labels.
        """
        labels = torch.arange(self.classes, device=images.device).repeat(len(images))
        activation: Tensor = self.blocks[0](self.overlay(images.repeat_interleave(self.classes, 0), labels))
        return activation

    def forward(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The activations of every block, first to last, for normalised images under the given labels."""
        activations = [self.overlay(images, labels)]
        for block in self.blocks:
            activations.append(block(activations[-1]))
        return activations[1:]


class Convolutional(Network):
    """The Trifecta's: a learned plane per label, concatenated to the image as one more channel, and `Block`s.

    blocks: (channels out, whether it pools) of each. shape: (C, H, W) of an image. Initial weights depend on `seed`
    alone and are the same on every machine: convolutions U(-1/sqrt(fan in), +), PyTorch's default for this layer;
    embedding N(0, 1), one draw a pixel as in the authors' code. With a `label_patch` above 1, one draw for each square
    patch of that side, and the planes made orthogonal and of mean 0: 3x3 convolutions can read the label off any place
    of a smooth plane, and deeper blocks gain by it, but of few numbers some seeds draw planes that lie close together,
    or differ mostly by a constant, which blocks learn from less.
    """

    blocks: Sequence[Block]

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
        self.classes = classes
        self.embedding = nn.Embedding(classes, height * width)
        self.blocks = nn.ModuleList(chain((channels + 1, height, width), blocks, norm)[0])  # type: ignore[assignment]
        self._initialise(seed, shape, label_patch)

    @torch.no_grad()
    def _initialise(self, seed: int, shape: tuple[int, int, int], patch: int) -> None:
        draws = generator(seed, "initial weights")
        planes = normal((self.embedding.num_embeddings, shape[1] // patch, shape[2] // patch), draws)
        if patch > 1:
            planes = orthogonal(planes.flatten(1)).view_as(planes)
        planes = planes.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        self.embedding.weight.copy_(planes.flatten(1))
        for block in self.blocks:
            initialise(block.conv, draws)

    def overlay(self, images: Tensor, labels: Tensor) -> Tensor:
        """Lay each label's plane beside its image: (B, C, H, W), (B,) -> (B, C + 1, H, W).

        Channel by channel, in which batch norm is many times faster for so few; the convolution changes over to
        channels last by itself, as its weights are.
        """
        planes = self.embedding(labels).view(-1, 1, *images.shape[2:])
        return torch.cat([images, planes], 1)

    def under_every_label(self, images: Tensor) -> Tensor:
        """The first block's output for every image under every label: (N, C, H, W) -> (N x classes, C', H', W').

        Image 0 comes first, under all labels. In eval mode batch norm acts on each channel by itself and the
        convolution is a sum over channels, so the image's part and the labels' are computed once each, in float32, and
        added.
        """
        block, n = self.blocks[0], len(images)
        norm, weight = block.norm, block.conv.weight
        if isinstance(norm, nn.LayerNorm):  # ties all channels together
            return super().under_every_label(images)
        labels = torch.arange(self.classes, device=images.device)
        kind = images.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            image = norm(self.overlay(images, labels[:1].expand(n)))[:, :-1]
            label = norm(self.overlay(images[:1].expand(len(labels), -1, -1, -1), labels))[:, -1:]
            image = conv2d(image, weight[:, :-1], padding=1).to(precision)
            label = conv2d(label, weight[:, -1:], padding=1).to(precision)
        x = (image.unsqueeze(1) + label).flatten(0, 1)
        return relu_(max_pool2d(x, 2) if block.pool else x)
