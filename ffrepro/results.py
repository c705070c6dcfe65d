"""What is known of each row: the accuracy of its runs here, else what is committed of it; and the verdict."""

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from ffrepro import config, record
from ffrepro.config import Experiment, Section, Seeds, training_parameters
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import Percent, Seconds, Target, Text, read_references, reference_of, spread

HERE, COMMITTED, RELEASED = "here", "committed", "released"


class Read(Section):
    """What is read of a file that holds more, which `ffrepro verify` looks at."""

    model_config = ConfigDict(extra="ignore")


class _Metrics(Read):
    accuracy: Percent
    blocks: dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}$")], Percent] = Field(min_length=1)
    code: Text | None = None  # of the evaluation


class Environment(Read):
    """What is told of a record's environment."""

    device: Text
    gpu: Text | None = None
    model: Text | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None

    def __str__(self) -> str:
        """A GPU's name; how many threads of which CPU, as far as the record tells."""
        if self.gpu or not self.threads:
            return self.gpu or self.model or self.device
        return f"{self.threads} thread{'s' * (self.threads > 1)} of {self.model or 'a CPU'}"


def _whole(facts: dict[str, str | int | None]) -> dict[str, str | int | None]:
    Environment.model_validate(facts)
    if not "".join(map(str, [*facts, *facts.values()])).isprintable():
        raise ValueError("characters that cannot be printed")
    return facts


Facts = Annotated[dict[str, str | int | None], AfterValidator(_whole)]
"""A record's environment, of which more may be told than `Environment` has."""


class _Record(Read):
    ffrepro: Text
    environment: Facts
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
        try:
            run = _run(project.run(name, seed), row, seed, runs)
            if not of_results and (other := next((one for one in runs if _differ(run, one)), None)):
                raise UserError(f"of other code than seed {other['record']['seed']}")
            runs.append(run)
        except UserError as why:
            failed[seed] = str(why)
    if failed:
        which = "; ".join(f"seed {seed}: {why}" for seed, why in failed.items())
        count = f"{len(failed)} of {len(seeds)} declared seeds failed"
        again = "run `dvc repro` for them again"
        if of_results:
            again = f"remove them and run `ffrepro reference {name} --machine CLASS` again"
        raise UserError(f"{folder.parent.name}/{name}: {count}: {which}; every declared seed counts: {again}")
    return runs


def _differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs are of different code, in training or, as far as both tell, in evaluation: as the seeds of a row
    can be where a stage failed and DVC went on. Metrics from before they told, `jobs.lacking` takes for ours too."""
    evaluation = {run["metrics"]["code"] for run in (one, other) if "code" in run["metrics"]}
    return one["record"].get("code") != other["record"].get("code") or len(evaluation) > 1


def _run(run: Path, row: Experiment, seed: int, others: list[dict[str, Any]]) -> dict[str, Any]:
    """{"metrics", "record"} of one seed, of the others' blocks. Raises UserError that says what is wrong with it."""
    if missing := [file for file in ("metrics.json", "record.json") if not (run / file).exists()]:
        raise UserError(f"no {' and no '.join(missing)}")
    try:
        metrics, facts = record.read_sealed(run / "metrics.json"), record.read_sealed(run / "record.json")
        _Metrics.model_validate(metrics), _Record.model_validate(facts)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{run}/")) from None
    except ValidationError as error:
        raise UserError(f"{error.title.strip('_').lower()}.json is not what a stage writes") from None
    checks = {
        "seed": (facts.get("seed"), seed),
        "training parameters": (facts.get("parameters"), record.text_hash(training_parameters(row))),
        "weights": (metrics.get("weights"), facts.get("weights")),
        "vote": (metrics.get("vote"), row.evaluation.vote),
        "blocks": (list(metrics["blocks"]), list((others[0]["metrics"] if others else metrics)["blocks"])),
    }
    if differs := [what for what, (has, wants) in checks.items() if has != wants]:
        raise UserError(f"of other {', '.join(differs)}")
    return {"metrics": metrics, "record": facts}


def devices(runs: list[dict[str, Any]]) -> str:
    """What the runs were trained on, each once."""
    return ", ".join(sorted({str(Environment.model_validate(run["record"]["environment"])) for run in runs}))


class Accuracy(Section):
    """As `spread` makes it, in percent."""

    mean: Percent
    std: Percent | None
    n: int
    values: list[Percent] = Field(min_length=1)


class Summary(Read):
    """What is read of the file that the report stage writes about a row."""

    accuracy: Accuracy
    seeds: Seeds
    seconds: Seconds
    device: Text

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> "Summary":
        if not len(self.seeds) == self.accuracy.n == len(self.accuracy.values):
            raise ValueError("not one value a seed")
        return self


class Judgeable(Summary):
    """And what a verdict takes of it."""

    target: Target | None
    test_images: int = Field(ge=1)


