"""Runs as jobs, a process a seed: started here (`local`) or by Slurm (`slurm.py`), looked at, and made known to DVC.

DVC runs one stage at a time and keeps its state in files that only one process may write. So jobs run beside it: each
makes the files of its own run, as DVC's stages would, and `note` enters whole runs into dvc.lock, from one process.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ffrepro import config, errors, pipeline, record, squeue
from ffrepro.config import Experiment, Params
from ffrepro.errors import MachineError, UserError
from ffrepro.layout import Layout
from ffrepro.progress import say

if TYPE_CHECKING:
    from torch import Tensor

TAIL = 4096  # bytes of a log's end that are looked at
WAIT = 0.1  # seconds between two looks at what runs here
FILES = ("weights.safetensors", "record.json", "history.csv", "goodness.safetensors", "metrics.json")  # of a whole run


class Run(NamedTuple):
    """One seed of a row: what a job is of."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}-{self.seed}"


class State(NamedTuple):
    """word: done, running, queued, failed or not submitted. of: the accuracy, what the job said last, or why."""

    run: Run
    word: str
    of: str


def runs_of(params: Params, names: Iterable[str]) -> list[Run]:
    return [Run(name, seed) for name in dict.fromkeys(names) for seed in config.experiment(params, name).seeds]


def prepare(project: Layout, params: Params, runs: Iterable[Run], settings: dict[str, str]) -> None:
    """What every job finds there: the checked rows and the prepared data, which a node may not be able to fetch.

    A row that needs a GPU is checked here without one: the machine that submits is not the one that computes.
    """
    rows = _check(project, params, runs)
    for data in dict.fromkeys(row.data.name for row in rows.values()):
        pipeline.prepare(project, data, settings)


def _check(project: Layout, params: Params, runs: Iterable[Run]) -> dict[str, config.Experiment]:
    """What the check stage does, for the rows of these runs; returns them."""
    rows = {run.name: config.experiment(params, run.name) for run in runs}
    for name, row in rows.items():
        content, path = config.canonical(row).encode(), project.experiment(name)
        if not path.exists() or record.regular(path).read_bytes() != content:
            record.write_bytes(content, path)
    return rows


def lacking(project: Layout, params: Params, run: Run) -> str:
    """What a run lacks to be the declared one of its row, seed, data and this code, whole; "" where nothing.

    Its accuracies must be those of its goodness. Whether that is the goodness of its weights, `ffrepro verify` tells.
    """
    folder, row = project.run(*run), config.experiment(params, run.name)
    if missing := _missing(folder):
        return missing
    from ffrepro import evidence  # and with it PyTorch, which is not waited for where nothing is there

    try:
        facts, metrics = record.read_sealed(folder / "record.json"), record.read_sealed(folder / "metrics.json")
        tables = {name: record.read_tensors(folder / f"{name}.safetensors") for name in ("weights", "goodness")}
        weights, goodness = (record.tensors_hash(tensors) for tensors in tables.values())
        train, test, labels = _data(project.data(row.data.name), row.data.held_out)
        evaluated = _evaluation_code()
        checks = _declared(row, run, facts, metrics) | {
            "data": (facts["data"], train),
            "history": (facts["history"], record.file_hash(folder / "history.csv")),
            "weights": (facts["weights"], weights),
            "goodness": (metrics["goodness_table"], goodness),
            "test data": (metrics["test_data"], test),
            "evaluation's code": (metrics.get("code", evaluated), evaluated),
        }
        if not (lacks := _differing(checks)):
            table, path = tables["goodness"]["goodness"], folder / "metrics.json"
            evidence.require_accuracies(path, metrics, table, labels, row.evaluation.vote)
        return lacks
    except UserError as error:
        return str(error)
    except (AttributeError, KeyError, IndexError, TypeError):
        return "record.json or metrics.json is not what a stage writes"


def _missing(folder: Path) -> str:
    return next((f"no {file}" for file in FILES if not (folder / file).exists()), "")


