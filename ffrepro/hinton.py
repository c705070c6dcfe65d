"""The original Forward-Forward network (Hinton 2022, arXiv 2212.13345, section 3.3), which the Trifecta improves on.

Fully connected layers of ReLUs; the label stands in the first pixels of the image; between layers an activation is
divided by its length, so that a layer cannot read the goodness of the one below off it. Each layer has its own loss.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu

from ffrepro.network import Network, Unit, initialise
from ffrepro.randomness import generator


class Layer(Unit):
    """Length normalisation where the input is another layer's output, a linear map with bias, ReLU."""

    def __init__(self, units_in: int, units_out: int, *, normalises: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(units_in, units_out)
        self.normalises = normalises

    def forward(self, x: Tensor) -> Tensor:
        """(B, units_in) -> (B, units_out). Normalised to mean square 1: a length of 1 but for a constant factor, with
        which PyTorch's initial weights keep activations of the order of 1."""
        if self.normalises:
            x = x.float() * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-8)
        return relu(self.linear(x))


class FullyConnected(Network):
    """Layers of the given units for images of `shape` (C, H, W), the label one-hot in the first `classes` pixels.

    Initial weights and biases depend on `seed` alone: U(-1/sqrt(fan in), +), PyTorch's default.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, units: list[int], seed: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.classes = classes
        widths = [channels * height * width, *units]
        layers = [Layer(a, b, normalises=i > 0) for i, (a, b) in enumerate(zip(widths, units, strict=False))]
        self.blocks: list[Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        draws = generator(seed, "initial weights")
        for layer in layers:
            initialise(layer.linear, draws)

    def overlay(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C H W), the first pixels 0 but for a 1 at the label."""
        flat = images.flatten(1)
        return torch.cat([one_hot(labels, self.classes).to(flat.dtype), flat[:, self.classes :]], 1)