class NotWorse(Read):
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

    source: `HERE`, of the row's seeds; `COMMITTED`, of its reference seeds; or `RELEASED`, of as many of the row's own
    seeds as `results` holds.
    """

    source: str
    accuracy: dict[str, Any]  # mean, std, n and values, in percent
    seeds: list[int]
    seconds: float  # of training a seed
    device: str
    gap: str = ""  # "1 of 5 seeds", where released runs are not of all seeds: no rule judges those

    @property
    def folder(self) -> str:
        """Where its runs lie, as `Layout.runs`."""
        return "runs" if self.source == HERE else "results"


def known(project: Layout) -> dict[str, Result]:
    """The results by row, for rows that have any. What was measured with other parameters than the row's is none; nor
    is a summary that its runs do not bear out."""
    elsewhere, found = committed(project), {}
    for name, row in config.load(project.params).experiments.items():
        summary = _of(row, project.summary(name), Summary)
        if summary and _borne_out(project, name, row, summary):
            accuracy, n = summary["accuracy"], summary["accuracy"]["n"]
            found[name] = Result(HERE, accuracy, summary["seeds"], summary["seconds"] / n, summary["device"])
        elif name in elsewhere:
            found[name] = elsewhere[name]
    return found


def _borne_out(project: Layout, name: str, row: Experiment, summary: dict[str, Any]) -> bool:
    """Whether what the report stage wrote is what its runs say: those may have been made again since, or removed, or
    it edited."""
    for seed, value in zip(summary["seeds"], summary["accuracy"]["values"], strict=True):
        try:
            if _run(project.run(name, seed), row, seed, [])["metrics"]["accuracy"] != value:
                return False
        except UserError:
            return False
    accuracy: dict[str, Any] = summary["accuracy"]
    return spread(accuracy["values"]) == accuracy


def committed(project: Layout) -> dict[str, Result]:
    """Of `known`, what is committed: released runs of all seeds, else the reference, else released runs of some."""
    references, found = read_references(project.reference), {}
    for name, row in config.load(project.params).experiments.items():
        ours, its = released(project, name, row), reference_of(references, name, row)
        if its and (ours is None or ours.gap):
            found[name] = Result(COMMITTED, spread(list(its.values)), list(its.seeds), its.seconds, its.machine)
        elif ours:
            found[name] = ours
    return found


def released(project: Layout, name: str, row: Experiment) -> Result | None:
    """The runs in `results` of the row's own seeds, none where there are none.

    A run that is not whole, or of other parameters, counts as not there: no other row's numbers wait for it to be
    mended, and `ffrepro verify` says what is wrong with it.
    """
    place = Layout(project.root, "results")
    found: dict[int, dict[str, Any]] = {}
    for seed in row.seeds:
        with contextlib.suppress(UserError):
            found[seed] = _run(place.run(name, seed), row, seed, list(found.values()))
    if not found:
        return None
    runs = list(found.values())
    accuracy = spread([run["metrics"]["accuracy"] for run in runs])
    seconds = sum(run["record"]["seconds"] for run in runs) / len(runs)
    gap = f"{len(runs)} of {len(row.seeds)} seeds" if len(runs) < len(row.seeds) else ""
    return Result(RELEASED, accuracy, list(found), seconds, devices(runs), gap)


def verdict_on(
    project: Layout, name: str, row: Experiment, ours: Result | None, target: Target | None
) -> dict[str, Any] | None:
    """What the row's rule says of its result, as `verdict.verdict` gives it.

    None for a reference and for released runs of some seeds, which no rule judges, and where the verdict stage's file
    is of other parameters or another target. Released runs without weights are told by files alone, and what is told
    never counts as "reproduced".
    """
    if ours is None or ours.source == COMMITTED or ours.gap:
        return None
    if ours.source == HERE and not judged(project, name, row, target):
        return None
    found, place = judge(ours.accuracy, row, target), Layout(project.root, ours.folder)
    if ours.source == HERE or found["verdict"] != "reproduced":
        return found
    if told := [str(seed) for seed in ours.seeds if not (place.run(name, seed) / "weights.safetensors").exists()]:
        why = f"by goodness alone it would be reproduced; no weights of seed {', '.join(told)} there to show it"
        found |= {"verdict": "inconclusive", "why": why}
    return found


def judge(accuracy: dict[str, Any], row: Experiment, target: Target | None) -> dict[str, Any]:
    """`verdict.verdict` on an accuracy, as `spread` makes it, of all the row's seeds."""
    from ffrepro.verdict import verdict  # SciPy, which not every command need wait for

    against, images = target.model_dump() if target else None, config.SHAPES[row.data.name][2]
    return verdict({"accuracy": accuracy, "target": against, "test_images": images}, row.verdict)


def summary(row: Experiment, path: Path) -> dict[str, Any]:
    """What the report stage wrote about the row, for the verdict. Raises UserError for another row's, and for less."""
    if (found := _of(row, path, Judgeable)) is None:
        raise UserError(f"{path}: not there, or of other parameters; run `dvc repro` again")
    return found


def judged(project: Layout, name: str, row: Experiment, target: Target | None) -> dict[str, Any] | None:
    """The verdict on the row's runs here; none where it is of other parameters or another target."""
    result = _of(row, project.verdict(name), Judged)
    return result if result and result.get("target") == (target.model_dump() if target else None) else None


def _of(row: Experiment, path: Path, model: type[Section]) -> dict[str, Any] | None:
    """What a stage wrote about the row; none where it is of other parameters. Raises UserError for what none wrote."""
    if not path.exists():
        return None
    content: dict[str, Any] = record.read_json(path)
    try:
        if content["row"] != record.text_hash(config.canonical(row)):
            return None
        model.model_validate(content)
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{path}: not what a stage writes; delete it and run `dvc repro` again") from None
    return content
