"""What the figures show: rows and cells with results, and what is computed of their runs before it is drawn."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ffrepro import config, record, results, targets
from ffrepro.config import Experiment
from ffrepro.errors import UserError
from ffrepro.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHADES = 32  # colours of a drawn image
LABELS: Mapping[str, Sequence[str]] = {
    "cifar10": ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion-mnist": ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
}
"""Names of the labels where they are not digits."""


class Row(NamedTuple):
    """A row with results, and the project in whose `runs` they lie."""

    name: str
    experiment: Experiment
    seeds: tuple[int, ...]
    mean: float  # accuracy in percent
    place: Layout

    @property
    def forward(self) -> bool:
        """Whether it learns by Forward-Forward: a backprop twin has no goodness."""
        return self.experiment.training.update != "backprop"

    @property
    def labels(self) -> Sequence[str]:
        return LABELS.get(self.experiment.data.name) or [str(label) for label in range(self.experiment.classes)]


class Cell(NamedTuple):
    """A cell of a table whose row has results."""

    row: str
    column: str
    of: Row


def found(project: Layout) -> dict[str, Row]:
    """The rows with results, by name."""
    rows = config.load(project.params).experiments
    return {
        name: Row(
            name,
            rows[name],
            tuple(result.seeds),
            result.accuracy["mean"],
            Layout(project.root, result.folder),
        )
        for name, result in results.known(project).items()
    }


def cells(table: targets.Table, rows: Mapping[str, Row]) -> list[Cell]:
    """The cells of a table that have results."""
    every = ((row, column, name) for row, of_row in table.rows.items() for column, name in of_row.items())
    return [Cell(row, column, rows[name]) for row, column, name in every if name in rows]


def chosen(rows: Mapping[str, Row], tables: Mapping[str, targets.Table]) -> list[str]:
    """The rows to look at one by one: those in no table, and each table's best, of those that learn by
    Forward-Forward."""
    forward = [row for row in rows.values() if row.forward]
    within = {name for table in tables.values() for name in table.cells.values()}
    names = [row.name for row in forward if row.name not in within]
    for table in tables.values():
        members = [row for row in forward if row.name in table.cells.values()]
        names += [max(members, key=lambda row: row.mean).name] if members else []
    return list(dict.fromkeys(names))


class Accuracy(NamedTuple):
    """A block's accuracy by itself, in percent: over the seeds the mean, the lowest and the highest."""

    block: int
    mean: float
    low: float
    high: float


def depth(runs: Iterable[Mapping[str, Any]]) -> list[Accuracy]:
    """Block by block, from the metrics of each seed."""
    seeds = [run["metrics"]["blocks"] for run in runs]
    each = {block: [blocks[block] for blocks in seeds] for block in seeds[0]}
    return [Accuracy(int(block), fmean(values), min(values), max(values)) for block, values in each.items()]


def read_history(path: Path) -> list[dict[str, float]]:
    """history.csv, an entry an epoch with the columns that have a value in it. Raises UserError when it is none."""
    try:
        with record.regular(path).open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, strict=True)
            entries = [{key: float(text) for key, text in line.items() if text} for line in table]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a history ({config.plain(error)})") from None
    if not entries or [entry.get("epoch") for entry in entries] != list(range(1, len(entries) + 1)):
        raise UserError(f"{path}: not a history (no epochs in order, from 1 on)")
    if wrong := [column for column in table.fieldnames or () if not COLUMN.fullmatch(column)]:
        raise UserError(f"{path}: not a history (column {config.plain(repr(wrong[0]))})")
    if any(math.isfinite(value) and abs(value) > LARGEST for entry in entries for value in entry.values()):
        raise UserError(f"{path}: not a history (a value beyond float32)")
    return entries


COLUMN = re.compile(r"[a-z_]+(_[0-9]{1,4})?")  # as training names them: `loss`, and `loss_3` of a block
LARGEST = 3.5e38  # what a loss can be in float32
Curves = dict[int, list[tuple[float, float]]]


def curves(histories: Iterable[Iterable[Mapping[str, float]]], what: str) -> Curves:
    """{block: [(epoch, mean over seeds), ...]} of `loss`, `separation` or `held_out`.

    A block learns in some epochs only where these have few steps: the mean is over the seeds that have a value, and an
    epoch without one has no point.
    """
    values: dict[int, dict[float, list[float]]] = {}
    for entry in (entry for history in histories for entry in history):
        for column, value in entry.items():
            kind, _, block = column.rpartition("_")
            if kind == what and block.isdecimal() and math.isfinite(value):
                values.setdefault(int(block), {}).setdefault(entry["epoch"], []).append(value)
    return {
        block: [(epoch, fmean(ones)) for epoch, ones in sorted(epochs.items())]
        for block, epochs in sorted(values.items())
    }


def by_label(goodness: "NDArray[Any]", labels: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any]]":
    """(goodness under the true label (N,), under the wrong ones (N (classes - 1),)) of (N, classes) and (N,)."""
    import numpy

    true = numpy.arange(goodness.shape[1]) == labels[:, None]
    return goodness[true], goodness[~true]


