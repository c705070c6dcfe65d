"""docs/parameters.md, from the models that check params.yaml: each field's meaning, what is allowed, its default."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    sections = {
        name: field.annotation
        for name, field in Experiment.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    page = [HEAD, *_table("A row", Experiment, (), defaults, leave_out=sections)]
    for name, section in sections.items():
        page += _table(f"{name}: {Experiment.model_fields[name].description}", section, (name,), defaults.get(name, {}))
    return "\n".join(page) + "\n"


def _table(
    title: str,
    section: type[Section],
    place: tuple[str, ...],
    defaults: Mapping[str, Any],
    leave_out: Mapping[str, Any] | None = None,
) -> list[str]:
    lines = [f"\n## {title}\n", "| field | meaning | allowed | default |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        if name not in (leave_out or {}):
            allowed = config.allowed(*place, name).replace("|", "\\|")
            default = f"`{shown(defaults[name])}`" if name in defaults else "each row states it"
            lines.append(f"| `{name}` | {field.description} | {allowed} | {default} |")
    return lines
