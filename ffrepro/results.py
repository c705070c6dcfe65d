"""What is known of each row: the accuracy of its runs here, else that of the committed reference; and the verdict."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ffrepro import config, record
from ffrepro.config import Experiment, Section, Seeds
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import Percent, Seconds, Target, Text, measured, read_references, spread

HERE, COMMITTED = "here", "committed"


class Accuracy(Section):
    """As `spread` makes it, in percent."""

    mean: Percent
    std: Percent | None
    n: int
    values: list[Percent] = Field(min_length=1)


class Summary(Section):
    """What is read of the file that the report stage writes about a row."""

    model_config = ConfigDict(extra="ignore")

    accuracy: Accuracy
    seeds: Seeds
    seconds: Seconds
    device: Text

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> "Summary":
        if not len(self.seeds) == self.accuracy.n == len(self.accuracy.values):
            raise ValueError("not one value a seed")
        return self


class NotWorse(Section):
    model_config = ConfigDict(extra="ignore")

    words: Text


class Judged(Summary):
    """And of that of the verdict stage."""

    difference: float | None
    p: float | None
    rule: Text
    verdict: Literal["reproduced", "not reproduced", "inconclusive"]
    why: Text
    not_worse: NotWorse | None


class Result(NamedTuple):
    """A row's measured accuracy. source: `HERE`, of the row's seeds, or `COMMITTED`, of its reference seeds."""

    source: str
    accuracy: dict[str, Any]  # mean, std, n and values, in percent
    seeds: list[int]
    seconds: float  # of training a seed
    device: str

    @property
    def folder(self) -> str:
        """Where its runs lie, as `Layout.runs`."""
        return "runs" if self.source == HERE else "results"


def known(project: Layout) -> dict[str, Result]:
    """The results by row, for rows that have any. What was measured with other parameters than the row's is none."""
    references, found = read_references(project.reference), {}
    for name, row in config.load(project.params).experiments.items():
        if summary := _of(row, project.summary(name), Summary):
            accuracy, n = summary["accuracy"], summary["accuracy"]["n"]
            found[name] = Result(HERE, accuracy, summary["seeds"], summary["seconds"] / n, summary["device"])
        elif name in references and references[name].row == measured(row):
            its = references[name]
            found[name] = Result(COMMITTED, spread(list(its.values)), list(its.seeds), its.seconds, its.machine)
    return found


def judged(project: Layout, name: str, row: Experiment, target: Target | None) -> dict[str, Any] | None:
    """The verdict on the row's runs here; none where it is of other parameters or another target."""
    result = _of(row, project.verdict(name), Judged)
    return result if result and result.get("target") == (target.model_dump() if target else None) else None


def _of(row: Experiment, path: Path, model: type[Section]) -> dict[str, Any] | None:
    """What a stage wrote about the row; none where it is of other parameters. Raises UserError for what none wrote."""
    if not path.exists():
        return None
    content = record.read_json(path)
    try:
        if content["row"] != record.text_hash(config.canonical(row)):
            return None
        model.model_validate(content)
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{path}: not what a stage writes; delete it and run `dvc repro` again") from None
    whole: dict[str, Any] = content
    return whole
