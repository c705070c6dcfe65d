"""What is known of each row: the accuracy of its runs here, else what is committed of it; and the verdict."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ffrepro import config, record
from ffrepro.config import Experiment, Section, Seeds, training_parameters
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import Percent, Seconds, Target, Text, measured, read_references, spread

HERE, COMMITTED, RELEASED = "here", "committed", "released"


class _Read(Section):
    """What is read of a file that holds more, which `ffrepro verify` looks at."""

    model_config = ConfigDict(extra="ignore")


class _Metrics(_Read):
    accuracy: Percent
    blocks: dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}$")], Percent] = Field(min_length=1)


class _Environment(_Read):
    device: Text
    gpu: Text | None = None


class _Record(_Read):
    ffrepro: Text
    environment: _Environment
    seconds: Seconds


def collect(name: str, row: Experiment, seeds: tuple[int, ...], project: Layout) -> list[dict[str, Any]]:
    """{"metrics", "record"} of exactly the given seeds, in their order.

    Raises UserError for missing, damaged runs and those of other parameters, all such seeds in one line, and for a run
    of a seed that is not declared: no seed is dropped, and no number of another run gets into the mean. In `results`
    runs of a row's own seeds may lie beside those of its reference.
    """
    folder, of_results = project.run(name, seeds[0]).parent, project.runs == "results"
    found = {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
    declared = {*seeds, *row.seeds, *row.verdict.reference_seeds} if of_results else set(seeds)
    foreign = sorted(found - {str(seed) for seed in declared})
    if foreign:
        raise UserError(
            f"{folder.parent.name}/{name}: run {foreign[0]} is of no declared seed "
            f"({', '.join(map(str, sorted(declared)))}); remove that folder, or declare the seed in params.yaml"
        )
    runs: list[dict[str, Any]] = []
    failed: dict[int, str] = {}
    for seed in seeds:
        run = project.run(name, seed)
        missing = [file for file in ("metrics.json", "record.json") if not (run / file).exists()]
        if missing:
            failed[seed] = f"no {' and no '.join(missing)}"
            continue
        try:
            metrics, facts = record.read_json(run / "metrics.json"), record.read_json(run / "record.json")
        except UserError as error:
            failed[seed] = str(error).removeprefix(f"{run}/")
            continue
        try:
            _Metrics.model_validate(metrics), _Record.model_validate(facts)
        except ValidationError as error:
            failed[seed] = f"{error.title.strip('_').lower()}.json is not what a stage writes"
            continue
        checks = {
            "seed": (facts.get("seed"), seed),
            "training parameters": (facts.get("parameters"), record.text_hash(training_parameters(row))),
            "weights": (metrics.get("weights"), facts.get("weights")),
            "vote": (metrics.get("vote"), row.evaluation.vote),
            "blocks": (list(metrics["blocks"]), list((runs[0]["metrics"] if runs else metrics)["blocks"])),
        }
        differs = [what for what, (has, wants) in checks.items() if has != wants]
        if differs:
            failed[seed] = f"of other {', '.join(differs)}"
        runs.append({"metrics": metrics, "record": facts})
    if failed:
        which = "; ".join(f"seed {seed}: {why}" for seed, why in failed.items())
        count = f"{len(failed)} of {len(seeds)} declared seeds failed"
        again = "restore what is committed" if of_results else "run `dvc repro` for them again"
        raise UserError(f"{folder.parent.name}/{name}: {count}: {which}; every declared seed counts: {again}")
    return runs


def devices(runs: list[dict[str, Any]]) -> str:
    """What the runs were trained on, each once."""
    return ", ".join(
        sorted({env.get("gpu") or env["device"] for env in (run["record"]["environment"] for run in runs)})
    )


class Accuracy(Section):
    """As `spread` makes it, in percent."""

    mean: Percent
    std: Percent | None
    n: int
    values: list[Percent] = Field(min_length=1)


class Summary(Section):
    """What is read of the file that the report stage writes about a row."""

    model_config = ConfigDict(extra="ignore")

    accuracy: Accuracy
    seeds: Seeds
    seconds: Seconds
    device: Text

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> "Summary":
        if not len(self.seeds) == self.accuracy.n == len(self.accuracy.values):
            raise ValueError("not one value a seed")
        return self


class NotWorse(Section):
    model_config = ConfigDict(extra="ignore")

    words: Text


class Judged(Summary):
    """And of that of the verdict stage."""

    difference: float | None
    p: float | None
    rule: Text
    verdict: Literal["reproduced", "not reproduced", "inconclusive"]
    why: Text
    not_worse: NotWorse | None


class Result(NamedTuple):
    """A row's measured accuracy.

    source: `HERE`, of the row's seeds; `COMMITTED`, of its reference seeds; or `RELEASED`, of as many of the row's
    seeds as lie in `results`.
    """

    source: str
    accuracy: dict[str, Any]  # mean, std, n and values, in percent
    seeds: list[int]
    seconds: float  # of training a seed
    device: str
    gap: str = ""  # "1 of 5 seeds", where not all have been run: no rule judges those

    @property
    def folder(self) -> str:
        """Where its runs lie, as `Layout.runs`."""
        return "runs" if self.source == HERE else "results"


def known(project: Layout) -> dict[str, Result]:
    """The results by row, for rows that have any. What was measured with other parameters than the row's is none."""
    elsewhere, found = committed(project), {}
    for name, row in config.load(project.params).experiments.items():
        if summary := _of(row, project.summary(name), Summary):
            accuracy, n = summary["accuracy"], summary["accuracy"]["n"]
            found[name] = Result(HERE, accuracy, summary["seeds"], summary["seconds"] / n, summary["device"])
        elif name in elsewhere:
            found[name] = elsewhere[name]
    return found


