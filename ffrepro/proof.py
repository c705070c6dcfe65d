"""What a run's files prove: a ladder of checks, from "not altered since" to "the same bits as the reference".

Everything is computed anew from weights, labels and goodness; the metrics file is judged, never believed. A rung that
does not hold ends the climb with one line that names the link that broke. One that cannot be told on this machine says
so, which is a legal answer. docs/proof.md explains the ladder to a reviewer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffrepro import claims, config, determinism, devices, doctor, evaluation, evidence, record, results, training
from ffrepro.config import Experiment, Params
from ffrepro.data import Split
from ffrepro.errors import UserError
from ffrepro.evidence import Record, Run
from ffrepro.layout import RELEASED, Layout
from ffrepro.progress import tell
from ffrepro.report import percent
from ffrepro.targets import Reference, Target, read_references, read_targets, reference_of, spread, target_of
from ffrepro.verdict import EXIT_CODES, INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, worst

Data = Callable[[Experiment], tuple[Split, Split] | None]

ROUNDING = {"float32": 0.001, "bfloat16": 0.02, "float16": 0.05}
"""Largest difference of a goodness, as a share of it (or of the mean goodness, if that is more), that another machine's
rounding may make. Allowances: measured is one run alone, in float16 on an H100 and in float32 on a CPU, 2.18 %."""
FEW = 16  # images of a batch with which a CPU repeats a GPU's row
MOVED = 0.005  # share of predictions that it may change, and hence of the accuracy that counts
TIMES = ("started", "ended", "seconds")  # which, like its history, no second training has in common with another
CODES: dict[bool | None, int] = {True: 0, False: EXIT_CODES[NOT_REPRODUCED], None: EXIT_CODES[INCONCLUSIVE]}
"""The exit code of what holds, of what does not, and of what cannot be told."""


class Rung(NamedTuple):
    """holds: True, False for a comparison that came out unequal, None where this machine cannot tell."""

    what: str
    found: str
    holds: bool | None = True
    accuracy: float | None = None  # in percent, computed here: what statistics are made of, shown where it holds


def ladder(run: Run, data: tuple[Split, Split] | None, references: list[Path], device: torch.device) -> Iterator[Rung]:
    """The rungs of one run above "whole", in order.

    data: the row's prepared (training, test) splits without what the row holds out, None where they are not at hand.
    references: committed records of the row. Raises UserError for a link that breaks.
    """
    facts = run.facts
    epochs, weights = len(facts["chain"]), facts["weights"][:12]
    yield Rung("record", f"sealed, of {facts['experiment']}, seed {facts['seed']}, ffrepro {facts['ffrepro']}")
    yield Rung("chain", f"{epochs} epochs, unbroken from the parameters to the weights {weights}")
    mine = record.code_hash()
    code = "this version's" if facts["code"] == mine else f"another version's ({facts['code'][:12]}, here {mine[:12]})"
    yield Rung("code", code, True if facts["code"] == mine else None)
    if data:
        yield _data(run, data)
    else:
        yield Rung("data", "not at hand: `ffrepro fetch` brings them", None)
    yield _initial_weights(run)
    yield from _metrics(run, data, device)
    yield _bitwise(run, *_comparable(run, references))


def _data(run: Run, data: tuple[Split, Split]) -> Rung:
    hashes = (run.facts["data"], run.metrics["test_data"])
    for split, name, wanted in zip(data, ("training", "test"), hashes, strict=True):
        if record.tensors_hash(split._asdict()) != wanted:
            raise UserError(f"{run.folder}: broken link: {name} data other than this project's {run.row.data.name}")
    if run.metrics["images"] != (tested := len(data[1].labels)):
        raise UserError(f"{run.folder / 'metrics.json'}: broken link: of {run.metrics['images']} images, not {tested}")
    return Rung("data", f"{run.row.data.name}, training and test split: the same bytes as here")


def _initial_weights(run: Run) -> Rung:
    found = record.tensors_hash(training.build(run.row, run.facts["seed"], torch.device("cpu")).state_dict())
    if found == run.facts["initial_weights"]:
        return Rung("initial weights", f"{found[:12]}, made again from the seed")
    if run.facts["code"] == record.code_hash():
        raise UserError(f"{run.folder / 'record.json'}: broken link: initial weights that its seed does not make")
    return Rung("initial weights", "other ones from the same seed, by this version's code", None)


def _metrics(run: Run, data: tuple[Split, Split] | None, device: torch.device) -> Iterator[Rung]:
    if not data:
        yield Rung("metrics", "cannot be told without the test labels", None)
        return
    test, table, vote = data[1], run.goodness, run.row.evaluation.vote
    own = None
    if run.weights is None:
        text = "weights not published: taken from goodness.safetensors"
        if (run.folder / RELEASED).exists():
            text = f"{text}; `ffrepro evaluate {run.facts['experiment']} --weights released` compares it with those"
        yield Rung("goodness", text, None)
        assert table is not None
    else:
        own, here, precision = _evaluated(run, test, device)
        yield precision
        if table is None and record.tensors_hash({"goodness": own}) == run.metrics["goodness_table"]:
            table = own
        yield _compared(run, own, table, here) if table is not None else _told(run, own, test.labels, here)
    if table is not None:
        evidence.require_accuracies(run.folder / "metrics.json", run.metrics, table, test.labels, vote)
    if own is None:
        text = f"{run.metrics['accuracy']:.2f} % of {len(test.labels)} test images, from goodness and labels alone"
        yield Rung("metrics", text, None, run.metrics["accuracy"])
    else:
        accuracy = evaluation.metrics(own, test.labels, vote)["accuracy"]
        text = f"{accuracy:.2f} % of {len(test.labels)} test images, from weights and labels"
        yield Rung("metrics", text, accuracy=accuracy)


def _evaluated(run: Run, test: Split, device: torch.device) -> tuple[Tensor, bool, Rung]:
    """(goodness of the run's weights, computed here; whether its bits must be the run's; what precision changes)."""
    network, images, row = evidence.network(run, device), test.to(device).images, run.row
    full, here = evaluation.goodness_table(network, images, evaluation.in_float32(row)), _of_here(run, device)
    path, told = run.folder / "metrics.json", run.metrics["decided_in_float32"]
    if row.evaluated_in == "float32":
        if told:
            raise UserError(f"{path}: broken link: pairs decided in float32, as all is")
        return full.cpu(), here, Rung("precision", "evaluated in float32")
    if device.type == "cpu" and row.training.precision == "float16":  # which would take a CPU days
        return full.cpu(), False, Rung("precision", "this machine evaluates in float32; float16 takes a GPU", None)
    half = evaluation.goodness_table(network, images, row)
    decided, pairs = evaluation.decide(half, network, images, row)
    own = decided.cpu()
    if here and pairs != told:
        raise UserError(f"{path}: broken link: {told} pairs decided in float32, not {pairs}")
    return own, here, _precision(own, half.cpu(), full.cpu(), row.evaluation.vote, pairs)


def _of_here(run: Run, device: torch.device) -> bool:
    """Whether the metrics were certainly made in this environment, by this version's evaluation: then bits must agree.

    Where they do not say of which version they are, the training's has to do.
    """
    code = run.metrics.get("code")
    same = code == record.code_hash(evaluation.CODE) if code else run.facts["code"] == record.code_hash()
    return bool(same and record.same_environment(record.environment(device), run.metrics["environment"]))


def released(run: Run, again: Tensor) -> str:
    """How far the goodness of released weights, a table made here, is from the run's own, in words.

    What must agree are the predictions: rounded weights and another precision change a goodness by as much as a tenth
    (docs/cifar10.md). Another training's weights change more where many images are classified wrongly, and few where
    nearly all are right. Raises UserError where they do not agree.
    """
    assert run.goodness is not None
    path = run.folder / RELEASED
    if again.shape != run.goodness.shape:
        raise UserError(f"{run.folder / 'metrics.json'}: broken link: of {len(run.goodness)} images, not {len(again)}")
    largest, moved = _apart(again, run.goodness, run.row.evaluation.vote)
    if moved > MOVED * len(again):
        what = f"{moved} of {len(again)} predictions differ from the run's goodness"
        raise UserError(f"{path}: broken link: {what}: more than rounding ({100 * MOVED:g} %)")
    return (
        f"{moved} of {len(again)} predictions differ from the run's own, in goodness.safetensors; goodness within "
        f"{100 * largest:.2g} %"
    )


def _precision(table: Tensor, half: Tensor, full: Tensor, vote: str, pairs: int) -> Rung:
    """Whether half precision decides anything in `table`: `full` is all of it in float32, `half` none of it."""
    first, exact = evaluation.predictions(half, vote), evaluation.predictions(full, vote)
    moved = first != exact
    best, second = evaluation.voted(half, vote)[moved].topk(2).values.unbind(1)
    lead = f", with a lead of {100 * float(((best - second) / best).max()):.2g} % at most" if moved.any() else ""
    wrong = int((evaluation.predictions(table, vote) != exact).sum())
    text = f"half precision alone would change {int(moved.sum())} of {len(table)} predictions{lead}"
    decided = f"with {100 * pairs / table[:, :, 0].numel():.1f} % of all pairs decided in float32"
    return Rung("precision", f"{text}; {decided}, {wrong} are not float32's", True if wrong == 0 else None)


def _compared(run: Run, again: Tensor, table: Tensor, here: bool) -> Rung:
    if torch.equal(again, table):
        return Rung("goodness", f"{table.numel()} values from the weights: the same bits")
    path, vote, allowed = (
        run.folder / "goodness.safetensors",
        run.row.evaluation.vote,
        ROUNDING[run.row.evaluated_in],
    )
    if here:
        raise UserError(f"{path}: broken link: not the goodness of these weights")
    largest, moved = _apart(again, table, vote)
    if not (largest <= allowed and moved <= MOVED * len(table)):
        raise UserError(
            f"{path}: broken link: up to {100 * largest:.3g} % off the goodness of these weights, {moved} predictions "
            f"differ: more than another machine's rounding ({100 * allowed:g} %, {100 * MOVED:g} % of predictions)"
        )
    return Rung(
        "goodness",
        f"from the weights within {100 * largest:.2g} % (by another version, or not certainly in this environment); "
        f"{moved} predictions differ",
    )


def _apart(again: Tensor, table: Tensor, vote: str) -> tuple[float, int]:
    """(largest difference of two goodness tables, as `ROUNDING` counts it; number of predictions that differ)."""
    moved = int((evaluation.predictions(again, vote) != evaluation.predictions(table, vote)).sum())
    again, table = again.double(), table.double()  # in which no mean of float32's overflows
    return float(((again - table).abs() / table.abs().clamp(min=table.abs().mean().item())).max()), moved


def _told(run: Run, own: Tensor, labels: Tensor, here: bool) -> Rung:
    """Judge the metrics by the weights alone, where their goodness table has other bits than here and is not shown."""
    path, told = run.folder / "metrics.json", run.metrics
    if here:
        raise UserError(f"{path}: broken link: goodness_table is not of these weights")
    mine = evaluation.metrics(own, labels, run.row.evaluation.vote)
    theirs, ours = _accuracies(told), _accuracies(mine)
    if any(told[name] != mine[name] for name in ("vote", "images")) or theirs.keys() != ours.keys():
        raise UserError(f"{path}: broken link: of another vote, other blocks or other images than the row's")
    off = {name: abs(theirs[name] - ours[name]) for name in theirs}
    for name, points in off.items():
        allowed = MOVED if name == "accuracy" else max(MOVED, ROUNDING[run.row.evaluated_in])
        if points > 100 * allowed + 1e-9:
            raise UserError(
                f"{path}: broken link: {name} is {points:.2f} points off what the weights give: more than another "
                f"machine's rounding ({100 * allowed:g} points)"
            )
    text = "goodness.safetensors not published, and other bits here than metrics.json names"
    return Rung("goodness", f"{text}; its accuracies are within {max(off.values()):.2f} points", None)


def _accuracies(metrics: dict[str, Any]) -> dict[str, float]:
    """Every accuracy in metrics, by its name."""
    each = {f"{kind} {name}": value for kind in ("blocks", "votes") for name, value in metrics[kind].items()}
    return {"accuracy": metrics["accuracy"], **each}


def declared(run: Run, params: Params) -> Rung:
    """Whether params.yaml has the run's row. Raises UserError where it has another one of that name."""
    name = run.facts["experiment"]
    if name not in params.experiments:
        return Rung(
            "row", f"{name} is not in params.yaml: parameters, seeds and rule are what experiment.json says", None
        )
    if params.experiments[name].model_copy(update={"title": run.row.title}) != run.row:
        raise UserError(
            f"{run.folder.parent / 'experiment.json'}: broken link: another row than {name} in params.yaml; "
            "a run of other parameters, or another rule"
        )
    return Rung("row", f"{name}, as in params.yaml")


