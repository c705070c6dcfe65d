"""A training: the row's network, its epochs, a checkpoint after each, and the record of what ran.

The step is `step.py`'s, an epoch `engine.py`'s.
"""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffrepro import __version__, negatives, record
from ffrepro.backprop import Classifier
from ffrepro.checkpoint import Checkpoint, Link, now
from ffrepro.config import Experiment, training_parameters
from ffrepro.data import Split
from ffrepro.engine import Engine
from ffrepro.errors import UserError
from ffrepro.evaluation import block_accuracies, goodness_table
from ffrepro.hinton import FullyConnected
from ffrepro.layout import Layout
from ffrepro.network import Convolutional, Network
from ffrepro.step import optimizers


def build(experiment: Experiment, seed: int, device: torch.device) -> Network:
    """The row's network with the seed's initial weights, the same on every machine."""
    chosen, shape, classes = experiment.network, experiment.shape, experiment.classes
    network: Network
    if chosen.norm == "length":
        network = FullyConnected(shape, classes, [units for units, _ in chosen.parsed()], seed)
    elif experiment.training.update == "backprop":
        network = Classifier(shape, classes, chosen.parsed(), chosen.norm, seed)
    else:
        network = Convolutional(shape, classes, chosen.parsed(), chosen.norm, seed, label_patch=chosen.label_patch)
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it
    return network


QUICK = 2.0  # seconds of a step up to which it is measured as it is


class Trained(NamedTuple):
    """What a training leaves behind."""

    network: Network
    history: list[dict[str, Any]]  # one entry an epoch
    chain: list[Link]  # one link an epoch
    started: str  # UTC; of the first piece, where it was interrupted
    data: str  # hash of the split trained on
    initial_weights: str  # their hash


def train(
    experiment: Experiment,
    seed: int,
    data: Split,
    held_out: Split | None = None,
    *,
    checkpoint: Path | None = None,
    keep: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda *_: None,
    finished: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Trained:
    """Train a row with one seed on the device of `data`.

    checkpoint: file that is written after every epoch and resumed from, so that an interrupted training goes on to
    the same bits; one of other parameters, data, code or environment is not resumed, and `say` says so. keep: every
    epoch's state stays beside it, for an audit. `progress` gets (epoch, step), `finished` each epoch's entry. Raises
    UserError when a loss stops being a number.
    """
    device, images = data.images.device, len(data.labels) // experiment.training.batch * experiment.training.batch
    network = build(experiment, seed, device)
    adams = optimizers(network, experiment.training)
    memory = negatives.memory(len(data.labels), experiment.classes, device)
    key = _key(experiment, seed, data)
    initial = record.tensors_hash(network.state_dict())
    first = first_link(key | {"initial weights": initial})
    with Checkpoint(checkpoint, key, first, network, adams, memory, keep=keep) as saved:
        history, line = saved.resume()
        if line:
            say(line)
        engine = Engine(network, adams, memory, data, experiment, say)
        for epoch in range(len(history), experiment.training.epochs):
            begun, joules = time.perf_counter(), record.joules(device)
            loss, separation = engine.epoch(seed, epoch, partial(progress, epoch))
            seconds = time.perf_counter() - begun
            entry: dict[str, Any] = {
                "epoch": epoch + 1,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1),
                "loss": loss.nanmean().item(),
                **{f"loss_{i + 1}": value for i, value in enumerate(loss.tolist()) if not math.isnan(value)},
                **{
                    f"separation_{i + 1}": value for i, value in enumerate(separation.tolist()) if not math.isnan(value)
                },
            }
            if joules is not None:
                entry["joules"] = round((record.joules(device) or joules) - joules, 1)
            if held_out is not None:
                table = goodness_table(network, held_out.images, experiment)
                entry |= {f"held_out_{i}": value for i, value in block_accuracies(table, held_out.labels).items()}
            history.append(entry)
            saved.save(history)
            finished(entry)
    return Trained(network, history, saved.chain, saved.started, key["data"], initial)


def first_link(facts: dict[str, str]) -> str:
    """Where a training's chain starts: the hash of what it is a training of, whatever machine it runs on.

    facts: parameters, seed, data, code, initial weights.
    """
    return record.text_hash(
        "".join(f"{name}: {value}\n" for name, value in sorted(facts.items()) if name != "environment")
    )


def _key(experiment: Experiment, seed: int, data: Split) -> dict[str, str]:
    """What a checkpoint must agree in to be resumed from."""
    return {
        "parameters": training_parameters(experiment),
        "seed": str(seed),
        "data": record.tensors_hash(data._asdict()),
        "code": record.code_hash(),
        "environment": json.dumps(record.environment(data.images.device), sort_keys=True),
    }


def load_weights(network: Network, weights: dict[str, Tensor], path: Path) -> None:
    """Copy weights into a network, whatever device it is on. Raises UserError when they are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{path}: weights of another network than the row's; train again") from None


def run_record(
    name: str, experiment: Experiment, seed: int, trained: Trained, history: Path, project: Layout
) -> dict[str, Any]:
    """The record of one training: what ran, on what, from what. history: its file.

    Names no user, host or path. `record.write_sealed` writes it, `proof.py` checks it.
    """
    device = next(trained.network.parameters()).device
    joules = [entry["joules"] for entry in trained.history if "joules" in entry]
    return {
        "experiment": name,
        "seed": seed,
        "ffrepro": __version__,
        "code": record.code_hash(),
        "source": record.code_hash(record.every_module()),
        "lock": record.lock_hash(project.root),
        "row": json.loads(training_parameters(experiment)),
        "parameters": record.text_hash(training_parameters(experiment)),
        "data": trained.data,
        "initial_weights": trained.initial_weights,
        "chain": trained.chain,
        "weights": trained.chain[-1]["weights"],
        "history": record.file_hash(history),
        "environment": record.environment(device),
        "driver": record.driver(device),
        "started": trained.started,
        "ended": now(),
        "seconds": round(sum(entry["seconds"] for entry in trained.history), 1),
        "joules": round(sum(joules), 1) if joules else None,
    }


def seconds_per_epoch(experiment: Experiment, device: torch.device) -> float:
    """What an epoch would take on `device`, from measured steps.

    Of few images first, where the time of a step is a + b images; of the row's own batch, where that says it is quick.
    """
    network = build(experiment, 0, device)

    def seconds(batch: int) -> float:
        training = experiment.training.model_copy(update={"batch": batch})
        row = experiment.model_copy(update={"training": training})
        n = 2 * batch  # an even and an odd step
        data = Split(torch.zeros(n, *row.shape, dtype=torch.uint8), torch.arange(n) % row.classes).to(device)
        memory = negatives.memory(n, row.classes, device)
        engine = Engine(network, optimizers(network, training), memory, data, row)
        begun = time.perf_counter()
        engine.epoch(0, 0)
        return (time.perf_counter() - begun) / 2

    small, large = 2, 6
    seconds(small)  # warms up
    a, b = seconds(small), seconds(large)
    image = max(b - a, 0.0) / (large - small)
    step = max(a - small * image, 0.0) + experiment.training.batch * image
    if step < QUICK:
        seconds(experiment.training.batch)
        step = seconds(experiment.training.batch)
    return experiment.steps * step
