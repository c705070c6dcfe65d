"""What was tried on images held out of a training set, as a table: `python -m pipelines.tries`.

results/tries/NAME holds what `python -m pipelines.away try` left in its --out folder, try.json and history.csv; NAME is
anybody's choice. Prints the table of all of them and writes results/tries/table.md. None has classified a test image.
The two files are held against one another and against params.yaml; no weights come home by which to compute anew.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, ValidationError

from ffrepro import config, errors, evidence, layout, record
from ffrepro.config import Experiment
from ffrepro.errors import UserError
from ffrepro.figure_data import curves
from ffrepro.proof import MOVED
from ffrepro.report import markdown
from ffrepro.results import Environment, Read
from ffrepro.targets import Percent, Text

COLUMNS = [
    "try",
    "row",
    "seed",
    "set",
    "epochs",
    "held out (%)",
    "statistics anew (%)",
    "last block alone, mean of the last 10 epochs (%)",
    "trained on (%)",
    "images of each",
    "training (s)",
    "machine",
]
LAST = 10  # epochs, as docs/cifar10.md compares candidates


class _Judged(Read):
    accuracy: Percent
    vote: Text
    images: int
    blocks: dict[Text, Percent]
    votes: dict[Text, Percent]


class _Try(evidence.Record):
    """try.json: a training's record, what was set in its row, and what came of it."""

    values: dict[Text, Text | int | float | bool] = Field(alias="set")
    held_out: _Judged
    held_out_restated: _Judged
    trained_on: _Judged


def line_of(folder: Path, rows: Mapping[str, Experiment]) -> list[Any]:
    """A try's cells. rows: those of params.yaml.

    Raises UserError where its files are not what the command wrote, or not of one training.
    """
    path, history = folder / "try.json", folder / "history.csv"
    content = record.read_sealed(path)
    foreign = UserError(f"{path}: not what `python -m pipelines.away try` writes; copy its whole folder")
    try:
        its = _Try.model_validate(content)
    except ValidationError:
        raise foreign from None
    if not history.exists() or record.file_hash(history) != its.history:
        raise UserError(f"{history}: not the one that try.json names; copy both files of one try")
    row = _row(path, its, rows)
    try:
        evidence.chain(path, content, row)
        blocks = curves([evidence.history(history, content)], "held_out")
    except UserError:
        raise foreign from None
    if not blocks:
        raise foreign
    _judged(path, its, row, {str(block): values[-1][1] for block, values in blocks.items()})
    last = [accuracy for _, accuracy in blocks[max(blocks)]]
    late = f"{fmean(last[-LAST:]):.2f}" if len(last) > LAST else ""  # else of all epochs, the first among them
    return [
        folder.name,
        its.experiment if _as_declared(its, row, rows) else f"{its.experiment}, as it was then",
        its.seed,
        ", ".join(f"{name}={value}" for name, value in its.values.items()) or "as it is",
        row.training.epochs,
        f"{its.held_out.accuracy:.2f}",
        f"{its.held_out_restated.accuracy:.2f}",
        late,
        f"{its.trained_on.accuracy:.2f}",
        its.held_out.images,
        f"{its.seconds:.0f}",
        Environment.model_validate(its.environment),
    ]


def _row(path: Path, its: _Try, rows: Mapping[str, Experiment]) -> Experiment:
    """The row that was trained. Raises UserError where it is none, or has not what was set in it."""
    base = rows.get(its.experiment) or next(iter(rows.values()))  # whose other fields no training depends on
    try:
        values = {f"{section}.{name}": value for section in its.row for name, value in its.row[section].items()}
        row = config.changed(base, values)
        parameters = config.training_parameters(row)
        if (json.loads(parameters), record.text_hash(parameters)) != (its.row, its.parameters):
            raise UserError("of other parameters")
        same = config.training_parameters(config.changed(row, its.values)) == parameters
    except (AttributeError, KeyError, UserError):
        raise UserError(f"{path}: broken link: its row is none, or not the one that its parameters are of") from None
    if not same:
        raise UserError(f"{path}: broken link: its row does not have what was set in it")
    return row


def _as_declared(its: _Try, row: Experiment, rows: Mapping[str, Experiment]) -> bool:
    """Whether params.yaml has the row that was tried, but for what was set in it and held out."""
    if its.experiment not in rows:
        return False
    try:
        now = config.changed(rows[its.experiment], {"data.held_out": row.data.held_out, **its.values})
    except UserError:  # which its other values do not go with
        return False
    return config.training_parameters(row) == config.training_parameters(now)


def _judged(path: Path, its: _Try, row: Experiment, last: dict[str, float]) -> None:
    """Raise UserError unless what came of it fits the history's last epoch, and as many images as were held out.

    last: the accuracy of each block on them by the history, which decides nothing in float32.
    """
    allowed = 0 if row.evaluated_in == "float32" else 100 * MOVED
    blocks = its.held_out.blocks
    fits = blocks.keys() == last.keys() and all(abs(blocks[one] - last[one]) <= allowed for one in last)
    for one in (its.held_out, its.held_out_restated, its.trained_on):
        votes = (one.votes.get(one.vote), one.votes.get("last"))
        fits = fits and one.images == row.data.held_out and votes == (one.accuracy, one.blocks.get(max(last, key=int)))
    if not fits:
        raise UserError(f"{path}: broken link: its accuracies are not of the history's last epoch, or of other images")


def table(folder: Path, rows: Mapping[str, Experiment]) -> str:
    lines = [line_of(one, rows) for one in sorted(folder.iterdir()) if one.is_dir()] if folder.is_dir() else []
    return markdown(COLUMNS, [[config.plain(str(cell)) for cell in line] for line in lines])


def main() -> None:
    project = layout.find()
    folder = project.root / "results" / "tries"
    text = table(folder, config.load(project.params).experiments)
    record.write_text(text, folder / "table.md")
    print(text, end="")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