def _self_repeat(row: Experiment, device: torch.device) -> Rung:
    what = "4 steps of the row"
    if device.type == "cpu" and row.requires == "cuda":  # as it is, it would take a CPU minutes, in float16 days
        precision = devices.stand_in(row, device)
        row = config.changed(row, {"training.batch": FEW, "training.precision": precision})
        what = f"{what} with a batch of {FEW} in {precision}"
    same, hashes = doctor.twice(row, device)
    return Rung("self-repeat", f"{what}, twice on this machine: {' and '.join(hashes)}", same)


def _comparable(run: Run, references: list[Path]) -> tuple[list[dict[str, Any]], Rung | None]:
    """(the committed records of the same training; what to say of one that cannot be read, which no run is to blame
    for). Raises UserError where the run's weights are another seed's."""
    facts, found, unread = run.facts, [], None
    for path in references:
        if path.resolve() == (run.folder / "record.json").resolve():
            continue
        try:
            other = evidence.checked(path, Record)
            if same := all(other[name] == facts[name] for name in ("seed", "parameters", "data", "code")):
                evidence.chain(path, other, run.row)
        except UserError as error:
            unread = Rung(
                "bitwise", f"a committed record cannot be compared with: {str(error).partition(';')[0]}", None
            )
            continue
        _require_own(run, other)
        if same:
            found.append(other)
    return found, unread


