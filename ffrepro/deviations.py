"""Where this project, and each of its rows, departs from the authors' code, and from other code that made a published
value (deviations.yaml)."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from ffrepro import errors
from ffrepro.config import Experiment, Name, Section, checked, impossible, read_yaml

SECTIONS = ("data", "augmentation", "network", "training", "evaluation")
"""The sections of a row that decide its numbers: each of their fields is in deviations.yaml."""

WORDS = ("theirs", "here", "why")  # what is told of a departure

VALUE = "a value that the field may have in params.yaml"
Place = Annotated[str, Field(pattern=r"^[a-z]+\.[a-z_]+$")]
Words = Annotated[str, Field(min_length=1, max_length=300)]


def fields() -> dict[str, TypeAdapter[Any]]:
    """The fields of a row's numbers by their paths, such as training.lr, with what checks a value for them."""
    found: dict[str, TypeAdapter[Any]] = {}
    for section in SECTIONS:
        model = Experiment.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, Section)
        for name, field in model.model_fields.items():
            found[f"{section}.{name}"] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    return found


class Departure(Section):
    """A deviation that is no field's. Its key says of what, or of which row's published value."""

    theirs: Words
    here: Words
    why: Words

    @property
    def words(self) -> tuple[str, str, str]:
        """As `WORDS` names them."""
        return self.theirs, self.here, self.why


class Deviation(Section):
    """Of a field: the authors' value, and why rows have another one."""

    theirs: Annotated[Any, WithJsonSchema({"enum": [VALUE]})]
    why: Words


class Deviations(Section):
    """The whole of deviations.yaml. Every field of a row's numbers is in one of `fields` and `choices`.

    always: of every row. targets: of rows whose published value the authors' code did not make.
    """

    always: dict[Name, Departure] = Field(min_length=1)
    targets: dict[Name, Departure] = Field(default_factory=dict)
    fields: dict[Place, Deviation]
    choices: dict[Place, Words]

    @model_validator(mode="before")
    @classmethod
    def _fields_exist(cls, content: Any) -> Any:
        known, wrong = fields(), list[tuple[str, object, str]]()
        for part in ("fields", "choices"):
            given = content.get(part) if isinstance(content, dict) else None
            unknown = [key for key in given if key not in known] if isinstance(given, dict) else []
            wrong += [(part, key, f"a field of a row's numbers: {', '.join(known)}") for key in unknown]
        if wrong:
            raise impossible(wrong)
        return content

    @model_validator(mode="after")
    def _complete(self) -> "Deviations":
        wrong: list[tuple[str, object, str]] = []
        for path, kind in fields().items():
            if path not in self.fields and path not in self.choices:
                wrong.append((path, None, "an entry in fields or in choices, for every field of a row's numbers"))
            elif path in self.fields and path in self.choices:
                wrong.append(("choices", path, "what is not in fields"))
            elif path in self.fields:
                theirs = self.fields[path].theirs
                try:
                    kind.validate_python(theirs, strict=True)
                except ValidationError:
                    wrong.append((f"fields.{path}.theirs", theirs, VALUE))
        if wrong:
            raise impossible(wrong)
        return self


def read(path: Path) -> Deviations:
    """Raises UserError in one line for each mistake in the file."""
    return checked(Deviations, read_yaml(path), path.name)


def check(deviations: Deviations, targets: Collection[str]) -> None:
    """Refuse in `targets` what is no row with a published value. targets: those of paper.yaml."""
    for name in deviations.targets:
        errors.require_known(f"deviations.yaml: targets.{name}: no such target in paper.yaml", name, targets)


Lines = list[tuple[str, ...]]


def overall(deviations: Deviations, rows: Collection[str]) -> tuple[Lines, Lines]:
    """What departs in every row, and what in those of `rows` whose published value the authors' code did not make: what
    or which row, then its `WORDS`."""
    always: Lines = [(name.replace("-", " "), *entry.words) for name, entry in deviations.always.items()]
    targets: Lines = [(name, *entry.words) for name, entry in deviations.targets.items() if name in rows]
    return always, targets


def of(row: Experiment, deviations: Deviations) -> Iterator[tuple[str, str, str, str]]:
    """(field, its value here, the authors', why) of each field in which the row departs from the authors' code."""
    values = row.model_dump(mode="json")
    for path, entry in deviations.fields.items():
        section, name = path.split(".")
        value = values[section][name]
        if value != entry.theirs:
            yield path, shown(value), shown(entry.theirs), entry.why


def shown(value: object) -> str:
    """A value as params.yaml writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
