"""What a person sees of a long job: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

QUIET = 5.0  # seconds between two plain lines at the least


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def say(line: str) -> None:
    """One line about what is going on; stdout is kept for results."""
    print(line, file=sys.stderr, flush=True)


class TrainingProgress:
    """Loss, images per second and time left of one training. Reads no tensor within an epoch."""

    def __init__(self, title: str, epochs: int, steps: int) -> None:
        self.title, self.epochs, self.steps = title, epochs, steps
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self.task = self.bar.add_task(title, total=epochs * steps, facts="") if self.bar else None
        self.spoke = -QUIET
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, epoch: int, step: int) -> None:
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=epoch * self.steps + step + 1)

    def finished(self, entry: dict[str, Any]) -> None:
        losses = [value for key, value in entry.items() if key.startswith("loss_")]
        held_out = [value for key, value in entry.items() if key.startswith("held_out_")]
        facts = f"loss {losses[-1]:.3f}  {entry['images_per_second']:.0f} images/s"
        if held_out:
            facts += f"  held-out {held_out[-1]:.2f} %"
        self.seconds.append(entry["seconds"])
        if self.bar and self.task is not None:
            self.bar.update(self.task, facts=facts)
        elif time.monotonic() - self.spoke > QUIET or entry["epoch"] == self.epochs:
            left = sum(self.seconds) / len(self.seconds) * (self.epochs - entry["epoch"])
            say(f"{self.title}: epoch {entry['epoch']}/{self.epochs}  {facts}  {duration(left)} left")
            self.spoke = time.monotonic()


class DownloadProgress:
    """Bytes of the files that are being fetched."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self.tasks: dict[str, Any] = {}
        self.spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def report(self, name: str, done: int, total: int | None) -> None:
        name = name.removesuffix(".part").removesuffix(".download")
        if self.bar:
            if name not in self.tasks:
                self.tasks[name] = self.bar.add_task(name, total=total)
            self.bar.update(self.tasks[name], completed=done, total=total)
        elif time.monotonic() - self.spoke > QUIET:
            say(f"{name}: {done >> 20} of {f'{total >> 20} MiB' if total else 'unknown size'}")
            self.spoke = time.monotonic()
