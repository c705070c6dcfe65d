"""What is known of each row: the accuracy of its runs here, else that of the committed reference."""

from typing import Any, NamedTuple

from ffrepro import config, record
from ffrepro.layout import Layout
from ffrepro.targets import measured, read_references, spread

HERE, COMMITTED = "here", "committed"


class Result(NamedTuple):
    """A row's measured accuracy. source: `HERE`, of the row's seeds, or `COMMITTED`, of its reference seeds."""

    source: str
    accuracy: dict[str, Any]  # mean, std, n and values, in percent
    seeds: list[int]
    seconds: float  # of training a seed
    device: str


def known(project: Layout) -> dict[str, Result]:
    """The results by row, for rows that have any. What was measured with other parameters than the row's is none."""
    references, found = read_references(project.reference), {}
    for name, row in config.load(project.params).experiments.items():
        path = project.summary(name)
        summary = record.read_json(path) if path.exists() else None
        if summary and summary["row"] == record.text_hash(config.canonical(row)):
            accuracy, n = summary["accuracy"], summary["accuracy"]["n"]
            found[name] = Result(HERE, accuracy, summary["seeds"], summary["seconds"] / n, summary["device"])
        elif name in references and references[name].row == measured(row):
            its = references[name]
            found[name] = Result(COMMITTED, spread(list(its.values)), list(its.seeds), its.seconds, its.machine)
    return found