def _require_own(run: Run, other: dict[str, Any]) -> None:
    """Raise UserError where a record of another seed has the run's weights: no two seeds end in the same."""
    if other["weights"] == run.facts["weights"] and other["seed"] != run.facts["seed"]:
        raise UserError(f"{run.folder / 'record.json'}: broken link: ends in the weights of seed {other['seed']}")


def _bitwise(run: Run, others: list[dict[str, Any]], unread: Rung | None) -> Rung:
    facts = run.facts
    if facts["environment"].get("kernels") == "fast":
        return Rung("bitwise", "trained with --fast, which promises no bits", None)
    copied = False
    elsewhere = perhaps = None
    for other in others:
        alike = record.same_environment(facts["environment"], other["environment"])
        pairs = zip(facts["chain"], other["chain"], strict=True)
        apart = next((mine["epoch"] for mine, theirs in pairs if mine != theirs), None)
        if apart is None:
            if other["history"] == facts["history"] or all(other[name] == facts[name] for name in TIMES):
                copied = True
                continue
            equal, shown = f"all {len(facts['chain'])} epochs equal to the committed record's", run.weights is not None
            if alike is False:
                other_in = ", ".join(sorted(record.unlike(facts["environment"], other["environment"])))
                equal = f"{equal}, of another environment ({other_in})"
            found = Rung("bitwise", equal if shown else f"{equal}; told, not shown: no weights here", shown or None)
            if alike is not False:
                return found
            elsewhere = found
            continue
        differs = f"differs from the committed record from epoch {apart} on"
        if alike:
            return Rung("bitwise", differs, False)
        if alike is None:  # an older record, of another processor by the same name, perhaps
            perhaps = Rung("bitwise", f"{differs}; one of the two does not tell its processor", None)
    if decided := elsewhere or perhaps:
        return decided
    if copied:
        return Rung("bitwise", "the committed record itself, copied: no other training has its times", None)
    return unread or Rung("bitwise", "no reference for this key (seed, parameters, data, code, environment)", None)


