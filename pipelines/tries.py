"""What was tried on images held out of a training set, as a table: `python -m pipelines.tries`.

results/tries/NAME holds what `python -m pipelines.away try` left in its --out folder, try.json and history.csv; NAME is
anybody's choice. Prints the table of all of them and writes results/tries/table.md. None has classified a test image.
"""

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, ValidationError

from ffrepro import config, errors, layout, record
from ffrepro.errors import UserError
from ffrepro.figure_data import curves, read_history
from ffrepro.report import markdown
from ffrepro.results import Environment, Read
from ffrepro.targets import Percent, Seconds, Text

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
    images: int


class _Training(Read):
    epochs: int


class _Row(Read):
    training: _Training


class _Try(Read):
    """What is read of try.json."""

    experiment: Text
    seed: int
    row: _Row
    history: Text
    environment: Environment
    seconds: Seconds
    values: dict[Text, Text | int | float | bool] = Field(alias="set")
    held_out: _Judged
    held_out_restated: _Judged
    trained_on: _Judged


def line_of(folder: Path) -> list[Any]:
    """A try's cells. Raises UserError where its files are not what the command wrote, or not of one training."""
    path, history = folder / "try.json", folder / "history.csv"
    content = record.read_sealed(path)
    foreign = UserError(f"{path}: not what `python -m pipelines.away try` writes; copy its whole folder")
    try:
        its = _Try.model_validate(content)
    except ValidationError:
        raise foreign from None
    if not history.exists() or record.file_hash(history) != its.history:
        raise UserError(f"{history}: not the one that try.json names; copy both files of one try")
    try:
        blocks = curves([read_history(history)], "held_out")
    except UserError:
        raise foreign from None
    if not blocks:
        raise foreign
    last = [accuracy for _, accuracy in blocks[max(blocks)]]
    late = f"{fmean(last[-LAST:]):.2f}" if len(last) > LAST else ""  # else of all epochs, the first among them
    return [
        folder.name,
        its.experiment,
        its.seed,
        ", ".join(f"{name}={value}" for name, value in its.values.items()) or "as it is",
        its.row.training.epochs,
        f"{its.held_out.accuracy:.2f}",
        f"{its.held_out_restated.accuracy:.2f}",
        late,
        f"{its.trained_on.accuracy:.2f}",
        its.held_out.images,
        f"{its.seconds:.0f}",
        its.environment,
    ]


def table(folder: Path) -> str:
    lines = [line_of(one) for one in sorted(folder.iterdir()) if one.is_dir()] if folder.is_dir() else []
    return markdown(COLUMNS, [[config.plain(str(cell)) for cell in line] for line in lines])


def main() -> None:
    folder = layout.find().root / "results" / "tries"
    text = table(folder)
    record.write_text(text, folder / "table.md")
    print(text, end="")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