def _declared(row: Experiment, run: Run, facts: dict[str, Any], metrics: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a run's two JSON files tell of it, and what it must be, to be the declared one of its row and seed."""
    return {
        "seed": (facts["seed"], run.seed),
        "parameters": (facts["parameters"], record.text_hash(config.training_parameters(row))),
        "code": (facts["code"], record.code_hash()),
        "evaluation": (metrics["link"], facts["chain"][-1]["link"]),
        "vote": (metrics["vote"], row.evaluation.vote),
    }


def _differing(checks: dict[str, tuple[Any, Any]]) -> str:
    other = [what for what, (has, wants) in checks.items() if has != wants]
    return f"of other {', '.join(other)}" if other else ""


@cache
def _evaluation_code() -> str:
    from ffrepro import evaluation

    return record.code_hash(evaluation.CODE)


@cache
def _data(path: Path, held_out: int) -> tuple[str, str, "Tensor"]:
    """(hash of the training split without what is held out, hash of the test split, its labels)."""
    from ffrepro import data

    train, test = data.load(path)
    train = data.held_out(train, held_out)[0]
    return record.tensors_hash(train._asdict()), record.tensors_hash(test._asdict()), test.labels


def submitted(project: Layout) -> dict[Run, dict[str, Any]]:
    """What was written down of each submitted run: {"job": Slurm's, "process": (of `--local`, since when)} or null."""
    found = {}
    for path in sorted(project.jobs.glob("*.json")):
        name, _, seed = path.stem.rpartition("-")
        its = record.read_json(path)
        if not (seed.isdecimal() and isinstance(its, dict) and its.keys() == {"job", "process"}):
            raise UserError(f"{path}: not what `ffrepro submit` writes; delete it, and the run may be submitted again")
        found[Run(name, int(seed))] = its
    return found


def write_down(project: Layout, run: Run, job: str | None = None, *, ended: bool = False) -> None:
    """One file a run, one writer: the command that submits. Without a job of Slurm's, its process is this one, until
    the run has ended."""
    process = None if job or ended else [os.getpid(), _since(os.getpid())]
    record.write_json({"job": job, "process": process}, project.job(*run))


def tail(path: Path, begin: str = "") -> str:
    """The last line of a log that begins so; "" where it has none."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = [
            line
            for line in file.read().decode(errors="replace").splitlines()
            if line.strip() and line.startswith(begin)
        ]
        return config.plain(lines[-1].strip()) if lines else ""
    return ""


def states(project: Layout, params: Params, runs: Iterable[Run]) -> Iterator[State]:
    """The state of each run, by what was written down, its files, its log, and Slurm's queue."""
    known = submitted(project)
    queue = squeue.queue() if any(its["job"] for its in known.values()) else {}
    for run in runs:
        its, said = known.get(run), _said(project, run)
        there = project.run(*run)
        lacks = _glance(project, params, run) if (there / "metrics.json").exists() else "nothing there"
        if its and its["job"] in queue:
            pending, reason = queue[its["job"]]
            yield State(run, "queued", reason) if pending else State(run, "running", said)
        elif not lacks:
            yield State(run, "done", f"{record.read_json(there / 'metrics.json')['accuracy']:.2f} %")
        elif its is None:
            yield State(run, "not submitted", lacks)
        elif its["process"] and _lives(*its["process"]):
            yield State(run, "running", said) if project.log(*run).exists() else State(run, "queued", "")
        else:
            log, why = squeue.log(project, its["job"] or ""), _why(project, run, lacks, said)
            told = tail(log, "slurmstepd") or tail(log)  # srun's last word is only that it was killed
            killed = told and why.startswith(("epoch ", "interrupted"))  # its own log does not say by whom, or why
            yield State(run, "failed", told if killed else why or told or "ended before it began")


def _glance(project: Layout, params: Params, run: Run) -> str:
    """`lacking`'s cheap part, for many runs: by what its two JSON files tell, and which files are there."""
    try:
        folder, row = project.run(*run), config.experiment(params, run.name)
        facts, metrics = record.read_sealed(folder / "record.json"), record.read_sealed(folder / "metrics.json")
        format(metrics["accuracy"], ".2f")
        return _differing(_declared(row, run, facts, metrics)) or _missing(folder)
    except (UserError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return "damaged"


def _said(project: Layout, run: Run) -> str:
    """What its job said last."""
    return tail(project.log(*run)).removeprefix(f"{run}: ").removeprefix("ffrepro: ")


def _why(project: Layout, run: Run, lacks: str, said: str) -> str:
    """Why a run that has ended is not done: what it lacks where it came to its end, else what its job said last."""
    ended_well = (project.run(*run) / "metrics.json").exists() and re.match(r"epoch (\d+)/\1\b", said)
    return lacks if ended_well else said


def _lives(process: int, since: str | None) -> bool:
    return since is not None and _since(process) == since


def _since(process: int) -> str | None:
    """Since when a process lives, by boot and clock tick, which do not change when the clock is set; None if it does
    not live."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"  # starttime of proc(5)


def note(project: Layout, params: Params, runs: Iterable[Run], *, anew: bool = False) -> list[Run]:
    """Enter the whole ones of these runs into dvc.lock, so that `dvc repro` makes none of them again; returns them.

    Only what `lacking` finds nothing lacking in, and, unless `anew`, what dvc.lock does not name already: dvc.yaml may
    have changed since it does. The caller is `pipeline.alone`. Raises UserError where DVC fails.
    """
    noted = _stages(project)
    new = [run for run in runs if anew or not _noted(project, run, noted)]
    fresh = [run for run in new if not lacking(project, params, run)]
    if not fresh:
        return []
    rows = _check(project, params, fresh)  # params.yaml may have changed since: DVC is told of a check of now
    stages = [f"check@{name}" for name in rows]
    stages += dict.fromkeys(f"prepare@{row.data.name}" for row in rows.values())
    stages += [f"{stage}@{run}" for run in fresh for stage in ("train", "evaluate")]
    pipeline.note(project, stages)
    return fresh


def taken_over(project: Layout, params: Params, rows: list[str], settings: dict[str, str]) -> set[str]:
    """`note` all whole runs of these rows; returns the rows that need a GPU and have nothing left to train.

    Else DVC, which may not know of a run, or finds another file changed than those that make its numbers, would begin
    it anew, also where there is no GPU. Raises UserError where the data that the runs are of cannot be had.
    """
    needing = {row for row in rows if config.experiment(params, row).requires == "cuda"}
    there = [run for run in runs_of(params, rows) if (project.run(*run) / "metrics.json").exists()]
    if there:
        with pipeline.alone(project):
            for name in dict.fromkeys(run.name for run in there):
                pipeline.prepare(project, config.experiment(params, name).data.name, settings)
            note(project, params, [run for run in there if run.name in needing], anew=True)
            note(project, params, [run for run in there if run.name not in needing])
    return {row for row in needing if not any(lacking(project, params, run) for run in runs_of(params, [row]))}


def _stages(project: Layout) -> dict[str, str]:
    """Each stage's entry in dvc.lock, as text, of which a few are read. The caller is `pipeline.alone`, by which it is
    whole."""
    begin, *entries = pipeline.lock_entries(project.dvc_lock)
    return {entry.partition(":\n")[0].strip(): begin + entry for entry in entries}


def _noted(project: Layout, run: Run, stages: Mapping[str, str]) -> bool:
    """Whether dvc.lock has this run's record and metrics as they are, and what they were made of."""
    for stage, file in (("train", "record.json"), ("evaluate", "metrics.json")):
        name, path = f"{stage}@{run}", (project.run(*run) / file).relative_to(project.root)
        try:
            its = pipeline.read_lock(stages.get(name, "")).get(name, {})
        except ValueError:  # no entry, or a damaged one, of which DVC tells
            return False
        known = {one.get("path"): one.get("md5") for one in (*(its.get("deps") or ()), *(its.get("outs") or ()))}
        files = {str(path), *(one.get("path") for one in its.get("deps") or ())}
        if any(known.get(one) != _md5(project.root / one) for one in files):
            return False
    return True


@cache
def _md5_of(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _md5(path: Path) -> str:
    """As DVC has it; "" where there is no file."""
    if not path.is_file():
        return ""
    its = path.stat()
    return _md5_of(path, its.st_mtime_ns, its.st_size)


def command(run: Run, python: str = sys.executable) -> list[str]:
    return [python, "-m", "pipelines.run", run.name, str(run.seed)]


def local(project: Layout, params: Params, runs: list[Run], processes: int, settings: dict[str, str]) -> list[State]:
    """Run jobs here, so many at once, on CUDA one a GPU; returns their states at the end.

    A run that is whole is left alone; one that stopped goes on from its checkpoint. On Ctrl-C or SIGTERM all end in
    order. Without FFREPRO_THREADS the CPU's cores are shared out, which the records name as ever.
    """
    with pipeline.alone(project) as held:
        untrained = [run for run in runs if not (project.run(*run) / "record.json").exists()]
        _require(params, untrained, settings)  # before anything is fetched
        prepare(project, params, runs, settings)
        note(project, params, runs)
        unfinished = [run for run in runs if lacking(project, params, run)]
        elsewhere = _at_slurm(project, params, unfinished)
        for run, word in elsewhere.items():
            say(f"{run}: {word} already, as a job of Slurm's, left alone")
        waiting = deque(run for run in unfinished if run not in elsewhere)
        places = _places(params, waiting, processes, settings)
        running: dict[Run, tuple[subprocess.Popen[bytes], dict[str, str]]] = {}
        for run in waiting:
            project.log(*run).unlink(missing_ok=True)
            write_down(project, run)
        try:
            while waiting or running:
                while waiting and places:
                    run, place = waiting.popleft(), places.pop()
                    environment = pipeline.environment(settings | place)
                    with project.log(*run).open("ab") as log, errors.later():
                        process = subprocess.Popen(
                            command(run),
                            cwd=project.root,
                            env=environment,
                            stdout=log,
                            stderr=log,
                            pass_fds=(held,),
                            preexec_fn=errors.deaf_to_the_terminal,
                        )
                        running[run] = process, place
                    say(f"{run}: started")
                for run, (process, place) in list(running.items()):
                    if process.poll() is not None:
                        del running[run]
                        places.append(place)
                        write_down(project, run, ended=True)
                        say(f"{run}: {f'ended with {process.returncode}' if process.returncode else 'done'}")
                time.sleep(WAIT)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()
        note(project, params, runs)
    ended: list[State] = []
    for run in runs:
        if run in elsewhere:
            ended.append(State(run, elsewhere[run], ""))
        elif lacks := lacking(project, params, run):
            ended.append(State(run, "failed", _why(project, run, lacks, _said(project, run))))
        else:
            ended.append(State(run, "done", ""))
    return ended


def _at_slurm(project: Layout, params: Params, runs: Iterable[Run]) -> dict[Run, str]:
    """Of these runs those that Slurm has queued or running, where it can be asked."""
    known = submitted(project)
    jobs = [run for run in runs if known.get(run, {}).get("job")]
    with suppress(MachineError):  # a project that was brought home from its cluster
        return {one.run: one.word for one in states(project, params, jobs) if one.word in ("queued", "running")}
    return {}


def _require(params: Params, runs: Iterable[Run], settings: dict[str, str]) -> None:
    """Raise MachineError where a row of these runs needs a GPU and there is none."""
    from ffrepro import devices

    for name in dict.fromkeys(run.name for run in runs):
        devices.require(params, name, settings["FFREPRO_DEVICE"])


def _places(params: Params, runs: Iterable[Run], processes: int, settings: dict[str, str]) -> list[dict[str, str]]:
    """What so many processes at once have to themselves: a GPU each, or a share of the CPU's cores."""
    from ffrepro import devices

    device = devices.choose(settings["FFREPRO_DEVICE"]).type
    if device == "cuda":
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = torch.cuda.device_count()
        gpus = given.split(",") if given else [str(i) for i in range(there)]
        if not gpus[0].startswith("MIG-"):  # of which a process sees one; of others a name may be of no GPU
            gpus = gpus[:there]
        if processes > len(gpus):
            say(f"GPUs here: {len(gpus)}; as many runs at once, one a GPU, not {processes}")
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:processes]]
    _require(params, runs, settings)
    if os.environ.get("FFREPRO_THREADS") or settings.get("FFREPRO_PORTABLE"):  # whose runs have one thread
        return [{} for _ in range(processes)]
    threads = devices.cores(processes)
    say(f"{threads} CPU thread{'s' if threads > 1 else ''} a run (FFREPRO_THREADS says otherwise)")
    return [{"FFREPRO_THREADS": str(threads)} for _ in range(processes)]
