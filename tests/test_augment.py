"""The one gather is torchvision on PIL images, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from ffrepro import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def torchvisions(image, dx, dy, angle, flip, crop):
    """The same with PIL, step by step. image: (C, H, W) uint8; dx, dy: the crop's offset from the image's own
    corner."""
    channels, height, width = image.shape
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    if flip:
        picture = tv.hflip(picture)
    picture = tv.crop(tv.pad(picture, [crop]), dy + crop, dx + crop, height, width)
    picture = tv.rotate(picture, angle)  # nearest neighbour, black corners
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("shape", "crop", "rotation"),
    [((3, 32, 32), 4, 15), ((1, 28, 28), 4, 15), ((1, 8, 8), 1, 180), ((3, 9, 14), 3, 90)],
)
def test_gather_equals_torchvision_bit_for_bit(shape, crop, rotation):
    n = 700
    images = torch.randint(0, 256, (n, *shape), generator=generator(), dtype=torch.uint8)
    angle = (torch.rand(n, generator=generator(1), dtype=torch.float64) * 2 - 1) * rotation
    angle[:6] = torch.tensor([0, 15, -15, 90, 180, -90], dtype=torch.float64)  # the corner cases of PIL's own rotation
    shift = torch.randint(-crop, crop + 1, (n, 2), generator=generator(2), dtype=torch.int32)
    flip = torch.rand(n, generator=generator(3)) < 0.5
    ours = augment.apply(images, augment.Geometry(shift, augment.rotation_matrices(angle, shape[1:]), flip))
    for i in range(n):
        dx, dy = shift[i].tolist()
        theirs = torchvisions(images[i], dx, dy, angle[i].item(), flip[i].item(), crop)
        assert torch.equal(ours[i], theirs), f"image {i}, angle {angle[i].item()}"


def test_draws_stay_in_their_ranges_and_reach_their_ends():
    geometry = augment.draw(20_000, (32, 32), 4, 15, True, generator())
    assert set(geometry.shift.flatten().tolist()) == set(range(-4, 5))
    sine = geometry.affine[:, 1] / 65536  # of minus the angle
    drawn = generator()
    torch.randint(-4, 5, (20_000, 2), generator=drawn, dtype=torch.int32)
    degrees = (torch.rand(20_000, generator=drawn, dtype=torch.float64) * 2 - 1) * 15
    assert torch.equal(geometry.affine, augment.rotation_matrices(degrees, (32, 32)))
    angles = torch.rad2deg(sine.double().asin())
    assert -15.001 <= angles.min() < -14.9
    assert 14.9 < angles.max() <= 15.001
    assert angles.mean() == pytest.approx(0, abs=0.3)  # five standard errors
    assert angles.std() == pytest.approx(15 / 3**0.5, rel=0.02)
    assert 0.48 < geometry.flip.float().mean() < 0.52


def test_no_augmentation_is_the_identity():
    images = torch.randint(0, 256, (50, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    assert torch.equal(augment.apply(images, augment.draw(50, (32, 32), 0, 0, False, generator())), images)


def test_draws_depend_on_the_generator_alone():
    one, same, other = (augment.draw(100, (8, 8), 2, 15, True, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.affine, other.affine)


def test_normalise_takes_mean_and_deviation_out():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    out = augment.normalise(images, torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.5]))
    assert out.flatten().tolist() == [-2.0, 1.5]
