"""A row's seed on a borrowed machine, piece by piece, and home again.

For a machine that has torch, torchvision, NumPy and Pydantic, no installed ffrepro, minutes at a time, and a narrow way
back. There, with the row's checked form (`python -m pipelines.check ROW`) and the data set's files beside the source:

    python -m pipelines.away run ROW SEED --scratch DIR --out DIR --mirror DIR [--minutes 9] [--curve IMAGES]

trains until the minutes are used up, keeps its checkpoint in scratch, exits with code 75, and is called again until the
training is complete: it goes on to the same bits. `out` then holds what must travel, in files of 15 MiB at most. Home:

    python -m pipelines.away bring DIR ROW SEED

makes of it what the train and evaluate stages would have written, and refuses what does not fit the record, and, where
the data set is prepared, an accuracy that goodness and labels do not give.

    python -m pipelines.away try ROW SEED --held-out IMAGES [--set SECTION.FIELD=VALUE ...] --scratch DIR --out DIR ...

is for choosing: it trains the row with other values on what is left of the training set, piece by piece too, and tells
how the images held out of it are classified, after every epoch and at the end, there also with batch norm's statistics
computed anew, and beside them as many images that were trained on. No test image is classified.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ffrepro import checkpoint as saved_state
from ffrepro import config, data, determinism, devices, engine, errors, evaluation, evidence, layout, record, training
from ffrepro.config import Experiment
from ffrepro.data import Split
from ffrepro.errors import UserError
from ffrepro.training import Trained

PART = 15 * 2**20  # bytes a file
PAUSED = 75  # exit code: to be called again (EX_TEMPFAIL)
KEPT = ("history.csv", "record.json", "metrics.json")
SECTIONS = ("augmentation", "network", "training")  # of a row, in which other values can be tried


class Pause(Exception):  # noqa: N818  # not an error
    """The minutes are used up after a whole epoch."""


def run(options: argparse.Namespace) -> int:
    project, deadline = layout.find(), time.monotonic() + 60 * options.minutes
    row = config.read_experiment(project.experiment(options.row))
    train, test = _data(options, row)
    train, held_out = data.held_out(train, row.data.held_out)
    watched = held_out if row.data.held_out else None
    if options.curve:
        watched = test.rows(slice(options.curve))
    trained = _train(options, row, train, watched, deadline)
    if trained is None:
        return PAUSED
    if options.curve:  # a diagnostic: it chooses nothing
        renamed = [{name.replace("held_out", "test"): entry[name] for name in entry} for entry in trained.history]
        trained = trained._replace(history=renamed)
    facts = _facts(options, row, trained, project)
    with _faults(options):
        table, metrics = evaluation.evaluate(trained.network, test.to(options.device), row)
    record.write_sealed({**metrics, "link": trained.chain[-1]["link"]}, options.out / "metrics.json")
    tensors = {name: value.cpu() for name, value in trained.network.state_dict().items()}
    file = io.BytesIO()
    torch.save({"weights": tensors, "goodness": table}, file)
    content = file.getvalue()
    for number, start in enumerate(range(0, len(content), PART)):
        record.write_bytes(content[start : start + PART], options.out / f"tensors-{number:02}")
    record.write_sealed(facts, options.out / "record.json")
    _checkpoint(options, row).unlink(missing_ok=True)
    say(f"complete: {metrics['accuracy']:.2f} %")
    return 0


def attempt(options: argparse.Namespace) -> int:
    project, deadline = layout.find(), time.monotonic() + 60 * options.minutes
    if options.held_out < 1:
        raise UserError(f"--held-out: given {options.held_out}; allowed: 1 and more")
    if there := [name for name in ("try.json", "record.json", "metrics.json") if (options.out / name).exists()]:
        raise UserError(f"{options.out}: has {there[0]} of another training; name another folder with --out")
    row = config.read_experiment(project.experiment(options.row))
    row = config.changed(row, {"data.held_out": options.held_out}, "--held-out")
    row = config.changed(row, dict(options.values), "--set")
    train, held_out = data.held_out(_data(options, row)[0], row.data.held_out)
    trained = _train(options, row, train, held_out, deadline)
    if trained is None:
        return PAUSED
    device, after = options.device, row.training.epochs  # an epoch's draws that no epoch had
    with _faults(options):
        train, held_out = train.to(device), held_out.to(device)
        learned = train.rows(slice(options.held_out))  # which is in random order
        found = {"held_out": _judged(trained, held_out, row), "trained_on": _judged(trained, learned, row)}
        draws = engine.draw(row, options.seed, after, len(train.labels)).to(device)
        evaluation.restate(trained.network, train, row, draws)
        found["held_out_restated"] = _judged(trained, held_out, row)
    facts = _facts(options, row, trained, project)
    record.write_sealed({**facts, "set": dict(options.values), **found}, options.out / "try.json")
    _checkpoint(options, row).unlink(missing_ok=True)
    own, learnt, restated = (metrics["accuracy"] for metrics in found.values())
    say(
        f"complete: {own:.2f} % of {options.held_out} held-out images, {restated:.2f} % with statistics computed anew; "
        f"{learnt:.2f} % of {found['trained_on']['images']} that were trained on"
    )
    return 0


def _faults(options: argparse.Namespace, row: Experiment | None = None) -> AbstractContextManager[None]:
    return devices.faults(f"{options.row}-{options.seed}", options.device, row)


def _judged(trained: Trained, images: Split, row: Experiment) -> dict[str, Any]:
    """The metrics of images that are no test split."""
    _, metrics = evaluation.evaluate(trained.network, images, row)
    metrics["data"] = metrics.pop("test_data")  # its hash
    return metrics


def _data(options: argparse.Namespace, row: Experiment) -> tuple[Split, Split]:
    """The (training, test) splits, from the mirror's files."""
    downloads = options.scratch / "downloads"
    data.fetch(row.data.name, downloads, mirror=options.mirror, offline=True, say=say)
    return data.read(row.data.name, downloads)


