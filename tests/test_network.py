"""Shapes, parameter counts and initial weights."""

import hashlib
import subprocess
import sys

import pytest
import torch
from scipy.stats import norm
from torch.nn.functional import conv2d

from ffrepro.network import Block, Convolutional, Network, autocast, convolve, emulates, orthogonal
from ffrepro.randomness import generator, normal, uniform
from ffrepro.record import tensors_hash

SMALL = "128P 128 256P 256 256 512P"
LARGE = "64 128P 128 128 128 256P 256 256 256 512P 512 512"


def network(blocks, shape=(3, 32, 32), norm="batch", seed=0):
    return Convolutional(shape, 10, [(int(b.rstrip("P")), b.endswith("P")) for b in blocks.split()], norm, seed)


@pytest.mark.parametrize(("blocks", "expected"), [(SMALL, 2_818_568), (LARGE, 8_496_520)])
def test_parameter_counts_are_the_authors(blocks, expected):
    assert sum(p.numel() for p in network(blocks).parameters()) == expected


def test_the_cifar10_row_is_the_large_network(params):
    assert params.experiments["cifar10"].network.blocks == LARGE


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_activations_halve_where_a_block_pools(norm):
    activations = network("4 6P 6 8P", (1, 28, 28), norm)(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    assert [tuple(a.shape) for a in activations] == [(2, 4, 28, 28), (2, 6, 14, 14), (2, 6, 14, 14), (2, 8, 7, 7)]


def test_block_is_norm_convolution_relu_pool():
    block = Block(2, 3, (6, 6), pool=True, norm="batch")
    x = torch.randn(4, 2, 6, 6)
    expected = torch.max_pool2d(torch.relu(block.conv(block.norm(x))), 2)
    block.norm.reset_running_stats()
    assert torch.equal(block(x), expected)
    assert block.conv.bias is None


def test_the_label_enters_as_its_plane_and_only_there():
    net = network("4 4", (3, 8, 8))
    images = torch.rand(2, 3, 8, 8)
    overlaid = net.overlay(images, torch.tensor([3, 7]))
    assert torch.equal(overlaid[:, :3], images)
    assert torch.equal(overlaid[:, 3].flatten(1), net.embedding.weight[[3, 7]])


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_first_block_under_every_label_is_one_pass_a_label(pool, precision):
    net = network("8P 4" if pool else "8 4", (3, 8, 8)).eval()
    torch.nn.init.uniform_(net.blocks[0].norm.running_mean)
    torch.nn.init.uniform_(net.blocks[0].norm.bias)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        quick, literal = net.under_every_label(images), Network.under_every_label(net, images)
    assert quick.shape == literal.shape == (20, 8, *((4, 4) if pool else (8, 8)))
    assert quick.dtype == precision
    near = 1e-5 if precision == torch.float32 else 0.02
    torch.testing.assert_close(quick.float(), literal.float(), rtol=near, atol=near)


def test_without_a_label_patch_every_pixel_of_a_plane_is_a_draw_of_its_own():
    plane = network("4 4", (3, 8, 8)).embedding.weight
    assert len(plane.unique()) == plane.numel()
    assert torch.equal(plane, normal((10, 8, 8), generator(0, "initial weights")).flatten(1))


def test_initial_weights_depend_on_the_seed_alone():
    assert tensors_hash(network(SMALL).state_dict()) == tensors_hash(network(SMALL).state_dict())
    assert tensors_hash(network(SMALL).state_dict()) != tensors_hash(network(SMALL, seed=1).state_dict())


def test_initial_weights_are_the_same_for_every_instruction_set():
    """The same hash with AVX-512, AVX2 and neither, and the one that is written down here."""
    code = (
        "import torch; from ffrepro.network import Convolutional; from ffrepro.record import tensors_hash;"
        "print(tensors_hash(Convolutional((3, 32, 32), 10, [(64, False), (128, True)], 'batch', 0).state_dict()))"
    )
    hashes = set()
    for capability in ("default", "avx2", "avx512"):
        env = {"ATEN_CPU_CAPABILITY": capability, "PATH": ""}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        hashes.add(done.stdout.strip())
    assert hashes == {"3eae9d132c57d1c1e38ce0918e080481edc840f647304a66c77d419bfb01ccdd"}


def test_emulated_bfloat16_is_the_exact_result_of_rounded_values_rounded(monkeypatch):
    """What a bfloat16 unit promises, forward and backward; the oracle is float64, in which these sums are exact."""
    monkeypatch.setattr("ffrepro.network.emulates", lambda _: True)
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    x = torch.randn(4, 8, 10, 10, generator=draws[0])
    weight = torch.randn(6, 8, 3, 3, generator=draws[1]) / 8
    up = torch.randn(4, 6, 10, 10, generator=draws[2]).bfloat16()

    def results(convolution, inputs):
        inputs = [value.clone().requires_grad_() for value in inputs]
        made = convolution(*inputs)
        made.backward(up.to(made.dtype))
        return [made.detach(), *(value.grad for value in inputs)]

    with autocast(torch.device("cpu"), "bfloat16"):
        found = results(convolve, [x, weight])
    exact = results(lambda a, b: conv2d(a, b, padding=1), [value.bfloat16().double() for value in (x, weight)])
    assert [value.dtype for value in found] == [torch.bfloat16, torch.float32, torch.float32]
    for mine, true in zip(found, exact, strict=True):
        rounded = true.bfloat16()
        assert (mine.bfloat16() == rounded).double().mean() > 0.995  # float32's sums turn few roundings over
        torch.testing.assert_close(mine.double(), true, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_label_patches_start_constant_and_the_planes_orthogonal_and_of_mean_0(seed):
    planes = Convolutional((3, 16, 12), 10, [(4, False)], "batch", seed, label_patch=4).embedding.weight.view(
        10, 4, 4, 3, 4
    )
    assert (planes == planes[:, :, :1, :, :1]).all()
    patches = planes[:, :, 0, :, 0].flatten(1).double()
    torch.testing.assert_close(patches @ patches.T / 12, torch.eye(10, dtype=torch.float64), atol=1e-6, rtol=0)
    assert patches.mean(1).abs().max() < 1e-6


def test_rows_are_made_orthogonal_by_hand():
    # less their means: (1, -1, 0) and (1, 0, -1); of the second, (1, 1, -2) / 2 is at a right angle to the first
    made = orthogonal(torch.tensor([[5.0, 3.0, 4.0], [2.0, 1.0, 0.0]]))
    torch.testing.assert_close(made, torch.tensor([[1.5**0.5, -(1.5**0.5), 0], [0.5**0.5, 0.5**0.5, -(2**0.5)]]))


def test_initial_weights_have_pytorchs_distributions():
    weights = uniform((64, 128, 3, 3), 1 / (128 * 9) ** 0.5, generator(0, "test"))
    assert weights.abs().max() <= 1 / (128 * 9) ** 0.5
    assert weights.std() == pytest.approx((1 / (128 * 9) ** 0.5) / 3**0.5, rel=0.01)
    plane = normal((10, 10_000), generator(0, "test"))
    drawn = torch.rand((10, 10_000), generator=generator(0, "test"), dtype=torch.float64)
    assert plane.numpy() == pytest.approx(norm.ppf(drawn.numpy() + 2.0**-54), rel=1e-6, abs=1e-9)
    assert plane.mean() == pytest.approx(0, abs=0.01)
    assert plane.std() == pytest.approx(1, rel=0.01)
    assert ((plane.abs() < 1.959964).double().mean()) == pytest.approx(0.95, abs=0.005)


def test_generators_are_keyed_by_seed_purpose_and_epoch():
    def draws(*key):
        return hashlib.sha256(torch.rand(8, generator=generator(*key)).numpy().tobytes()).hexdigest()

    keys = [(0, "order", 0), (1, "order", 0), (0, "order", 1), (0, "wrong labels", 0)]
    assert len({draws(*key) for key in keys}) == len(keys)
    assert draws(0, "order", 0) == draws(0, "order", 0) == draws(0, "order")


@pytest.mark.parametrize("pool", [False, True])
def test_folded_norm_is_the_same_function_with_the_same_gradients(pool):
    """In float32 arithmetic: scale and shift taken into the convolution change nothing but the rounding."""
    torch.manual_seed(0)
    blocks = [Block(16, 8, (6, 6), pool=pool, norm="batch") for _ in range(2)]
    with torch.no_grad():
        blocks[0].norm.weight.uniform_(-1, 2)
        blocks[0].norm.bias.uniform_(-1, 1)
    blocks[1].load_state_dict(blocks[0].state_dict())
    x = torch.randn(5, 16, 6, 6)
    expected, folded = blocks[0].conv(blocks[0].norm(x)), blocks[1]._folded(x)
    torch.testing.assert_close(folded, expected)
    weight = torch.randn_like(expected)
    for y in (expected, folded):
        (y * weight).sum().backward()
    for a, b in zip(blocks[0].parameters(), blocks[1].parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
    for a, b in zip(blocks[0].buffers(), blocks[1].buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("precision", "channels", "norm", "learns_below", "folds"),
    [
        ("bfloat16", 16, "batch", False, True),
        ("bfloat16", 16, "batch", True, False),
        ("bfloat16", 4, "batch", False, False),
        ("bfloat16", 16, "layer", False, False),
        ("float16", 16, "batch", False, False),
        ("float32", 16, "batch", False, False),
    ],
)
def test_norm_is_folded_in_bfloat16_where_nothing_below_learns(precision, channels, norm, learns_below, folds):
    torch.manual_seed(0)
    block = Block(channels, 8, (4, 4), pool=False, norm=norm)
    for value in block.norm.parameters():
        torch.nn.init.uniform_(value, -1, 2)
    with autocast(torch.device("cpu"), precision):
        assert block._folds(torch.randn(2, channels, 4, 4, requires_grad=learns_below)) is folds
        x = torch.randn(2, channels, 4, 4, requires_grad=learns_below)
        way = block._folded(x) if folds else convolve(block.norm(x), block.conv.weight)
        assert torch.equal(block(x), way.relu())
        block.eval()
        assert not block._folds(torch.randn(2, channels, 4, 4))


@pytest.mark.parametrize("portable", [False, True])
def test_bfloat16_is_emulated_where_the_cpu_has_none_and_in_the_portable_profile(monkeypatch, portable):
    monkeypatch.setenv("FFREPRO_PORTABLE", "1" if portable else "")
    x = torch.ones(1)
    assert not emulates(x)
    for precision, wanted in ((torch.float16, False), (torch.bfloat16, True)):
        with torch.autocast("cpu", dtype=precision):
            lacks = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
            assert emulates(x) is (wanted and (portable or lacks))
            assert not emulates(x.to("meta"))
