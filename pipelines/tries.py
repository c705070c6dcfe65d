"""What was tried on images held out of a training set, as a table: `python -m pipelines.tries`.

results/tries/NAME holds what `python -m pipelines.away try` left in its --out folder, try.json and history.csv; NAME is
anybody's choice. Prints the table of all of them and writes results/tries/table.md. None has classified a test image.
"""

import csv
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from ffrepro import config, errors, layout, record
from ffrepro.config import Section
from ffrepro.errors import UserError
from ffrepro.report import markdown
from ffrepro.results import Environment
from ffrepro.targets import Percent, Seconds, Text

COLUMNS = [
    "try",
    "row",
    "seed",
    "set",
    "epochs",
    "held out (%)",
    "statistics anew (%)",
    "last block, mean of the last 10 epochs (%)",
    "trained on (%)",
    "images of each",
    "training (s)",
    "machine",
]
LAST = 10  # epochs, as docs/cifar10.md compares candidates


class _Read(Section):
    model_config = ConfigDict(extra="ignore")


class _Judged(_Read):
    accuracy: Percent
    images: int


class _Training(_Read):
    epochs: int


class _Row(_Read):
    training: _Training


class _Try(_Read):
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


Held = TypeAdapter(list[dict[str, Annotated[float, Field(strict=False)]]])


def line_of(folder: Path) -> list[Any]:
    """A try's cells. Raises UserError where its files are not what the command wrote, or not of one training."""
    path, history = folder / "try.json", folder / "history.csv"
    try:
        its = _Try.model_validate(record.read_sealed(path))
        if not history.exists() or record.file_hash(history) != its.history:
            raise UserError(f"{history}: not the one that try.json names; copy both files of one try")
        with history.open(encoding="utf-8", newline="") as file:
            epochs = Held.validate_python(list(csv.DictReader(file)))
        last = max((name for name in epochs[0] if name.startswith("held_out_")), key=lambda name: int(name[9:]))
        late = [epoch[last] for epoch in epochs[-LAST:]]
    except (ValueError, IndexError, csv.Error):  # Pydantic's too; a history without epochs, or held-out images
        raise UserError(f"{path}: not what `python -m pipelines.away try` writes; copy its whole folder") from None
    return [
        folder.name,
        its.experiment,
        its.seed,
        ", ".join(f"{name}={value}" for name, value in its.values.items()) or "as it is",
        its.row.training.epochs,
        f"{its.held_out.accuracy:.2f}",
        f"{its.held_out_restated.accuracy:.2f}",
        f"{sum(late) / len(late):.2f}",
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
