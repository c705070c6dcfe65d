"""Goodness per candidate label -> prediction -> accuracy, for each block and for the blocks that vote."""

from typing import Any

import torch
from torch import Tensor, nn

from ffrepro import augment, record
from ffrepro.augment import normalise
from ffrepro.backprop import Classifier
from ffrepro.config import Experiment, changed, number_of_voters
from ffrepro.data import DATASETS, Split
from ffrepro.engine import Draws
from ffrepro.goodness import goodness, wrong_labels
from ffrepro.network import Network, autocast

CODE = (*record.NUMBERS, "evaluation")  # the modules whose source decides a goodness table's bits
IMAGES = 50  # images a pass, each under every label: fixed, so that the same weights give the same bits
CLOSE = 0.02
"""Share of the best label's goodness within which another label's, computed in half precision, might still be the best.

`ffrepro verify` computes every image in float32 and says whether this was enough; docs/speed.md has what it found.
"""


def channels(experiment: Experiment, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of each channel of the row's data set, two (C,) float32 for `normalise`."""
    source = DATASETS[experiment.data.name]
    return torch.tensor(source.mean, device=device), torch.tensor(source.std, device=device)


@torch.no_grad()
def goodness_table(network: Network, images: Tensor, experiment: Experiment) -> Tensor:
    """Goodness of every image under every label at every block, in eval mode (running statistics).

    images: (N, C, H, W) uint8. Returns (N, classes, blocks) float32 on the same device. The first block sees an image
    once for all labels (`Convolutional.under_every_label`); autocast casts each weight once for all passes. Of a
    backprop twin: the logits of its read-out, (N, classes, 1), which take a tenth of the passes and hence float32.
    """
    mean, std = channels(experiment, images.device)
    training = network.training
    network.eval()
    rows = []
    with autocast(images.device, experiment.evaluated_in):
        for batch in torch.split(images, IMAGES):
            if isinstance(network, Classifier):
                rows.append(network.logits(normalise(batch, mean, std)).unsqueeze(2))
                continue
            h = network.under_every_label(normalise(batch, mean, std))
            table = [goodness(h)]
            for block in network.blocks[1:]:
                h = block(h)
                table.append(goodness(h))
            rows.append(torch.stack(table, 1).view(len(batch), experiment.classes, -1))
    network.train(training)
    return torch.cat(rows)


@torch.no_grad()
def restate(network: Network, data: Split, experiment: Experiment, draws: Draws) -> None:
    """Compute batch norm's running statistics anew, of the weights as they are: their mean over an epoch's batches.

    What a training leaves is a moving average over its last steps, in each of which the weights were others. Here they
    stand still ("precise batch norm": Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576). data: the
    split trained on, N images; draws: an epoch's for N images; both on the network's device. The wrong labels are
    uniform, whatever the row's hardness. Other norms have no statistics; weights stay as they are.
    """
    (mean, std), batch = channels(experiment, data.images.device), experiment.training.batch
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    training, momenta = network.training, [norm.momentum for norm in norms]
    network.train()
    with autocast(data.images.device, experiment.training.precision):
        for step in range(len(data.labels) // batch if norms else 0):
            for norm in norms:
                norm.momentum = 1 / (step + 1)  # which makes a moving average the mean of all so far
            drawn = draws.rows(torch.arange(step * batch, (step + 1) * batch, device=data.images.device))
            images, labels = data[drawn.order]
            images = normalise(augment.apply(images, drawn.geometry), mean, std)
            if isinstance(network, Classifier):
                network.logits(images)
                continue
            wrong = wrong_labels(labels, drawn.wrong, experiment.classes)
            network(torch.cat([images, images]), torch.cat([labels, wrong]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)


def voted(table: Tensor, vote: str) -> Tensor:
    """Goodness averaged over the blocks that vote: (N, classes, blocks) -> (N, classes)."""
    return table[:, :, -number_of_voters(vote, table.shape[2]) :].mean(2)


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


def contenders(table: Tensor, vote: str) -> Tensor:
    """Where rounding could decide: (N, classes) bool, the labels within `CLOSE` of the best, if there are several."""
    goodness = voted(table, vote)
    best = goodness.amax(1, keepdim=True)
    close = goodness >= best - CLOSE * best
    return close & (close.sum(1, keepdim=True) > 1)


@torch.no_grad()
def goodness_of_pairs(network: Network, images: Tensor, labels: Tensor, experiment: Experiment) -> Tensor:
    """Goodness of images (P, C, H, W) uint8, each under one label (P,), in float32: (P, blocks)."""
    mean, std = channels(experiment, images.device)
    training, size = network.training, IMAGES * experiment.classes
    network.eval()
    rows = [
        torch.stack([goodness(h) for h in network(normalise(batch, mean, std), under)], 1)
        for batch, under in zip(torch.split(images, size), torch.split(labels, size), strict=True)
    ]
    network.train(training)
    return torch.cat(rows)


def decide(table: Tensor, network: Network, images: Tensor, experiment: Experiment) -> tuple[Tensor, int]:
    """The row's `goodness_table`, in float32 where rounding could decide; the number of such pairs.

    What counts is the prediction that float32 makes. Half precision is quicker and finds the labels that could win
    (`contenders`); between those, float32 decides. Blocks that do not vote stay as they are.
    """
    table, vote = table.clone(), experiment.evaluation.vote
    if experiment.evaluated_in == "float32":
        return table, 0
    image, label = contenders(table, vote).nonzero(as_tuple=True)
    if len(image):
        exact = goodness_of_pairs(network, images[image], label, experiment)
        voters = slice(table.shape[2] - number_of_voters(vote, table.shape[2]), None)
        table[image, label, voters] = exact[:, voters]
    return table, len(image)


def in_float32(experiment: Experiment) -> Experiment:
    """The row with its arithmetic in float32."""
    return changed(experiment, {"training.precision": "float32"})


def evaluate(network: Network, test: Split, experiment: Experiment) -> tuple[Tensor, dict[str, Any]]:
    """(goodness table, its `metrics` with the hashes of what they were made from and where) of a test split."""
    table, pairs = decide(goodness_table(network, test.images, experiment), network, test.images, experiment)
    table = table.cpu()
    return table, {
        **metrics(table, test.labels.cpu(), experiment.evaluation.vote),
        "decided_in_float32": pairs,
        "weights": record.tensors_hash(network.state_dict()),
        "test_data": record.tensors_hash(test._asdict()),
        "goodness_table": record.tensors_hash({"goodness": table}),
        "environment": record.environment(test.images.device),
        "code": record.code_hash(CODE),
    }
