"""Which blocks learn when, the step, the epoch loop, checkpoint and resume.

One forward, one backward, one Adam a step, and yet bit for bit the authors' loop with its Adam per block
(`tests/oracle.py`; float32). It holds because the windows that learn in one step share no parameter, no block's
update reaches what the next block has read, and Adam acts on each tensor by itself; only a tensor's two roles, upper
and lower block of its window, need a state each: they alternate with the step's parity, hence the two Adams.
"""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Adam

from ffrepro import __version__, augment, negatives, record
from ffrepro.config import Experiment, Training, training_parameters
from ffrepro.data import DATASETS, Split
from ffrepro.errors import UserError
from ffrepro.evaluation import autocast, block_accuracies, goodness_table
from ffrepro.goodness import goodness, symba_loss, threshold_loss, wrong_labels
from ffrepro.network import Network
from ffrepro.randomness import generator

# --- one step --------------------------------------------------------------------------------------------------------


def has_loss(block: int, step: int, update: str) -> bool:
    """Whether a block has a loss, and passes on a detached output, in this step of the epoch.

    Overlapping: even steps train the windows (0, 1) (2, 3) ..., odd steps (0) (1, 2) (3, 4) ...; a window's only loss
    is that of its last block, and a block that is left over at the end does not learn. Layer-wise: every block,
    always.
    """
    return update == "layer-wise" or (block + step) % 2 == 1


def optimizers(network: Network, training: Training) -> list[Adam]:
    """The Adams of even and odd steps, or the one Adam of layer-wise updates. A tensor without gradient keeps its
    state."""
    blocks, everything = list(network.blocks.parameters()), list(network.parameters())
    groups = [everything] if training.update == "layer-wise" else [blocks, everything]
    return [Adam(group, lr=training.lr, fused=True) for group in groups]


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
        h = block(h)
        if has_loss(i, step, training.update):
            positive, negative = goodness(h).chunk(2)
            if training.loss == "symba":
                losses.append(symba_loss(positive, negative, training.alpha))
            else:
                losses.append(threshold_loss(positive, negative, training.threshold))
            separations.append((positive - negative).detach())
            h = h.detach()
    return torch.stack(losses), torch.stack(separations)


def learning_rate(training: Training, progress: float) -> float:
    """The rate at `progress` in [0, 1), the share of all steps that are done."""
    if training.schedule == "linear":
        return training.lr * (1 - progress)
    if training.schedule == "cosine":
        return training.lr * (1 + math.cos(math.pi * progress)) / 2
    return training.lr


# --- an epoch --------------------------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """All that is random in an epoch, drawn on the CPU, the same on every machine (about 1.5 MB for CIFAR-10)."""

    order: Tensor  # (N,) int64
    wrong: Tensor  # (N,) int64, how many places further round the wrong label lies
    noise: Tensor  # (N, classes + 1) float32 for the choice of hard wrong labels; (N, 0) where they are uniform
    geometry: augment.Geometry

    def to(self, device: torch.device) -> Self:
        return self._replace(
            order=self.order.to(device),
            wrong=self.wrong.to(device),
            noise=self.noise.to(device),
            geometry=self.geometry.to(device),
        )


def draw(experiment: Experiment, seed: int, epoch: int, n: int) -> Draws:
    """The draws of one epoch over `n` images: a generator for each purpose, keyed by seed and epoch."""
    chosen = experiment.augmentation
    size = experiment.shape[1:]
    return Draws(
        order=torch.randperm(n, generator=generator(seed, "order", epoch)),
        wrong=torch.randint(1, experiment.classes, (n,), generator=generator(seed, "wrong labels", epoch)),
        noise=torch.rand(
            n,
            experiment.classes + 1 if experiment.training.hardness else 0,
            generator=generator(seed, "hard labels", epoch),
        ),
        geometry=augment.draw(
            n, size, chosen.crop, chosen.rotation, chosen.flip, generator(seed, "augmentation", epoch)
        ),
    )