def density(values: "NDArray[Any]", edges: "NDArray[Any]") -> "NDArray[Any]":
    """A histogram whose whole area is 1, with what lies beyond the edges."""
    import numpy

    heights, _ = numpy.histogram(values, bins=edges)
    result: NDArray[Any] = heights / (len(values) * numpy.diff(edges))
    return result


def confusion(labels: "NDArray[Any]", predicted: "NDArray[Any]", classes: int) -> list[list[int]]:
    """How many images of each label, row by row, were predicted to be of which, column by column."""
    import numpy

    counts = numpy.bincount(labels * classes + predicted, minlength=classes * classes)
    result: list[list[int]] = counts.reshape(classes, classes).tolist()
    return result


class Timed(NamedTuple):
    """A run's seconds of training and its accuracy in percent."""

    seconds: float
    accuracy: float


def timed(runs: Iterable[Mapping[str, Any]]) -> list[Timed]:
    """Seed by seed, from metrics and records."""
    return [Timed(float(run["record"]["seconds"]), float(run["metrics"]["accuracy"])) for run in runs]


Stroke = tuple[int, int, int]  # y, from x, to x


def strokes(image: "NDArray[Any]") -> list[tuple[str, list[Stroke]]]:
    """An image (C, H, W) uint8 as horizontal runs of one colour each, by colour, the commonest first.

    In at most `SHADES` colours: the report's page allows no embedded image, and a path for every pixel is long.
    """
    import numpy
    from PIL import Image

    pixels = numpy.ascontiguousarray(numpy.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
    small = Image.fromarray(pixels).quantize(SHADES, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette, shades, (width, height) = small.getpalette() or [], small.tobytes(), small.size
    runs: dict[int, list[Stroke]] = {}
    for y in range(height):
        x = 0
        for shade, same in groupby(shades[y * width : (y + 1) * width]):
            stop = x + len(list(same))
            runs.setdefault(shade, []).append((y, x, stop))
            x = stop
    commonest = sorted(runs, key=lambda shade: (-shades.count(shade), shade))
    return [("#" + bytes(palette[3 * shade : 3 * shade + 3]).hex(), runs[shade]) for shade in commonest]


# Files


def whole_runs(row: Row) -> list[dict[str, Any]]:
    """metrics and record of every seed, which must be the row's."""
    return results.collect(row.name, row.experiment, row.seeds, row.place)


T = TypeVar("T")
Lines = list[tuple[Cell, list[T]]]


def of_whole(members: Iterable[Cell], what: Callable[[list[dict[str, Any]]], list[T]]) -> Lines[T]:
    """What is drawn of each cell's runs, for the cells whose runs are whole."""
    lines = []
    for cell in members:
        try:
            lines.append((cell, what(whole_runs(cell.of))))
        except UserError:
            continue
    return lines


def by_data_set(lines: Lines[T]) -> dict[str, Lines[T]]:
    """The lines of each data set, a panel each."""
    panels: dict[str, Lines[T]] = {}
    for line in lines:
        panels.setdefault(line[0].of.experiment.data.name, []).append(line)
    return panels


class Images(NamedTuple):
    """images (N, C, H, W) uint8 and labels (N,) int64."""

    images: "NDArray[Any]"
    labels: "NDArray[Any]"


def test_images(project: Layout, name: str) -> Images:
    """The prepared test images of a data set. Raises UserError where they are not there."""
    arrays = record.read_arrays(project.data(name))
    try:
        return Images(arrays["test.images"], arrays["test.labels"])
    except KeyError as error:
        raise UserError(f"{project.data(name)}: no tensor {error}") from None


class Tested(NamedTuple):
    """The first seed's goodness (N, classes, blocks) of the test images, and what the row's vote makes of it."""

    goodness: "NDArray[Any]"
    predicted: "NDArray[Any]"
    test: Images


def tested(row: Row, tests: Callable[[str], Images]) -> Tested:
    """What the first seed made of its data set's test images, which `tests` gives by the data set's name.

    Raises UserError where the table does not give the accuracy of metrics.json: nothing is drawn of what is not shown
    to be the run's.
    """
    import numpy

    stated = whole_runs(row)[0]["metrics"]["accuracy"]
    path = row.place.run(row.name, row.seeds[0]) / "goodness.safetensors"
    table = record.read_arrays(path).get("goodness")
    test, vote = tests(row.experiment.data.name), row.experiment.evaluation.vote
    shape = (len(test.labels), row.experiment.classes, row.experiment.columns)
    if table is None or table.shape != shape or not numpy.isfinite(table).all():
        raise UserError(f"{path}: no finite goodness of {shape} images, labels and blocks")
    voters = config.number_of_voters(vote, shape[2])

    def accuracy(of: "NDArray[Any]") -> float:
        return float(100 * (of == test.labels).mean())

    predicted = table[:, :, -voters:].mean(2).argmax(1)
    if accuracy(predicted) != stated:  # added up in another order than PyTorch's, a tie can go the other way
        from torch import from_numpy  # takes longer than drawing

        from ffrepro.evaluation import predictions

        predicted = predictions(from_numpy(table), vote).numpy()
        if accuracy(predicted) != stated:
            raise UserError(f"{path}: gives {accuracy(predicted):g} %, not the {stated:g} % of metrics.json")
    return Tested(table, predicted, test)
