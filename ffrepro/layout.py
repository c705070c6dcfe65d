"""Where the files and folders of a project lie. How the files of a run's folder are called, its stages say."""

import os
from dataclasses import dataclass
from pathlib import Path

from ffrepro.errors import UserError

RELEASED = "released.safetensors"
"""A published run's weights in float16, where in float32 they are too large to publish."""


@dataclass(frozen=True)
class Layout:
    """Paths below a project's root. `runs` is the folder of the runs: `runs`, or `results` for what is
    committed."""

    root: Path
    runs: str = "runs"

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def paper(self) -> Path:
        return self.root / "paper.yaml"

    @property
    def deviations(self) -> Path:
        return self.root / "deviations.yaml"

    @property
    def graph(self) -> Path:
        return self.root / "graph.yaml"

    @property
    def reference(self) -> Path:
        return self.root / "results" / "reference.json"

    def committed_records(self, name: str) -> list[Path]:
        """Records to compare a row's runs with, bit for bit: of its reference seeds, and of its own."""
        results = self.root / "results"
        return sorted(results.glob(f"{name}/*/record.json")) + sorted((results / "records").glob(f"{name}-[0-9]*.json"))

    @property
    def downloads(self) -> Path:
        """Canonical files as `fetch` verified them; FFREPRO_DATA puts them elsewhere, for several projects to share."""
        return Path(os.environ.get("FFREPRO_DATA") or self.root / "data" / "downloads")

    def data(self, name: str) -> Path:
        return self.root / "data" / f"{name}.safetensors"

    def experiment(self, name: str) -> Path:
        return self.root / self.runs / name / "experiment.json"

    def run(self, name: str, seed: int) -> Path:
        return self.root / self.runs / name / str(seed)

    def released(self, name: str, seed: int) -> Path:
        return self.run(name, seed) / RELEASED

    def checkpoint(self, name: str, seed: int) -> Path:
        """Beside the runs, not in them: no result, and no output of a stage."""
        return self.root / "checkpoints" / f"{name}-{seed}.pt"

    def lock(self, what: str = "ffrepro") -> Path:
        """Of a run (digits-0), of data (data-mnist), of the report or of the project; not in the runs, which are
        data."""
        return self.root / ".dvc" / "tmp" / f"{what}.lock"

    @property
    def cluster(self) -> Path:
        return self.root / "cluster.yaml"

    @property
    def jobs(self) -> Path:
        """What was submitted, and what the jobs said."""
        return self.root / "jobs"

    @property
    def slurm(self) -> Path:
        """What submitit keeps of all jobs."""
        return self.jobs / "slurm"

    def job(self, name: str, seed: int) -> Path:
        return self.jobs / f"{name}-{seed}.json"

    def log(self, name: str, seed: int) -> Path:
        return self.jobs / f"{name}-{seed}.log"

    @property
    def dvc_lock(self) -> Path:
        return self.root / "dvc.lock"

    def summary(self, name: str) -> Path:
        return self.root / "report" / "rows" / f"{name}.json"

    def verdict(self, name: str) -> Path:
        return self.root / "report" / "verdicts" / f"{name}.json"

    def table(self, ending: str) -> Path:
        return self.root / "report" / f"table.{ending}"

    def paper_table(self, file: str) -> Path:
        return self.root / "report" / "tables" / file

    def claims(self, ending: str) -> Path:
        return self.root / "report" / f"claims.{ending}"

    @property
    def page(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def figures(self) -> Path:
        return self.root / "report" / "figures"


def find(runs: str = "runs") -> Layout:
    """The project that the current folder lies in; runs: as in `Layout`. Raises UserError where there is none."""
    try:
        start = Path.cwd().resolve()
    except FileNotFoundError:
        raise UserError("the current folder is not there any more; go to your clone") from None
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return Layout(folder, runs)
    raise UserError(
        f"no ffrepro project in {start.name or start} or above it (params.yaml and dvc.yaml); go to your clone"
    )