def _checkpoint(options: argparse.Namespace, row: Experiment) -> Path:
    parameters = record.text_hash(config.training_parameters(row))
    path: Path = options.scratch / f"{options.row}-{parameters[:12]}-{options.seed}.pt"
    return path


def _train(
    options: argparse.Namespace, row: Experiment, train: Split, watched: Split | None, deadline: float
) -> Trained | None:
    """Train on from the checkpoint; None where the time is up before the last epoch. deadline: by `time.monotonic`."""
    determinism.switch_on(fast=options.fast)
    device, checkpoint = options.device, _checkpoint(options, row)
    history: list[dict[str, Any]] = []

    def finished(entry: dict[str, Any]) -> None:
        say("  ".join(f"{name} {value:.6g}" for name, value in entry.items()))
        history.append(entry)
        longest = max(one["seconds"] for one in history)
        if entry["epoch"] < row.training.epochs and time.monotonic() + 1.5 * longest > deadline:
            raise Pause

    try:
        with _faults(options, row):
            return training.train(
                row,
                options.seed,
                train.to(device),
                watched.to(device) if watched is not None else None,
                checkpoint=checkpoint,
                say=say,
                finished=finished,
            )
    except Pause:
        record.write_csv(history, options.out / "history-of-this-piece.csv")
        record.write_json(saved_state.read(checkpoint, torch.device("cpu"))["chain"], options.out / "chain.json")
        say(f"paused after epoch {history[-1]['epoch']} of {row.training.epochs}: call again")
        return None


def _facts(options: argparse.Namespace, row: Experiment, trained: Trained, project: layout.Layout) -> dict[str, Any]:
    """Write the history; the run's record."""
    history = options.out / "history.csv"
    record.write_csv(trained.history, history)
    return training.run_record(options.row, row, options.seed, trained, history, project)