def committed(project: Layout) -> dict[str, Result]:
    """Of `known`, what is committed: a row's reference, else the released runs of its own seeds."""
    references, found = read_references(project.reference), {}
    for name, row in config.load(project.params).experiments.items():
        if name in references and references[name].row == measured(row):
            its = references[name]
            found[name] = Result(COMMITTED, spread(list(its.values)), list(its.seeds), its.seconds, its.machine)
        elif ours := _released(project, name, row):
            found[name] = ours
    return found


def _released(project: Layout, name: str, row: Experiment) -> Result | None:
    place = Layout(project.root, "results")
    seeds = tuple(seed for seed in row.seeds if place.run(name, seed).is_dir())
    if not seeds or measured(config.read_experiment(place.experiment(name))) != measured(row):
        return None
    runs = collect(name, row, seeds, place)
    accuracy = spread([run["metrics"]["accuracy"] for run in runs])
    seconds = sum(run["record"]["seconds"] for run in runs) / len(runs)
    gap = f"{len(seeds)} of {len(row.seeds)} seeds" if len(seeds) < len(row.seeds) else ""
    return Result(RELEASED, accuracy, list(seeds), seconds, devices(runs), gap)


def judged(project: Layout, name: str, row: Experiment, target: Target | None) -> dict[str, Any] | None:
    """The verdict on the row's runs here; none where it is of other parameters or another target."""
    result = _of(row, project.verdict(name), Judged)
    return result if result and result.get("target") == (target.model_dump() if target else None) else None


def _of(row: Experiment, path: Path, model: type[Section]) -> dict[str, Any] | None:
    """What a stage wrote about the row; none where it is of other parameters. Raises UserError for what none wrote."""
    if not path.exists():
        return None
    content = record.read_json(path)
    try:
        if content["row"] != record.text_hash(config.canonical(row)):
            return None
        model.model_validate(content)
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{path}: not what a stage writes; delete it and run `dvc repro` again") from None
    whole: dict[str, Any] = content
    return whole