def statistics(
    runs: list[Run], metrics: list[Rung], target: Target | None, reference: Reference | None, declared: bool
) -> Iterator[tuple[Rung, int]]:
    """What a row's runs say together, with exit codes: whether those of its reference seeds are the reference, which
    is what results/reference.json says of the row, and the verdict on its own seeds.

    metrics: that rung of each run. An accuracy that only goodness tells, without weights, counts, but what follows from
    it is told as well, not shown; so is what follows from a rule that is not `declared` in params.yaml.
    """
    row = runs[0].row
    found = {run.facts["seed"]: rung for run, rung in zip(runs, metrics, strict=True)}
    known = {seed: rung.accuracy for seed, rung in found.items() if rung.accuracy is not None}
    if len(known) < len(found):
        yield Rung("statistics", "cannot be told without the test labels", None), CODES[None]
        return

    def rung(text: str, holds: bool | None, seeds: Iterable[int]) -> tuple[Rung, int]:
        if told := [str(seed) for seed in seeds if not found[seed].holds]:
            text = f"{text}; told by goodness alone, not shown: no weights of seed {', '.join(told)} here"
            holds = None
        if not declared:
            text, holds = f"{text}; by a rule that is told: the row is not in params.yaml", None
        return Rung("statistics", text, holds), CODES[holds]

    def agrees(values: Mapping[int, float], committed: Reference) -> bool:
        pairs = zip(committed.seeds, committed.values, strict=True)
        return all(math.isclose(values[seed], value) for seed, value in pairs)

    def lacking(seeds: Sequence[int], what: str) -> str:
        missing = [str(seed) for seed in seeds if seed not in known]
        count = f"{len(seeds) - len(missing)} of {len(seeds)} {what} seeds"
        return f"{count}, without {', '.join(missing)}" if missing else ""

    references, own = row.verdict.reference_seeds, [seed for seed in row.seeds if seed in known]
    if here := [seed for seed in references if seed in known]:
        ours = spread([known[seed] for seed in here])
        if gap := lacking(references, "reference"):
            yield rung(f"{percent(ours)} so far: {gap}", None, here)
        elif reference is None:
            text = f"{percent(ours)} of the reference seeds, of which results/reference.json says nothing"
            yield rung(text, None, here)
        else:
            of_reference = {run.facts["seed"]: run for run in runs if run.facts["seed"] in here}
            told = {seed: run.metrics["accuracy"] for seed, run in of_reference.items()}
            seconds = fmean(run.facts["seconds"] for run in of_reference.values())
            same: bool | None = True
            if agrees(known, reference):
                text = "as committed"
            elif agrees(told, reference):
                # In another environment rounding may move a prediction. `_compared` has judged by how much, value by
                # value; without the goodness (`_told`), nobody can tell rounding from a number that was moved a little.
                text = f"as committed ({percent(spread(list(told.values())))}) but for another machine's rounding"
                if any(run.goodness is None for run in of_reference.values()):
                    same, text = None, f"{text}, if it is that: goodness.safetensors not published"
            else:
                same, text = False, "not what results/reference.json says"
            if same is not False and not math.isclose(seconds, reference.seconds):
                same, text = False, f"{text}, but for the seconds in results/reference.json"
            yield rung(f"these runs are the reference itself: {percent(ours)}, {text}", same, here)
    if foreign := [str(seed) for seed in known if seed not in references and seed not in row.seeds]:
        yield Rung("statistics", f"without seed {', '.join(foreign)}, which the row does not declare", None), 0
    if here and not own:
        return
    against = percent(target.model_dump()) if target else "no target"
    if gap := lacking(row.seeds, "declared"):
        so_far = f"{percent(spread([known[seed] for seed in own]))} so far against {against}: " if own else ""
        yield rung(f"{so_far}inconclusive: {gap}", None, own)
        return
    result = results.judge(spread([known[seed] for seed in own]), row, target)
    word = result["verdict"]
    text = f"{percent(result['accuracy'])} against {against}: {word}: {result['why']}"
    yield rung(text, {REPRODUCED: True, NOT_REPRODUCED: False}.get(word), own)


