"""docs/parameters.md, from the models that check params.yaml: each field's meaning, what is allowed, its default."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from ffrepro import config
from ffrepro.config import Experiment, Section
from ffrepro.deviations import shown

HEAD = """# Parameters

Every field of a row of [params.yaml](../params.yaml). A row states only what differs from `defaults`, or from the row
that it is `like`; `ffrepro params show ROW` prints one with everything filled in, and `ffrepro params check` tells of
every mistake at once.
Written by `ffrepro params handbook` from the models in `ffrepro/config.py`, which check the file."""


def markdown(params: Path) -> str:
    """The whole page; params: params.yaml, sound."""
    defaults = config.defaults(params)
    single: dict[str, FieldInfo] = {}
    sections: list[str] = []
    for name, field in Experiment.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            sections += _table(f"{name}: {field.description}", kind.model_fields, (name,), defaults.get(name, {}))
        else:
            single[name] = field
    return "\n".join([HEAD, *_table("A row", single, (), defaults), *sections]) + "\n"


def _table(
    title: str, fields: Mapping[str, FieldInfo], place: tuple[str, ...], defaults: Mapping[str, Any]
) -> list[str]:
    lines = [f"\n## {title}\n", "| field | meaning | allowed | default |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        allowed = config.allowed(*place, name).replace("|", "\\|")
        default = f"`{shown(defaults[name])}`" if name in defaults else "each row states it"
        lines.append(f"| `{name}` | {field.description} | {allowed} | {default} |")
    return lines
