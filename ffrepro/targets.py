"""What rows are compared with: the published value (paper.yaml), else the measured one (results/reference.json), the
tables that rows are cells of, and the claims that set cells against one another."""

import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ffrepro import record
from ffrepro.config import Experiment, Name, Params, Section, Seeds, checked, impossible, read_yaml, training_parameters
from ffrepro.errors import UserError, require_known

Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Words = Annotated[str, Field(max_length=1000)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("characters that cannot be printed")
    return text


Text = Annotated[Words, AfterValidator(_printable)]
"""Of a file that was written by a command and is printed again: half of a character would end that in a traceback, and
control characters would have the terminal do something."""


class Published(Section):
    """One published test accuracy in percent."""

    mean: Percent
    std: Percent | None = Field(description="None where the source prints no spread.")
    decimals: int = Field(2, ge=0, le=2, description="As many as the source prints.")
    source: str


CELL = r"^[a-z0-9-]+\.[a-z0-9-]+$"
PAIRS = "a list of [higher cell, lower cell], ROW.COLUMN each, every pair of two different cells and there once"


def _pairs(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """The pairs, or one error for the whole list instead of one an item."""
    try:
        values = check(tuple(tuple(p) if isinstance(p, list) else p for p in given) if type(given) is list else given)
    except ValidationError:
        values = ()
    if not values or any(higher == lower for higher, lower in values) or len(set(values)) < len(values):
        raise PydanticCustomError("pairs", PAIRS)
    return values


Cell = Annotated[str, Field(pattern=CELL)]


class Table(Section):
    """A table of experiments: its cells by row and column."""

    title: str = Field(min_length=1, max_length=120)
    rows: dict[Name, dict[Name, Name]] = Field(min_length=1)

    @property
    def cells(self) -> dict[str, str]:
        """The experiments by ROW.COLUMN."""
        return {f"{row}.{column}": name for row, cells in self.rows.items() for column, name in cells.items()}


class WrittenClaim(Section):
    """A comparison between cells that the paper makes, for each of some tables."""

    claim: str = Field(min_length=1, max_length=200, description="In words.")
    source: str
    each: bool = Field(description="Whether every pair must hold, or the mean over the pairs.")
    tables: list[Name] = Field(min_length=1)
    pairs: Annotated[tuple[tuple[Cell, Cell], ...], WrapValidator(_pairs), WithJsonSchema({"enum": [PAIRS]})]


class Claim(NamedTuple):
    """A comparison between experiments: a written claim in one of its tables."""

    claim: str
    table: str
    each: bool
    pairs: tuple[tuple[str, str], ...]  # (higher, lower)


class Paper(Section):
    """The whole of paper.yaml."""

    sources: dict[Name, Words]
    targets: dict[Name, Published]
    tables: dict[Name, Table]
    claims: dict[Name, WrittenClaim]

    @model_validator(mode="after")
    def _names_are_there(self) -> "Paper":
        there_are = ", ".join(self.sources)
        given = [(f"targets.{name}.source", target.source) for name, target in self.targets.items()]
        given += [(f"claims.{name}.source", claim.source) for name, claim in self.claims.items()]
        unknown: list[tuple[str, object, str]] = [(*one, there_are) for one in given if one[1] not in self.sources]
        for name, claim in self.claims.items():
            for table in claim.tables:
                if table not in self.tables:
                    unknown.append((f"claims.{name}.tables", table, ", ".join(self.tables)))
                    continue
                cells = self.tables[table].cells
                unknown += [
                    (f"claims.{name}.pairs", cell, f"cells of {table}: {', '.join(cells)}")
                    for cell in dict.fromkeys(cell for pair in claim.pairs for cell in pair)
                    if cell not in cells
                ]
        if unknown:
            raise impossible(unknown)
        return self


class Reference(Section):
    """What `ffrepro reference` measured for a row: one test accuracy a seed, and where."""

    seeds: Seeds
    values: tuple[Percent, ...] = Field(strict=False)
    mean: Percent
    std: Percent | None = Field(description="None for one seed.")
    seconds: Seconds = Field(description="Training time a seed, mean.")
    row: Text = Field(description="What it was measured of, `measured`.")
    command: Text
    machine: Text
    ffrepro: Text

    @model_validator(mode="after")
    def _adds_up(self) -> "Reference":
        known = spread(list(self.values)) if len(self.values) == len(self.seeds) else {"mean": math.nan, "std": None}
        if not (_close(self.mean, known["mean"]) and _close(self.std, known["std"])):
            raise ValueError("mean and std are not those of the values, one a seed")
        return self


def _close(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, abs_tol=1e-9)


class Target(Section):
    """What a verdict compares with. n: the number of seeds of a reference; unknown (None) for a published value."""

    kind: str
    mean: Percent
    std: Percent | None
    n: int | None
    values: list[Percent] | None = Field(description="Of a reference, one a seed; None for a published value.")
    source: str
    decimals: int = 2
    row: str | None = Field(description="What a reference was measured of, `measured`; None for a published value.")
    seeds: list[int] | None = Field(None, description="Those of a reference.")


def measured(row: Experiment) -> str:
    """Hash of what a row's accuracy depends on: a reference of something else must not be compared with."""
    return record.text_hash(f"{training_parameters(row)} {row.evaluation.vote}")


def target_of(targets: Mapping[str, Target], name: str, row: Experiment) -> Target | None:
    """The row's target; none where the reference is not this row's (`_is_of`)."""
    target = targets.get(name)
    return target if target and (target.kind == "published" or _is_of(row, target)) else None


def reference_of(references: Mapping[str, Reference], name: str, row: Experiment) -> Reference | None:
    """What was measured for the row; none where that is not this row's (`_is_of`)."""
    reference = references.get(name)
    return reference if reference and _is_of(row, reference) else None


def _is_of(row: Experiment, reference: Reference | Target) -> bool:
    """Whether it was measured with the row's parameters and reference seeds: not with others, which might be the row's
    own, and would be compared with themselves."""
    seeds = set(reference.seeds or ())
    return reference.row == measured(row) and seeds == set(row.verdict.reference_seeds)


def read_paper(path: Path) -> dict[str, Target]:
    """The published values by row. Raises UserError in one line for each mistake in the file."""
    paper = checked(Paper, read_yaml(path), path.name)
    return {
        name: Target(
            kind="published",
            mean=value.mean,
            std=value.std,
            n=None,
            values=None,
            source=paper.sources[value.source],
            decimals=value.decimals,
            row=None,
        )
        for name, value in paper.targets.items()
    }


def read_tables(path: Path, rows: Iterable[str] | None = None) -> dict[str, Table]:
    """The tables of experiments by their names. Raises UserError in one line for each mistake in the file.

    rows: those that there are; a cell of another one is a mistake.
    """
    tables = checked(Paper, read_yaml(path), path.name).tables
    if rows is not None:
        for name, table in tables.items():
            for row in table.cells.values():
                require_known(f"{path.name}: tables.{name}: no row {row!r}", row, rows)
    return tables


def rows_of(paper: Path, params: Params, names: Iterable[str]) -> list[str]:
    """The rows that names mean, of rows and of tables in paper.yaml, each once. Raises UserError for another name."""
    tables, rows = read_tables(paper, params.experiments), list[str]()
    for name in names:
        require_known(f"no row and no table {name!r}", name, [*params.experiments, *tables])
        rows += [name] if name in params.experiments else tables[name].cells.values()
    return list(dict.fromkeys(rows))


def read_claims(path: Path) -> dict[str, Claim]:
    """The paper's claims by CLAIM.TABLE. Raises UserError in one line for each mistake in the file."""
    paper = checked(Paper, read_yaml(path), path.name)
    found = {}
    for name, claim in paper.claims.items():
        for table in claim.tables:
            cells = paper.tables[table].cells
            pairs = tuple((cells[higher], cells[lower]) for higher, lower in claim.pairs)
            found[f"{name}.{table}"] = Claim(claim.claim, table, claim.each, pairs)
    return found


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
            values=list(value.values),
            source=f"results/reference.json: `{value.command}` on {value.machine}, ffrepro {value.ffrepro}",
            row=value.row,
            seeds=list(value.seeds),
        )
        for name, value in read_references(reference).items()
    }
    return {**references, **read_paper(paper)}


def spread(values: list[float]) -> dict[str, Any]:
    """mean, sample standard deviation (None for one value), n and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }
