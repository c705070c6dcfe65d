"""An epoch on a device: nothing waits within it, and CUDA's graphs are kept in order.

Without a GPU the CUDA path runs on fake tensors: PyTorch's own bookkeeping of devices, shapes and types without
values, which refuses to mix devices or to read a value back.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ffrepro import augment, negatives
from ffrepro.data import DATASETS, Split
from ffrepro.engine import Draws, Engine, Graphs, draw
from ffrepro.errors import UserError
from ffrepro.goodness import wrong_labels
from ffrepro.randomness import generator
from ffrepro.step import learners, local_losses, optimizers, set_learning_rate
from ffrepro.training import build

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def engine(row, data):
    network = build(row, 0, CPU)
    return Engine(network, optimizers(network, row.training), negatives.memory(len(data.labels), 10, CPU), data, row)


def images(n, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.arange(n) % 10)


# --- CUDA's graphs ---------------------------------------------------------------------------------------------------


class Tape:
    """Steps that say when they run, and a capture that records them like CUDA: it computes nothing."""

    def __init__(self, fails_at=()):
        self.ran, self.lines, self.captured, self.fails_at = [], [], [], fails_at

    def graphs(self, parities=2):
        return Graphs([lambda p=p: self.ran.append(p) for p in range(parities)], self.capture, self.lines.append)

    def capture(self, step):
        before = len(self.ran)
        step()
        (parity,) = self.ran[before:]
        del self.ran[before:]
        if parity in self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.captured.append(parity)
        return lambda: self.ran.append(f"graph {parity}")


def test_a_step_runs_once_is_captured_once_and_replayed_from_then_on():
    tape = Tape()
    run = tape.graphs()
    for parity in (0, 1, 0, 1, 0, 0, 1):  # two even steps meet where an epoch ends
        run(parity)
    assert tape.ran == [0, 1, "graph 0", "graph 1", "graph 0", "graph 0", "graph 1"]
    assert tape.captured == [0, 1]
    assert tape.lines == []


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_capture_that_fails_gives_one_notice_and_every_step_still_runs_once(fails_at):
    tape = Tape({fails_at})
    run = tape.graphs()
    for parity in (0, 1, 0, 1, 0, 0, 1):
        run(parity)
    assert [0 if p == "graph 0" else p for p in tape.ran] == [0, 1, 0, 1, 0, 0, 1]
    assert tape.ran[3:] == [1, 0, 0, 1]
    assert tape.lines == [
        "no CUDA graph (operation not permitted when stream is capturing): "
        "steps are launched piece by piece, to the same result, slower"
    ]


def test_a_mistake_of_the_user_is_not_taken_for_a_failed_capture():
    def capture(_):
        raise UserError("training: no number")

    run = Graphs([lambda: None], capture, lambda _: None)
    run(0)
    with pytest.raises(UserError):
        run(0)


# --- an epoch --------------------------------------------------------------------------------------------------------


def test_draws_of_a_later_epoch_lie_in_the_same_memory(row):
    chosen = row(hardness=1)
    first, second = draw(chosen, 0, 0, 50), draw(chosen, 0, 1, 50)
    place = first.order.data_ptr()
    first.copy_(second)
    assert first.order.data_ptr() == place
    for mine, its in zip((*first[:3], *first.geometry), (*second[:3], *second.geometry), strict=True):
        assert torch.equal(mine, its)


def test_draws_are_keyed_by_seed_and_epoch(row):
    a, b, c = draw(row(), 0, 0, 50), draw(row(), 0, 1, 50), draw(row(), 1, 0, 50)
    assert torch.equal(a.order, draw(row(), 0, 0, 50).order)
    assert not torch.equal(a.order, b.order)
    assert not torch.equal(a.wrong, c.wrong)
    assert not torch.equal(a.geometry.affine, c.geometry.affine)


@pytest.mark.parametrize("hardness", [0, 2])
def test_draws_by_hand(row, hardness):
    """One generator a purpose, by its name: another name is another stream, and other runs on every machine."""
    chosen = row(hardness=hardness, flip=True, crop=3, rotation=20)
    drawn = draw(chosen, 5, 2, 40)
    assert torch.equal(drawn.order, torch.randperm(40, generator=generator(5, "order", 2)))
    assert torch.equal(drawn.wrong, torch.randint(1, 10, (40,), generator=generator(5, "wrong labels", 2)))
    noise = torch.rand(40, 11 if hardness else 0, generator=generator(5, "hard labels", 2))
    assert torch.equal(drawn.noise, noise)
    geometry = augment.draw(40, (8, 8), 3, 20, True, generator(5, "augmentation", 2))
    assert all(torch.equal(mine, its) for mine, its in zip(drawn.geometry, geometry, strict=True))
    assert drawn.geometry.flip.any()


def test_rows_of_draws_are_those_of_each_part():
    n = 6
    geometry = augment.draw(n, (8, 8), 2, 10.0, True, torch.Generator())
    draws = Draws(torch.arange(n), torch.arange(n), torch.rand(n, 11), geometry)
    part = draws.rows(torch.tensor([4, 5]))
    assert part.order.tolist() == [4, 5]
    assert torch.equal(part.geometry.flip, geometry.flip[4:])
    assert part.noise.shape == (2, 11)


@pytest.mark.parametrize(("after", "step", "block"), [(0, 2, 1), (1, 3, 2)])
def test_a_loss_that_is_no_number_stops_with_its_block_and_step(row, digits, after, step, block):
    trained = engine(row(epochs=1, blocks="4 4P", batch=20), digits[0][torch.arange(200)])

    @torch.no_grad()
    def spoil(done):
        if done == after:
            trained.network.blocks[0].conv.weight.fill_(float("nan"))

    with pytest.raises(UserError, match=rf"block {block} is no number in step {step} of epoch 3; .*training\.lr"):
        trained.epoch(0, 2, spoil)


def test_progress_gets_every_whole_batch(row):
    steps = []
    engine(row(blocks="4 4P", batch=8), images(30)).epoch(0, 0, steps.append)
    assert steps == [0, 1, 2]


def test_a_block_without_a_loss_has_no_average(row):
    loss, separation = engine(row(blocks="4 4 4 4", batch=30), images(30)).epoch(0, 0)  # one step: an even one
    assert loss.isnan().tolist() == separation.isnan().tolist() == [True, False, True, False]


def test_an_epochs_averages_are_over_the_steps_in_which_a_block_has_a_loss(row):
    chosen, data, source = row(blocks="4 8P 8", batch=10, lr=1e-9), images(50), DATASETS["digits"]
    loss, separation = engine(chosen, data).epoch(0, 0)
    network, draws = build(chosen, 0, CPU), draw(chosen, 0, 0, 50)
    found = [[], [], []]
    for step, rows in enumerate(torch.arange(50).split(10)):
        x, y = data[draws.order[rows]]
        x = augment.apply(x, draws.geometry.rows(rows))
        x = augment.normalise(x, torch.tensor(source.mean), torch.tensor(source.std))
        made = local_losses(network, x, y, wrong_labels(y, draws.wrong[rows], 10), step, chosen.training)
        for block, *both in zip(found[learners(step, "overlapping")], *made, strict=True):
            block.append([one.mean().item() for one in both])
    assert [len(block) for block in found] == [2, 3, 2]
    expected = [torch.tensor(block).mean(0) for block in found]
    torch.testing.assert_close(torch.stack([loss, separation], 1), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_the_memory_of_hard_labels_holds_by_how_much_the_wrong_one_leads(row):
    trained = engine(row(blocks="4 8P 8", batch=50, update="layer-wise", hardness=2.0), images(50))
    _, separation = trained.epoch(0, 0)  # one step: each image under one wrong label
    held = trained.memory.images
    assert held.isfinite().sum(1).tolist() == [1] * 50
    assert held.nanmean().item() == pytest.approx(-separation[-1].item(), rel=1e-4)


def test_the_rate_follows_its_schedule_within_an_epoch(row):
    chosen = row(blocks="4 4P", batch=10, epochs=4, schedule="linear", lr=0.008)
    trained = engine(chosen, images(50))
    rates = []
    trained.epoch(0, 1, lambda step: rates.append(trained.adams[step % 2].param_groups[0]["lr"]))
    assert rates == pytest.approx([0.008 * (1 - (1 + step / 5) / 4) for step in range(5)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("hardness", [0, 2])
def test_no_step_reads_memory_that_nobody_wrote(row, monkeypatch, precision, hardness):
    """`determinism` spares the filling of fresh memory with NaN; with it, the bits are the same."""
    chosen = row(blocks="4 8P 8 8", batch=8, precision=precision, hardness=hardness)
    results = []
    for fill in (False, True):
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fill)
        trained = engine(chosen, images(48))
        trained.epoch(0, 0)
        results.append(trained.network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))


# --- on fake CUDA tensors --------------------------------------------------------------------------------------------


def to_fake_cuda(network):
    """Put fake tensors in the places of a network's; `Module.to` cannot."""
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            fake = torch.empty_strided(value.shape, value.stride(), device=CUDA)
            module.register_parameter(name, torch.nn.Parameter(fake))
        for name, value in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(value.shape, dtype=value.dtype, device=CUDA))


def give_gradients(network, loss):
    """In place of autograd's backward, which starts a real device even for fake tensors."""
    assert loss.requires_grad
    for value in network.parameters():
        value.grad = torch.empty_like(value)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("hardness", [0, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_on_cuda_mixes_no_devices_and_reads_nothing_back(row, monkeypatch, parity, hardness, precision):
    chosen = row(blocks="4 8P 8 8", batch=8, hardness=hardness, schedule="constant", precision=precision)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)  # no stream, no graph: the step itself
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    network = build(chosen, 0, CPU)
    with FakeTensorMode():
        to_fake_cuda(network)
        memory = negatives.memory(16, 10, CUDA)
        trained = Engine(network, optimizers(network, chosen.training), memory, images(16).to(CUDA), chosen)
        trained.draws = draw(chosen, 0, 0, 16).to(CUDA)
        trained.first.fill_(8)
        monkeypatch.setattr(torch.autograd, "backward", lambda loss: give_gradients(network, loss))
        set_learning_rate(trained.adams[parity], 0.5)
        trained.run(parity)
        state = [value for part in trained.adams[parity].state.values() for value in part.values()]
        for tensor in (*trained.network.state_dict().values(), *state, trained.sums):
            assert tensor.device.type == "cuda"
    assert len(state) > 0


def test_a_rate_that_changes_lies_on_cuda_and_a_constant_one_does_not(row):
    for schedule in ("linear", "constant"):
        chosen = row(blocks="4 8P", schedule=schedule)
        network = build(chosen, 0, CPU)
        with FakeTensorMode():
            to_fake_cuda(network)
            adam = optimizers(network, chosen.training)[0]
            rate = adam.param_groups[0]["lr"]
            set_learning_rate(adam, 0.25)  # in place: a graph reads it there
            if schedule == "linear":
                assert adam.param_groups[0]["lr"] is rate
                assert rate.device.type == "cuda"
            else:
                assert adam.param_groups[0]["lr"] == 0.25


def test_the_fake_device_does_refuse_to_read_back_and_to_mix():
    with FakeTensorMode():
        there = torch.zeros(2, device=CUDA)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(RuntimeError, match="cpu"):
            there + torch.zeros(2)
