"""A run's files, read and found whole, each against what another of them names; what `proof` and others start from."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, Field, ValidationError
from torch import Tensor

from ffrepro import config, evaluation, record, results, training
from ffrepro.checkpoint import chained
from ffrepro.config import Experiment, Section
from ffrepro.errors import UserError
from ffrepro.figure_data import read_history
from ffrepro.layout import RELEASED
from ffrepro.network import Network
from ffrepro.targets import Text

ANEW = "get it anew, from where the run was published or by running its stage again (`dvc repro`)"


class Run(NamedTuple):
    """A run's folder, read and found whole."""

    folder: Path
    row: Experiment
    facts: dict[str, Any]  # record.json
    metrics: dict[str, Any]  # metrics.json
    weights: dict[str, Tensor] | None  # None where they were not published
    goodness: Tensor | None


GIVE = "give a run's folder, its record.json, or a row's folder with its seeds"


def runs_of(path: Path) -> list[Path]:
    """The folders of the runs that a run's folder, its record or a row's folder stands for, by seed."""
    try:
        path = Path(os.path.abspath(path))  # noqa: PTH100  # a folder's name tells its row and seed; a link's, its own
        if not str(path).isprintable():
            raise UserError(f"{config.plain(path)}: a name with characters that cannot be printed; rename it")
        folder = path.parent if path.is_file() else path
        if (folder / "record.json").exists():
            return [folder]
        if path.is_file():
            raise UserError(f"{config.plain(path)}: not in a run's folder, no record.json beside it; {GIVE}")
        folders: list[Path] = []
        if path.is_dir():
            folders = [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    except OSError as error:  # too long a name, no right to look, links that go round
        raise UserError(f"{config.plain(path)}: cannot be read ({error.strerror}); {GIVE}") from None
    if not folders:
        raise UserError(f"{config.plain(path)}: no record.json and no folder of a seed there; {GIVE}")
    return sorted(folders, key=lambda folder: int(folder.name))


def run_of(path: Path) -> Path:
    """The folder of the one run that a path stands for. Raises UserError where there are several."""
    folders = runs_of(path)
    if len(folders) > 1:
        seeds = ", ".join(folder.name for folder in folders)
        raise UserError(f"{config.plain(path)}: {len(folders)} runs there ({seeds}); give the folder of one of them")
    return folders[0]


def read(folder: Path) -> Run:
    """Read a run's files. Raises UserError, naming the link that broke, unless they are whole and fit one another."""
    facts, metrics = checked(folder / "record.json", Record), checked(folder / "metrics.json", Metrics)
    row = _row(folder, facts)
    chain(folder / "record.json", facts, row)
    history(folder / "history.csv", facts)
    weights = _tensors(folder / "weights.safetensors", facts["weights"], "record.json")
    table = _tensors(folder / "goodness.safetensors", metrics["goodness_table"], "metrics.json")
    for name, wanted in (("weights", facts["weights"]), ("link", facts["chain"][-1]["link"])):
        if metrics[name] != wanted:
            raise UserError(f"{folder / 'metrics.json'}: broken link: of other {name} than record.json's; another run")
    if weights is None and table is None:
        raise UserError(f"{folder}: neither weights.safetensors nor goodness.safetensors: nothing to check it by")
    if table is not None:
        shape, goodness = (metrics["images"], row.classes, row.columns), table.get("goodness")
        if (
            goodness is None
            or (goodness.shape, goodness.dtype) != (shape, torch.float32)
            or not goodness.isfinite().all()
        ):
            raise UserError(
                f"{folder / 'goodness.safetensors'}: broken link: no table of {shape} finite float32 values"
            )
    return Run(folder, row, facts, metrics, weights, table["goodness"] if table else None)


def _time(text: str) -> str:
    if datetime.fromisoformat(text).isoformat(timespec="seconds") != text or not text.endswith("+00:00"):
        raise ValueError("not as `checkpoint.now` writes it")
    return text


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Time = Annotated[str, AfterValidator(_time)]


class LinkOfChain(Section):
    epoch: int
    weights: Hash
    optimizer: Hash
    link: Hash


class Record(Section):
    """record.json as `training.run_record` makes it, and `record.image` where it was made in a container."""

    experiment: config.Name
    seed: config.Seed
    ffrepro: str = Field(pattern=r"^[0-9A-Za-z.+!-]{1,60}$")
    code: Hash
    source: Hash
    lock: Hash | None
    row: dict[str, Any]
    parameters: Hash
    data: Hash
    initial_weights: Hash
    chain: list[LinkOfChain] = Field(min_length=1)
    weights: Hash
    history: Hash
    environment: results.Facts
    driver: Text | None
    started: Time
    ended: Time
    seconds: float = Field(ge=0)
    joules: float | None = Field(ge=0)
    image: dict[str, Any] | None = None
    seal: str


class Metrics(Section):
    """metrics.json as the evaluate stage makes it of `evaluation.evaluate`."""

    accuracy: float
    vote: str
    images: int = Field(ge=0, lt=2**31)
    blocks: dict[str, float]
    votes: dict[str, float]
    decided_in_float32: int
    weights: Hash
    test_data: Hash
    goodness_table: Hash
    environment: results.Facts
    code: Hash | None = None  # which older ones lack
    link: Hash
    seal: str


def checked(path: Path, model: type[Section]) -> dict[str, Any]:
    """A sealed file's content. Raises UserError where it was changed, or is not what the model says."""
    content: dict[str, Any] = record.read_sealed(path, ANEW)
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = config.plain(".".join(map(str, first["loc"])))
        raise UserError(
            f"{path}: broken link: no {model.__name__.lower()}: {place}: {config.plain(first['msg'])}"
        ) from None
    return content


def _row(folder: Path, facts: dict[str, Any]) -> Experiment:
    path = folder.parent / "experiment.json"
    row = config.read_experiment(path)
    if config.canonical(row).encode() != path.read_bytes():
        raise UserError(f"{path}: broken link: not as the check stage wrote it")
    parameters = config.training_parameters(row)
    if (facts["row"], facts["parameters"]) != (json.loads(parameters), record.text_hash(parameters)):
        raise UserError(f"{folder / 'record.json'}: broken link: a record of other parameters than {path.name}'s")
    names = (facts["experiment"], str(facts["seed"]))
    if names != (folder.parent.name, folder.name):
        raise UserError(f"{folder / 'record.json'}: broken link: the record of {'-'.join(names)}, not of this folder")
    return row


def chain(path: Path, facts: dict[str, Any], row: Experiment) -> None:
    """Raise UserError where the row's record, read from `path`, has a chain that does not hold or is cut off."""
    before = training.first_link(
        {
            "parameters": config.training_parameters(row),
            "seed": str(facts["seed"]),
            "data": facts["data"],
            "code": facts["code"],
            "initial weights": facts["initial_weights"],
        }
    )
    epochs = [link["epoch"] for link in facts["chain"]]
    if epochs != list(range(1, row.training.epochs + 1)):
        raise UserError(f"{path}: broken link: a chain of {len(epochs)} epochs, of {row.training.epochs} in order")
    for link in facts["chain"]:
        if chained(before, link["epoch"], link["weights"], link["optimizer"]) != link:
            raise UserError(f"{path}: broken link: the chain does not hold at epoch {link['epoch']}")
        before = link["link"]
    if facts["chain"][-1]["weights"] != facts["weights"]:
        raise UserError(f"{path}: broken link: the chain does not end in the weights that the record names")


def require_accuracies(path: Path, metrics: Mapping[str, Any], table: Tensor, labels: Tensor, vote: str) -> None:
    """Raise UserError where metrics, read from `path`, are not what goodness and labels give.

    table: (N, classes, blocks); labels: (N,).
    """
    if table.shape[0] != len(labels):
        raise UserError(f"{path}: broken link: goodness of {table.shape[0]} images, not {len(labels)}")
    wanted = evaluation.metrics(table, labels, vote)
    if differing := [name for name, value in wanted.items() if metrics[name] != value]:
        raise UserError(f"{path}: broken link: {differing[0]} is not what goodness and labels give")


def history(path: Path, facts: dict[str, Any]) -> list[dict[str, float]]:
    """The entries of the history that the record names. Raises UserError where it is another, of other epochs than the
    chain's, or of other sums than the record tells."""
    if record.file_hash(path) != facts["history"]:
        raise UserError(f"{path}: broken link: not the history that record.json names")
    entries = read_history(path)
    if len(entries) != len(facts["chain"]):
        raise UserError(f"{path}: broken link: {len(entries)} epochs, the chain has {len(facts['chain'])}")
    for name in ("seconds", "joules"):
        parts = [entry[name] for entry in entries if name in entry]
        if (round(sum(parts), 1) if parts else None) != facts[name] or min(parts, default=0) < 0:
            raise UserError(f"{path}: broken link: {name} that do not add up to record.json's")
    return entries


def _tensors(path: Path, wanted: str, by: str) -> dict[str, Tensor] | None:
    """The file's tensors, whole to the byte and those that are wanted; None where there is no file."""
    if not os.path.lexists(path):  # a link to a file that is not there was to be one
        return None
    tensors = record.read_tensors(path, ANEW)
    if not tensors:
        raise UserError(f"{path}: broken link: holds no tensors")
    content, digest = record.tensors_bytes(tensors)
    if content != path.read_bytes():
        raise UserError(f"{path}: broken link: changed after it was written")
    if digest != wanted:
        raise UserError(f"{path}: broken link: not the tensors that {by} names; another run's file")
    return tensors


def network(run: Run, device: torch.device, *, released: bool = False) -> Network:
    """The trained network, from the run's own weights, or from those that were released in float16.

    Raises UserError where these are not there or are another network's.
    """
    path = run.folder / (RELEASED if released else "weights.safetensors")
    weights = record.read_tensors(path, ANEW) if released else run.weights
    if weights is None:
        instead = "; --weights released are" if (run.folder / RELEASED).exists() else ""
        raise UserError(f"{path}: not published{instead}")
    if released and run.goodness is None:
        raise UserError(f"{path}: cannot be compared: no goodness.safetensors beside it")
    made = training.build(run.row, run.facts["seed"], device)
    for name, value in made.state_dict().items():
        kind = torch.float16 if released and value.is_floating_point() else value.dtype
        if name in weights and weights[name].dtype != kind:  # else it would be converted, and not be what was trained
            raise UserError(f"{path}: broken link: {name} is {weights[name].dtype}, not {kind}")
    training.load_weights(made, weights, path)
    return made