def report(path: Path, project: Layout, params: Params, data: Data, device: torch.device) -> int:
    """Climb and print the ladder of every run that `path` stands for; the exit code, as `reproduce`'s.

    data: gives the row's prepared splits, or None where they cannot be had. Raises UserError for a link that breaks.
    """
    determinism.switch_on()
    runs: list[Run] = []
    metrics: list[Rung] = []
    splits: tuple[Split, Split] | None = None
    codes = {0}
    for folder in _whole(evidence.runs_of(path)):
        run = evidence.read(folder)
        for other in runs:
            _require_own(run, other.facts)
        name, rung = run.facts["experiment"], declared(run, params)
        if not runs:
            splits = data(run.row)
        print(f"{name}, seed {run.facts['seed']}")
        _tell(rung)
        committed = project.committed_records(name)
        for rung in ladder(run, splits, committed, device):
            _tell(rung)
            if rung.what == "metrics":
                metrics.append(rung)
            if rung.holds is False:
                codes.add(CODES[False])
        runs.append(run)
    print(f"{name}, {len(runs)} seed{'s' * (len(runs) > 1)}")
    rung = _self_repeat(runs[0].row, device)
    _tell(rung)
    if rung.holds is False:
        codes.add(CODES[False])
    row, single = runs[0].row, path.is_file() or (path / "record.json").exists()
    if single and row.seeds != (runs[0].facts["seed"],):
        seeds = ", ".join(map(str, row.seeds))
        _tell(Rung("statistics", f"told of a row's folder with all its declared seeds ({seeds})", None))
    else:
        target = target_of(read_targets(project.paper, project.reference), name, row)
        reference = reference_of(read_references(project.reference), name, row)
        for rung, judged in statistics(runs, metrics, target, reference, name in params.experiments):
            _tell(rung)
            codes.add(judged)
    for rung in _claims(project, name):
        _tell(rung)
    return worst(codes)


