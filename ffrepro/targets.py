"""What a row is compared with: the published value (paper.yaml), else the one measured here (results/reference.json)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ffrepro import record
from ffrepro.config import Name, Section, read_yaml
from ffrepro.errors import UserError

Percent = Annotated[float, Field(ge=0, le=100)]


class Published(Section):
    """One published test accuracy in percent."""

    mean: Percent
    std: Percent
    source: str


class Paper(Section):
    """The whole of paper.yaml."""

    sources: dict[Name, str]
    targets: dict[Name, Published]


class Reference(Section):
    """What `ffrepro reference` measured for a row: one test accuracy a seed, and where."""

    seeds: tuple[int, ...] = Field(strict=False)
    values: tuple[Percent, ...] = Field(strict=False)
    mean: Percent
    std: Percent
    seconds: float = Field(description="Training time a seed, mean.")
    row: str = Field(description="Hash of the row's training parameters, record.text_hash.")
    command: str
    machine: str
    ffrepro: str


class Target(Section):
    """The value that a verdict compares with; n is unknown (None) for a published one and the number of seeds for a reference."""

    kind: str
    mean: Percent
    std: Percent
    n: int | None
    source: str


def read_paper(path: Path) -> dict[str, Target]:
    """The published values by row. Raises UserError in one line for each mistake in the file."""
    try:
        paper = Paper.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"{path.name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from None
    for name, value in paper.targets.items():
        if value.source not in paper.sources:
            raise UserError(
                f"{path.name}: targets.{name}.source: given {value.source!r}; allowed: {', '.join(paper.sources)}"
            )
    return {
        name: Target(kind="published", mean=value.mean, std=value.std, n=None, source=paper.sources[value.source])
        for name, value in paper.targets.items()
    }


def read_references(path: Path) -> dict[str, Reference]:
    """The values measured here by row; none when the file is not there yet."""
    if not path.exists():
        return {}
    content = record.read_json(path)
    try:
        return {name: Reference.model_validate(value) for name, value in content.items()}
    except (ValidationError, AttributeError):
        raise UserError(f"{path.name}: not what `ffrepro reference` writes; restore the committed file") from None


def read_targets(paper: Path, reference: Path) -> Mapping[str, Target]:
    """A target for each row that has one: the published value where there is one, else the reference."""
    references = {
        name: Target(
            kind="reference",
            mean=value.mean,
            std=value.std,
            n=len(value.values),
            source=f"results/reference.json: `{value.command}` on {value.machine}, ffrepro {value.ffrepro}",
        )
        for name, value in read_references(reference).items()
    }
    return {**references, **read_paper(paper)}


def spread(values: list[float]) -> dict[str, Any]:
    """mean, sample standard deviation (None for one value), n and the values themselves."""
    import statistics

    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }
