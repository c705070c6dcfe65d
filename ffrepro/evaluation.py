"""Goodness per candidate label -> prediction -> accuracy, for each block and for the blocks that vote."""

from typing import Any

import torch
from torch import Tensor

from ffrepro import record
from ffrepro.augment import normalise
from ffrepro.config import Experiment, changed
from ffrepro.data import DATASETS, Split
from ffrepro.goodness import goodness
from ffrepro.network import Network, autocast

IMAGES = 50  # images a pass, each under every label: fixed, so that the same weights give the same bits
CLOSE = 0.05
"""Lead, as a share of the winner's goodness, below which a prediction in half precision is made again in float32.

docs/speed.md has the largest rounding that was measured, and how many images are made again.
"""


@torch.no_grad()
def goodness_table(network: Network, images: Tensor, experiment: Experiment) -> Tensor:
    """Goodness of every image under every label at every block, in eval mode (running statistics).

    images: (N, C, H, W) uint8. Returns (N, classes, blocks) float32 on the same device. The first block sees an image
    once for all labels (`Network.under_every_label`); autocast casts each weight once for all passes.
    """
    source = DATASETS[experiment.data.name]
    mean, std = (torch.tensor(value, device=images.device) for value in (source.mean, source.std))
    training = network.training
    network.eval()
    rows = []
    with autocast(images.device, experiment.training.precision):
        for batch in torch.split(images, IMAGES):
            h = network.under_every_label(normalise(batch, mean, std))
            table = [goodness(h)]
            for block in network.blocks[1:]:
                h = block(h)
                table.append(goodness(h))
            rows.append(torch.stack(table, 1).view(len(batch), experiment.classes, -1))
    network.train(training)
    return torch.cat(rows)


def voted(table: Tensor, vote: str) -> Tensor:
    """Goodness averaged over the blocks that vote (last, last-2 .. last-9 or all): (N, classes, blocks) -> (N,
    classes)."""
    voters = table.shape[2] if vote == "all" else int(vote.removeprefix("last-")) if vote != "last" else 1
    return table[:, :, -voters:].mean(2)


def predictions(table: Tensor, vote: str) -> Tensor:
    """The label of the highest goodness, averaged over the blocks that vote.

    table: (N, classes, blocks); vote: last, last-2 .. last-9 or all. Returns (N,) int64.
    """
    return voted(table, vote).argmax(1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of right predictions in percent."""
    return 100 * (predicted == labels).double().mean().item()


def block_accuracies(table: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of each block by itself: {"1": percent, ...}, first block first."""
    return {str(i + 1): accuracy(table[:, :, i].argmax(1), labels) for i in range(table.shape[2])}


def metrics(table: Tensor, labels: Tensor, vote: str) -> dict[str, Any]:
    """The accuracy that counts, each block's own, and what other choices of voters would have given."""
    blocks = table.shape[2]
    votes = ["last", *(f"last-{k}" for k in (2, 3) if k <= blocks), "all"]
    return {
        "accuracy": accuracy(predictions(table, vote), labels),
        "vote": vote,
        "images": len(labels),
        "blocks": block_accuracies(table, labels),
        "votes": {choice: accuracy(predictions(table, choice), labels) for choice in votes},
    }


def close_calls(table: Tensor, vote: str) -> Tensor:
    """Where the best label leads the second by less than `CLOSE` of its goodness: (N,) bool."""
    best, second = voted(table, vote).topk(2).values.unbind(1)
    return best - second < CLOSE * best


def exact_table(network: Network, images: Tensor, experiment: Experiment) -> tuple[Tensor, int]:
    """`goodness_table`, the rows of close calls in float32, and how many those are.

    A row in half precision is evaluated in it, three times as fast, and then once more where rounding could have
    decided: so the accuracy that counts is float32's.
    """
    table, vote = goodness_table(network, images, experiment), experiment.evaluation.vote
    if experiment.training.precision == "float32":
        return table, len(images)
    close = close_calls(table, vote)
    if close.any():
        table[close] = goodness_table(network, images[close], in_float32(experiment))
    return table, int(close.sum())


def in_float32(experiment: Experiment) -> Experiment:
    """The row with its arithmetic in float32."""
    return changed(experiment, {"training.precision": "float32"})


def evaluate(network: Network, test: Split, experiment: Experiment) -> tuple[Tensor, dict[str, Any]]:
    """(goodness table, its `metrics` with the hashes of what they were made from and where) of a test split."""
    table, exact = exact_table(network, test.images, experiment)
    table = table.cpu()
    return table, {
        **metrics(table, test.labels.cpu(), experiment.evaluation.vote),
        "in_float32": exact,
        "weights": record.tensors_hash(network.state_dict()),
        "test_data": record.tensors_hash(test._asdict()),
        "goodness_table": record.tensors_hash({"goodness": table}),
        "environment": record.environment(test.images.device),
    }
