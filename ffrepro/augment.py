"""Flip, zero-padded random crop and rotation as one integer gather on uint8 images.

Bit for bit what torchvision does on PIL images (`hflip`, `pad` + `crop`, `rotate` with nearest neighbour), which
`tests/test_augment.py` checks; but the data set stays on the device as uint8 and a batch costs one gather.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Geometry(NamedTuple):
    """The geometric draws of an epoch, one row a sample; `rows` picks a batch's, `to` moves them to the device."""

    shift: Tensor  # (N, 2) int32: the crop's offset dx, dy in -crop .. crop
    affine: Tensor  # (N, 6) int32: PIL's inverse rotation in 16.16 fixed point
    flip: Tensor  # (N,) bool: mirror left and right, before the crop

    def rows(self, rows: Tensor | slice) -> "Geometry":
        return Geometry(self.shift[rows], self.affine[rows], self.flip[rows])

    def to(self, device: torch.device) -> "Geometry":
        return Geometry(self.shift.to(device), self.affine.to(device), self.flip.to(device))


def draw(n: int, size: tuple[int, int], crop: int, rotation: float, flip: bool, generator: Generator) -> Geometry:
    """Draw the geometry of `n` samples of `size` (height, width) pixels.

    crop: pixels of padding on each side; rotation: largest angle in degrees, to either side.
    """
    shift = torch.randint(-crop, crop + 1, (n, 2), generator=generator, dtype=torch.int32)
    angle = (torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1) * rotation
    mirrored = torch.rand(n, generator=generator) < (0.5 if flip else 0.0)
    return Geometry(shift, rotation_matrices(angle, size), mirrored)


def rotation_matrices(degrees: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's inverse affine maps of a counter-clockwise rotation about the centre, as 16.16 fixed point.

    degrees: (N,) float64. Returns (N, 6) int32: (xx, xy, x0, yx, yy, y0), so that output pixel (x, y) comes from
    source pixel ((x0 + xx x + xy y) >> 16, (y0 + yx x + yy y) >> 16).
    """
    height, width = size
    radians = -torch.deg2rad(degrees % 360)
    cos = torch.round(torch.cos(radians), decimals=15)
    sin = torch.round(torch.sin(radians), decimals=15)
    cx, cy = width / 2, height / 2
    x0 = -cos * cx - sin * cy + cx + cos / 2 + sin / 2
    y0 = sin * cx - cos * cy + cy - sin / 2 + cos / 2
    return torch.stack([_fixed(v) for v in (cos, sin, x0, -sin, cos, y0)], 1)


def _fixed(value: Tensor) -> Tensor:
    return torch.floor(value * 65536 + 0.5).int()


def apply(images: Tensor, geometry: Geometry) -> Tensor:
    """Flip, crop and rotate each image by its own geometry; what comes from outside an image is black.

    images: (B, C, H, W) uint8. Returns the same shape and type.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=torch.int32).view(1, 1, -1)
    y = torch.arange(height, device=images.device, dtype=torch.int32).view(1, -1, 1)
    xx, xy, x0, yx, yy, y0 = (column.view(-1, 1, 1) for column in geometry.affine.unbind(1))
    dx, dy = (column.view(-1, 1, 1) for column in geometry.shift.unbind(1))
    sx, sy = (x0 + xx * x + xy * y) >> 16, (y0 + yx * x + yy * y) >> 16  # pixel of the cropped image
    px, py = sx + dx, sy + dy  # pixel of the original
    inside = _within(sx, width) & _within(sy, height) & _within(px, width) & _within(py, height)
    px = torch.where(geometry.flip.view(-1, 1, 1), width - 1 - px, px)
    source = (py.clamp(0, height - 1) * width + px.clamp(0, width - 1)).long().flatten(1).unsqueeze(1)
    pixels = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1)).view_as(images)
    return pixels * inside.unsqueeze(1)


def _within(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 in 0 .. 255 to float32 with the data set's mean and standard deviation taken out.

    images: (B, C, H, W) uint8; mean, std: (C,) of pixels scaled to [0, 1].
    """
    return (images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