def train_epoch(
    network: Network,
    adams: list[Adam],
    memory: negatives.Memory,
    data: Split,
    experiment: Experiment,
    seed: int,
    epoch: int,
    progress: Callable[[int, Tensor], None] = lambda *_: None,
) -> tuple[Tensor, Tensor]:
    """Train one epoch in place. Returns (loss, separation) of each block, averaged over the steps in which it has a
    loss.

    data: uint8 images and labels on the network's device, all of which stay there. Nothing is read back within
    the epoch; `progress` gets the step and the losses as a tensor, to read now and then. Returns (blocks,) twice; NaN
    for a block that had no loss at all (the last one, where an epoch has one step). Raises UserError when a loss is
    no number.
    """
    training, source = experiment.training, DATASETS[experiment.data.name]
    device, n = data.images.device, len(data.labels)
    mean, std = (torch.tensor(value, device=device) for value in (source.mean, source.std))
    draws = draw(experiment, seed, epoch, n).to(device)
    steps, blocks = n // training.batch, len(network.blocks)
    sums, counts = torch.zeros(2, blocks, device=device), torch.zeros(blocks)
    for step in range(steps):
        rows = slice(step * training.batch, (step + 1) * training.batch)
        chosen = draws.order[rows]
        images, labels = data[chosen]
        images = augment.normalise(augment.apply(images, draws.geometry.rows(rows)), mean, std)
        wrong = wrong_labels(labels, draws.wrong[rows], experiment.classes)
        if training.hardness:
            wrong = negatives.choose(memory, training.hardness, chosen, labels, wrong, draws.noise[rows])
        adam = adams[step % len(adams)]
        adam.param_groups[0]["lr"] = learning_rate(training, (epoch + step / steps) / training.epochs)
        adam.zero_grad()
        with autocast(device, training.precision):
            losses, separations = local_losses(network, images, labels, wrong, step, training)
        torch.autograd.backward(losses.sum())
        adam.step()
        learned = [i for i in range(blocks) if has_loss(i, step, training.update)]
        sums[:, learned] += torch.stack([losses.detach(), separations.mean(1)])
        if training.hardness:
            negatives.remember(memory, chosen, labels, wrong, -separations[-1])
        counts[learned] += 1
        progress(step, losses.detach())
    loss, separation = (sums.cpu() / counts).unbind()
    for i in range(blocks):
        if counts[i] and not loss[i].isfinite():
            raise UserError(
                f"training: the loss of block {i + 1} is no number in epoch {epoch + 1}; nothing of it is kept; "
                f"try a smaller training.lr, or another training.precision than {training.precision}"
            )
    return loss, separation


# --- a training ------------------------------------------------------------------------------------------------------


def build(experiment: Experiment, seed: int, device: torch.device) -> Network:
    """The row's network with the seed's initial weights, the same on every machine."""
    chosen = experiment.network
    network = Network(
        experiment.shape, experiment.classes, chosen.parsed(), chosen.norm, seed, label_patch=chosen.label_patch
    )
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it
    return network


