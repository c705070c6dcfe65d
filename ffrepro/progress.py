"""What a person sees of a long job: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

QUIET = 5.0  # seconds between two plain lines at the least


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def tell(finding: str, holds: bool | None, indent: str = "") -> None:
    """What was found, on stdout: ok, NO, or -- where it cannot be told or is a plain fact."""
    mark, colour = {True: ("ok", "green"), False: ("NO", "red"), None: ("--", None)}[holds]
    typer.secho(f"{indent}{mark}", fg=colour, nl=False)
    print(f" {finding}", flush=True)


def say(line: str) -> None:
    """One line about what is going on; stdout is kept for results."""
    print(line, file=sys.stderr, flush=True)


class _Bar:
    """A bar on a terminal; elsewhere it takes the same calls and shows nothing."""

    def __init__(self, *columns: ProgressColumn) -> None:
        shown = TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn()
        self.bar = Progress(*shown, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.spoke = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, line: str, *, at_once: bool = False) -> None:
        """A plain line where there is no bar, and none was said just now."""
        if self.bar.disable and (at_once or time.monotonic() - self.spoke > QUIET):
            say(line)
            self.spoke = time.monotonic()


class TrainingProgress(_Bar):
    """Loss, images per second and time left of one training. Reads no tensor within an epoch."""

    def __init__(self, title: str, epochs: int, steps: int) -> None:
        super().__init__(TextColumn("{task.fields[facts]}"))
        self.title, self.epochs, self.steps = title, epochs, steps
        self.task = self.bar.add_task(title, total=epochs * steps, facts="")
        self.seconds: list[float] = []

    def step(self, epoch: int, step: int) -> None:
        self.bar.update(self.task, completed=epoch * self.steps + step + 1)

    def finished(self, entry: dict[str, Any]) -> None:
        losses = [value for key, value in entry.items() if key.startswith("loss_")]
        held_out = [value for key, value in entry.items() if key.startswith("held_out_")]
        facts = f"loss {losses[-1]:.3f}  {entry['images_per_second']:.0f} images/s"
        if held_out:
            facts += f"  held-out {held_out[-1]:.2f} %"
        self.bar.update(self.task, facts=facts)
        first, last = not self.seconds, entry["epoch"] == self.epochs
        self.seconds.append(entry["seconds"])
        left = duration(sum(self.seconds) / len(self.seconds) * (self.epochs - entry["epoch"]))
        self.say(f"{self.title}: epoch {entry['epoch']}/{self.epochs}  {facts}  {left} left", at_once=first or last)


class DownloadProgress(_Bar):
    """Bytes of the files that are being fetched."""

    def __init__(self) -> None:
        super().__init__(DownloadColumn(), TransferSpeedColumn())
        self.tasks: dict[str, TaskID] = {}

    def report(self, name: str, done: int, total: int | None) -> None:
        name = name.removesuffix(".part").removesuffix(".download")
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=total)
        self.bar.update(self.tasks[name], completed=done, total=total)
        self.say(f"{name}: {done >> 20} of {f'{total >> 20} MiB' if total else 'unknown size'}")