def _whole(folders: list[Path]) -> list[Path]:
    """Those of several seeds' folders whose run has come to its end; the others are told, and count as missing.

    Of a single folder, and where there is no other, what is missing is for `evidence.read` to say.
    """
    missing = {
        folder: name for folder in folders for name in ("metrics.json", "record.json") if not (folder / name).exists()
    }
    if len(missing) == len(folders):
        return folders
    for folder, name in missing.items():
        print(f"{folder.parent.name}, seed {folder.name}")
        _tell(Rung("run", f"not complete: no {name}", None))
    return [folder for folder in folders if folder not in missing]


def _claims(project: Layout, name: str) -> Iterator[Rung]:
    """What this project's tables say of the claims that the row is part of: not computed anew, so no more than told."""
    try:
        about = [one for one in claims.read(project) if any(name in pair for pair in one["pairs"])]
    except UserError as error:  # other rows' results, which are not what is judged here
        yield Rung("claims", f"cannot be told: {error}", None)
        return
    if not about:
        yield Rung("claims", f"none of paper.yaml is about {name}", None)
    for one in about:
        yield Rung(f"claim {one['id']}", f"by the results here {one['verdict']}: {one['why']}", None)


def _tell(rung: Rung) -> None:
    tell(f"{rung.what}: {rung.found}", rung.holds, indent="  ")