def train(
    experiment: Experiment,
    seed: int,
    data: Split,
    held_out: Split | None = None,
    *,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int, Tensor], None] = lambda *_: None,
    finished: Callable[[dict[str, Any]], None] = lambda _: None,
) -> tuple[Network, list[dict[str, Any]]]:
    """Train a row with one seed on the device of `data`: (the network, its history, one entry an epoch).

    checkpoint: file that is written after every epoch and resumed from, so that an interrupted training goes on to
    the same bits; one of other parameters, data, code or environment is not resumed, and `say` says so. `progress`
    gets (epoch, step, losses), `finished` each epoch's entry. Raises UserError when a loss stops being a number.
    """
    device, n = data.images.device, len(data.labels)
    network = build(experiment, seed, device)
    adams = optimizers(network, experiment.training)
    memory = negatives.memory(n, experiment.classes, device)
    key = _key(experiment, seed, data, device)
    history = _resume(checkpoint, key, network, adams, memory, say) if checkpoint else []
    for epoch in range(len(history), experiment.training.epochs):
        begun = time.perf_counter()
        loss, separation = train_epoch(
            network,
            adams,
            memory,
            data,
            experiment,
            seed,
            epoch,
            partial(progress, epoch),
        )
        seconds = time.perf_counter() - begun
        entry: dict[str, Any] = {
            "epoch": epoch + 1,
            "seconds": round(seconds, 3),
            "images_per_second": round(n // experiment.training.batch * experiment.training.batch / seconds, 1),
            **{f"loss_{i + 1}": value for i, value in enumerate(loss.tolist()) if not math.isnan(value)},
            **{f"separation_{i + 1}": value for i, value in enumerate(separation.tolist()) if not math.isnan(value)},
        }
        if held_out is not None:
            table = goodness_table(network, held_out.images, experiment)
            entry |= {f"held_out_{i}": value for i, value in block_accuracies(table, held_out.labels).items()}
        history.append(entry)
        if checkpoint:
            _save(checkpoint, key, network, adams, memory, history)
        finished(entry)
    return network, history


def _key(experiment: Experiment, seed: int, data: Split, device: torch.device) -> dict[str, str]:
    """What a checkpoint must agree in to be resumed from."""
    return {
        "parameters": training_parameters(experiment),
        "seed": str(seed),
        "data": record.tensors_hash(data._asdict()),
        "code": record.code_hash(),
        "environment": json.dumps(record.environment(device), sort_keys=True),
    }


def _save(
    path: Path,
    key: dict[str, str],
    network: Network,
    adams: list[Adam],
    memory: negatives.Memory,
    history: list[dict[str, Any]],
) -> None:
    state = {
        "key": key,
        "network": network.state_dict(),
        "optimizers": [adam.state_dict() for adam in adams],
        "memory": memory._asdict(),
        "history": history,
    }
    record.write(path, lambda part: torch.save(state, part))


def _resume(
    path: Path,
    key: dict[str, str],
    network: Network,
    adams: list[Adam],
    memory: negatives.Memory,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=next(network.parameters()).device, weights_only=True)
        differs = [name for name in key if state["key"].get(name) != key[name]]
    except Exception as error:  # torch.load has no error of its own: a damaged file can raise almost anything
        say(f"{path.name}: not a whole checkpoint ({type(error).__name__}): not resumed, training starts anew")
        return []
    if differs:
        say(f"{path.name}: of other {', '.join(differs)}: not resumed, training starts anew")
        return []
    network.load_state_dict(state["network"])
    for adam, saved in zip(adams, state["optimizers"], strict=True):
        adam.load_state_dict(saved)
    for part, saved in state["memory"].items():
        getattr(memory, part).copy_(saved)
    history: list[dict[str, Any]] = state["history"]
    say(f"{path.name}: going on after epoch {len(history)} of {json.loads(key['parameters'])['training']['epochs']}")
    return history


def load_weights(network: Network, weights: dict[str, Tensor], path: Path) -> None:
    """Copy weights into a network, whatever device it is on. Raises UserError when they are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{path}: weights of another network than the row's; train again") from None


def run_record(
    name: str,
    experiment: Experiment,
    seed: int,
    data: Split,
    weights: str,
    history: list[dict[str, Any]],
    device: torch.device,
) -> dict[str, Any]:
    """The record of one training: what ran, on what, from what. `weights` is their hash; data, the split trained on."""
    return {
        "experiment": name,
        "seed": seed,
        "ffrepro": __version__,
        "code": record.code_hash(),
        "parameters": record.text_hash(training_parameters(experiment)),
        "data": record.tensors_hash(data._asdict()),
        "initial_weights": record.tensors_hash(build(experiment, seed, torch.device("cpu")).state_dict()),
        "weights": weights,
        "environment": record.environment(device),
        "seconds": round(sum(entry["seconds"] for entry in history), 1),
    }


def seconds_per_epoch(experiment: Experiment, device: torch.device) -> float:
    """What an epoch would take on `device`: the time of a step is a + b images, from two sizes measured."""
    network = build(experiment, 0, device)

    def seconds(batch: int) -> float:
        training = experiment.training.model_copy(update={"batch": batch})
        row = experiment.model_copy(update={"training": training})
        images = torch.zeros(batch, *row.shape, dtype=torch.uint8)
        data = Split(images, torch.arange(batch) % row.classes).to(device)
        begun = time.perf_counter()
        memory = negatives.memory(batch, row.classes, device)
        train_epoch(network, optimizers(network, training), memory, data, row, 0, 0)
        return time.perf_counter() - begun

    small, large = 2, 6
    seconds(small)  # warms up
    a, b = seconds(small), seconds(large)
    image = max(b - a, 0.0) / (large - small)
    step = max(a - small * image, 0.0)
    return experiment.steps * (step + experiment.training.batch * image)