def bring(options: argparse.Namespace) -> int:
    project, source = layout.find(options.runs), options.folder
    if not project.experiment(options.row).exists():
        where = "" if options.runs == "runs" else f" {options.runs}"
        raise UserError(
            f"{options.runs}/{options.row}: no experiment.json there; python -m pipelines.check {options.row}{where}"
        )
    row, folder = config.read_experiment(project.experiment(options.row)), project.run(options.row, options.seed)
    if missing := [name for name in KEPT if not (source / name).is_file()]:
        raise UserError(f"{source}: no {missing[0]} there; bring the whole folder of a complete training")
    facts, metrics = (record.read_json(source / name) for name in ("record.json", "metrics.json"))
    for name, content in {"record.json": facts, "metrics.json": metrics}.items():
        if not isinstance(content, dict):
            raise UserError(f"{source / name}: not what a training writes; bring the whole folder again")
    parameters = record.text_hash(config.training_parameters(row))
    for name, mine in {"experiment": options.row, "seed": options.seed, "parameters": parameters}.items():
        if (found := facts.get(name)) != mine:
            given = config.plain(repr(found))
            raise UserError(f"{source / 'record.json'}: {name} is {given}, not {mine!r}; it is of another run")
    parts = sorted(source.glob("tensors-*"))
    if not parts:
        raise UserError(
            f"{source}: no tensors-00, tensors-01, ... there; bring the whole folder of a complete training"
        )
    try:
        tensors = torch.load(io.BytesIO(b"".join(part.read_bytes() for part in parts)), weights_only=True)
        weights, weights_hash = record.tensors_bytes(tensors["weights"])
        table, table_hash = record.tensors_bytes({"goodness": tensors["goodness"]})
    except Exception as error:  # torch.load has no error of its own: a damaged file can raise almost anything
        raise UserError(f"{source}: tensors-*: not whole ({type(error).__name__}); bring all parts again") from None
    if (weights_hash, table_hash) != (facts.get("weights"), metrics.get("goodness_table")):
        raise UserError(f"{source}: weights, metrics.json and record.json are not of one training; bring all again")
    with tempfile.TemporaryDirectory(prefix=".brought-", dir=folder.parents[1]) as scratch:
        # read there, as a run with its row beside it, before anything takes the place of what is here
        made = Path(scratch) / options.row / str(options.seed)
        record.write_text(config.canonical(row), made.parent / "experiment.json")
        record.write_bytes(weights, made / "weights.safetensors")
        record.write_bytes(table, made / "goodness.safetensors")
        for name in KEPT:
            record.write_bytes((source / name).read_bytes(), made / name)
        try:
            came = evidence.read(made)
            if (prepared := project.data(row.data.name)).exists():
                labels = data.load(prepared)[1].labels
                assert came.goodness is not None
                evidence.require_accuracies(made / "metrics.json", metrics, came.goodness, labels, row.evaluation.vote)
        except UserError as error:
            raise UserError(str(error).replace(str(made), str(source))) from None
        for file in sorted(made.iterdir()):
            record.write_bytes(file.read_bytes(), folder / file.name)
    print(f"{options.row}-{options.seed}: {metrics['accuracy']:.2f} %, in {options.runs}/{options.row}/{options.seed}")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


def natural(text: str) -> int:
    """A whole number from 0 up, for argparse."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def seed(text: str) -> int:
    """A seed as params.yaml may have it, for argparse."""
    if (number := natural(text)) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; allowed: 0 to {2**31 - 1}")
    return number


def setting(text: str) -> tuple[str, object]:
    """SECTION.FIELD=VALUE as (path, value), for argparse."""
    path, equals, value = text.partition("=")
    section, _, field = path.partition(".")
    if not equals or section not in SECTIONS or "." in field or value == "null":
        raise argparse.ArgumentTypeError(f"{text!r} is not SECTION.FIELD=VALUE, of {', '.join(SECTIONS)}")
    try:
        return path, json.loads(value)
    except ValueError:  # text without quotes
        return path, value


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.away", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    there = commands.add_parser("run", help="train there, piece by piece")
    there.set_defaults(command=run)
    there.add_argument(
        "--curve",
        type=natural,
        default=0,
        metavar="IMAGES",
        help="accuracy of the first so many test images after each epoch, as a diagnostic",
    )
    choosing = commands.add_parser("try", help="train with other values and images held out, there too")
    choosing.set_defaults(command=attempt)
    choosing.add_argument("--held-out", type=int, required=True, metavar="IMAGES", help="of the training set")
    choosing.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        dest="values",
        metavar="SECTION.FIELD=VALUE",
        help="instead of the row's, such as training.schedule=cosine",
    )
    for command in (there, choosing):
        command.add_argument("row")
        command.add_argument("seed", type=seed)
        command.add_argument("--scratch", type=Path, required=True, help="folder that stays there between two calls")
        command.add_argument("--out", type=Path, required=True, help="folder that comes back")
        command.add_argument("--minutes", type=float, default=9.0, help="of one call (default: 9)")
        command.add_argument("--device", type=devices.choose, default="cuda", help="cuda or cpu (default: cuda)")
        command.add_argument("--mirror", help="folder with the data set in torchvision's layout")
        command.add_argument("--fast", action="store_true", help="kernels picked by timing: quicker, not repeatable")
    home = commands.add_parser("bring", help="make a run of what came back")
    home.set_defaults(command=bring)
    home.add_argument("folder", type=Path)
    home.add_argument("row")
    home.add_argument("seed", type=seed)
    home.add_argument("--runs", default="runs", help="runs, or results for a reference (default: runs)")
    options = parser.parse_args(arguments)
    code: int = options.command(options)
    return code


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
