"""What is known of each row: the accuracy of its runs here, else that of the committed reference; and the verdict."""

from pathlib import Path
from typing import Any, NamedTuple

from ffrepro import config, record
from ffrepro.config import Experiment
from ffrepro.layout import Layout
from ffrepro.targets import Target, measured, read_references, spread

HERE, COMMITTED = "here", "committed"


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
        if summary := _of(row, project.summary(name)):
            accuracy, n = summary["accuracy"], summary["accuracy"]["n"]
            found[name] = Result(HERE, accuracy, summary["seeds"], summary["seconds"] / n, summary["device"])
        elif name in references and references[name].row == measured(row):
            its = references[name]
            found[name] = Result(COMMITTED, spread(list(its.values)), list(its.seeds), its.seconds, its.machine)
    return found


def judged(project: Layout, name: str, row: Experiment, target: Target | None) -> dict[str, Any] | None:
    """The verdict on the row's runs here; none where it is of other parameters or another target."""
    result = _of(row, project.verdict(name))
    return result if result and result["target"] == (target.model_dump() if target else None) else None


def _of(row: Experiment, path: Path) -> dict[str, Any] | None:
    """What a stage wrote about the row; none where it is of other parameters."""
    content: dict[str, Any] | None = record.read_json(path) if path.exists() else None
    return content if content and content["row"] == record.text_hash(config.canonical(row)) else None
