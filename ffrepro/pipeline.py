"""Run a row's part of the DVC graph, and train the committed references by the same stages."""

import contextlib
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from ffrepro import config, errors, lock, record
from ffrepro.config import Experiment, Params
from ffrepro.errors import EXIT_CODE_FILE, Stop, UserError
from ffrepro.layout import Layout

if TYPE_CHECKING:
    from ffrepro.data import Split

DVC = [
    "-c",
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: None); from dvc.cli import main;"
    "signal.signal(signal.SIGUSR1, signal.default_int_handler); sys.exit(main())",
]
"""DVC for Python's command line, as `-m dvc`. It writes dvc.lock in place, after every stage: Ctrl-C and SIGTERM, which
may reach it in the middle of that, do nothing (Ctrl-C by `_call`, before it starts); `_end` ends it by SIGUSR1, and it
puts its locks away."""
PATIENCE = 60  # seconds for a stage to end, before it is killed
NO_GIT = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"


def check_graph(params: Params, project: Layout) -> None:
    """Raise UserError when graph.yaml, which DVC takes the seeds from, does not fit params.yaml."""
    given = config.read_yaml(project.graph) if project.graph.exists() else None
    if given != config.graph(params):
        raise UserError(
            "graph.yaml does not fit the rows and seeds of params.yaml; write it anew: ffrepro params graph"
        )


def write_graph(params: Params, project: Layout) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = None
    text = io.StringIO()
    text.write(
        "# Every row's seeds as DVC's train and evaluate stages. Written by `ffrepro params graph`; do not edit.\n"
    )
    yaml.dump(config.graph(params), text)
    record.write_text(text.getvalue(), project.graph)


def environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment of a stage: this Python first on the path, and our settings laid over the caller's.

    DVC starts stages by $SHELL, which may be none (nologin), or put another Python first.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **settings, "PATH": path, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}


@contextlib.contextmanager
def alone(project: Layout) -> Iterator[int]:
    """The project for this command only: beside another one, DVC would fail all stages of both."""
    with lock.alone(project.lock(), f"`{' '.join(['ffrepro', *sys.argv[1:]])}`") as held:
        _forget_killed(project.root / ".dvc" / "tmp" / "rwlock")
        _forget_cut_off(project.dvc_lock)
        yield held


def _forget_killed(path: Path) -> None:
    """Take out of DVC's locks what killed processes left there.

    DVC fails as long as a process has the number of one that left a lock: the kernel still lists it for a moment, and
    after a restart any program may have its number. It fails for good at a file that was cut off while DVC wrote it.
    """
    if not path.exists():
        return
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    with contextlib.suppress(OSError), path.with_suffix(".lock").open("r+") as guard:  # DVC makes it
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: a DVC is at them now
        try:
            locks = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):
            path.unlink()
            return
        write = {file: holder for file, holder in locks["write"].items() if _at_work(**holder)}
        read = {file: [one for one in holders if _at_work(**one)] for file, holders in locks["read"].items()}
        kept = {"write": write, "read": {file: holders for file, holders in read.items() if holders}}
        if kept != locks:
            record.write_text(json.dumps(kept), path)


def _forget_cut_off(path: Path) -> None:
    """Put aside a dvc.lock that was cut off: DVC writes it in place, and would fail from then on.

    What it said of whole runs, `jobs.taken_over` finds out again. Only the last entry is looked at: the others are
    whole where it has begun, and all of a large file would take a minute. It is left alone while a DVC holds its lock:
    that one may be writing it.
    """
    if not path.exists():
        return
    folder = Path(".dvc", "tmp")
    (path.parent / folder).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            guard = held.enter_context((path.parent / folder / "lock").open("r+"))  # DVC makes it
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # DVC is not at work, or a file system without locks
            pass
        begin, *entries = lock_entries(path)
        try:
            read_lock("".join([begin, *entries[-1:]]))
        except ValueError:
            aside = folder / "dvc.lock.cut-off"
            path.replace(path.parent / aside)
            print(f"ffrepro: dvc.lock: cut off while DVC wrote it; now {aside}, whole runs are kept", file=sys.stderr)


def lock_entries(path: Path) -> list[str]:
    """What dvc.lock begins with, and the text of each of its entries, as DVC writes them; [""] where there is none."""
    return re.split(r"^(?=  \S)", path.read_bytes().decode(errors="replace"), flags=re.M) if path.exists() else [""]


def read_lock(text: str) -> dict[str, Any]:
    """The entries of a dvc.lock, whole or cut to a few. Raises ValueError where DVC would stumble over it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import loads_yaml
    from ruamel.yaml.error import YAMLError
    from voluptuous import Invalid

    try:
        return dict(COMPILED_LOCKFILE_SCHEMA(loads_yaml(text)).get("stages") or {})
    except (YAMLError, Invalid) as error:
        raise ValueError(error) from None


def _at_work(pid: int, cmd: str) -> bool:
    """Whether a process of that number still runs the command.

    Its last word is compared: DVC keeps `sys.argv`, which begins with a script's path where the process has `-m`.
    """
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError):  # none, one that has ended, or no number of a process
        return False
    return command.endswith(cmd.split(" ")[-1])


def repro(project: Layout, stages: list[str], settings: dict[str, str]) -> None:
    """`dvc repro --keep-going STAGE...`, with or without git around the project; what DVC prints goes to stderr.

    Raises UserError with the exit code of the last stage that failed; it has printed its own line by then.
    """
    with alone(project) as held, _scratch() as scratch:
        code = Path(scratch) / "code"
        env = environment({**settings, EXIT_CODE_FILE: str(code), **_git_or_none(project, scratch)})
        if _call([*DVC, "repro", "--keep-going", *stages], project, env, held=(held,)):
            why = "a stage failed; its own line stands above"
            if not code.exists():  # no stage came to say why
                why = 'DVC failed; why stands above (if it is "exited with -9": killed, mostly for want of memory)'
            error = UserError(f"{', '.join(stages)}: {why}")
            error.exit_code = int(code.read_text() or UserError.exit_code) if code.exists() else 1
            raise error


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    try:
        made = tempfile.TemporaryDirectory()
    except OSError as error:
        why = f"no folder for temporary files can be made: {error.strerror}"
        raise UserError(f"{why}; free some space, or name a folder with TMPDIR") from None
    with made as scratch:
        yield scratch


def _git_or_none(project: Layout, scratch: str) -> dict[str, str]:
    """What lets DVC work where no git is around the project: no variable of its own, only a system-wide file."""
    if (project.root / ".git").exists():  # not that of a folder around it, which may ignore all that lies here
        return {}
    record.write_text(NO_GIT, Path(scratch, "config"))
    return {"DVC_SYSTEM_CONFIG_DIR": scratch}


def note(project: Layout, stages: list[str]) -> None:
    """Let DVC take what lies there for what these stages made (`pipelines/note.py`). The caller is `alone`.

    Raises UserError where DVC fails; it has said why by then.
    """
    with _scratch() as scratch:
        env = environment(_git_or_none(project, scratch))
        if _call(["-m", "pipelines.note", *stages], project, env):
            raise UserError("DVC could not take over the runs that are done; why stands above")


def without_states(project: Layout, name: str, row: Experiment) -> str | None:
    """After --keep-states: one line on the seeds of which not all are there, since they had been trained before, or
    whose last one is another training's."""
    runs = ", ".join(f"{name}-{seed}" for seed in row.seeds if not _kept(project, name, seed, row.training.epochs))
    if not runs:
        return None
    return f"{runs}: not all states kept, trained before without --keep-states; delete runs/{name} and give this again"


def _kept(project: Layout, name: str, seed: int, epochs: int) -> bool:
    """Whether a state is there for every epoch, the last of them the run's own."""
    import torch

    from ffrepro import checkpoint

    folder = project.checkpoint(name, seed).with_suffix("")
    states = [checkpoint.kept_state(folder, epoch) for epoch in range(1, epochs + 1)]
    if not all(state.exists() for state in states):
        return False
    try:
        its = checkpoint.read(states[-1], torch.device("cpu"))["chain"]
    except UserError:
        return False
    return bool(its == record.read_json(project.run(name, seed) / "record.json")["chain"])


def dvc(project: Layout, arguments: list[str]) -> int:
    """DVC with these arguments, to its exit code, so that it ends in order as in `repro`."""
    return _call([*DVC, *arguments], project, environment({}), stdout=sys.stdout)


def _call(
    program: list[str],
    project: Layout,
    env: dict[str, str],
    stdout: IO[str] | None = None,
    held: tuple[int, ...] = (),
) -> int:
    """Run a program of Python, given as on its command line, in the project; its exit code.

    held: locks that it holds too, should this process be killed. On Ctrl-C or SIGTERM everything that it started has
    ended before Stop goes on.
    """
    process = None
    try:
        with errors.later():
            process = subprocess.Popen(
                [sys.executable, *program],
                cwd=project.root,
                env=env,
                stdout=stdout or sys.stderr,
                pass_fds=held,
                preexec_fn=errors.deaf_to_the_terminal,
            )
        return process.wait()
    except Stop:
        if process:
            _end(process, is_dvc=program[:2] == DVC)
        raise


def _end(process: "subprocess.Popen[bytes]", *, is_dvc: bool) -> None:
    """End a child and what it has started, whichever of them the signal has reached.

    A stage ends in order at any time. DVC would begin the next one; it is ended while a stage runs, when it writes
    nothing, and left alone while none does. It and the shell by which it starts a stage are stopped while we look, so
    that no stage begins unseen and is left behind.
    """
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            child = psutil.Process(process.pid)
            stopped = _stopped(child) if is_dvc else []
            stages = child.children(recursive=True)
            if stages or not is_dvc:
                process.send_signal(signal.SIGUSR1 if is_dvc else signal.SIGTERM)
            for stage in stages:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stage.terminate()
            for one in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.resume()
            for stage in psutil.wait_procs(stages, timeout=PATIENCE)[1]:
                stage.kill()
        time.sleep(0.05)


def _stopped(dvc: psutil.Process) -> list[psutil.Process]:
    """Stop DVC, then the shells that it has started, which start no more then; them all, for the caller to resume.

    A shell either starts a stage and waits, as dash does, or becomes the stage.
    """
    _stop(dvc)
    shells = dvc.children()
    for shell in shells:
        with contextlib.suppress(psutil.NoSuchProcess):
            _stop(shell)
    return [*shells, dvc]


def _stop(process: psutil.Process) -> None:
    """Return once it has stopped indeed, or ended. Of a process that is just starting another, the kernel waits until
    that one's program runs, so that it can be seen."""
    while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
        process.suspend()  # again, where someone else has just resumed it, as `timeout` does
        time.sleep(0.001)


def run_stage(project: Layout, settings: dict[str, str], stage: str, *arguments: str) -> None:
    """One stage by itself, past DVC. Raises UserError with the exit code of a stage that fails."""
    if code := _call(["-m", f"pipelines.{stage}", *arguments], project, environment(settings)):
        error = UserError(f"the stage {stage} of {arguments[0]} failed; its own line stands above")
        error.exit_code = code
        raise error


def prepare(project: Layout, name: str, settings: dict[str, str]) -> None:
    """A data set by its stage, unless it is there. Raises UserError as `run_stage` does."""
    if not project.data(name).exists():
        run_stage(project, settings, "prepare", name)


def prepared(project: Layout, row: Experiment, settings: dict[str, str]) -> "tuple[Split, Split] | None":
    """The row's prepared (training, test) splits, prepared now if need be; None, with the stage's own line on stderr,
    where the data cannot be had. The training split is without what the row holds out."""
    from ffrepro import data

    try:
        prepare(project, row.data.name, settings)
    except UserError:
        return None
    train, test = data.load(project.data(row.data.name))
    return data.held_out(train, row.data.held_out)[0], test


def train_references(project: Layout, name: str, row: Experiment, settings: dict[str, str]) -> None:
    """Run check, prepare, train and evaluate for the row's reference seeds, with `results` as the folder of the
    runs."""
    with alone(project):
        run_stage(project, settings, "check", name, "results")
        run_stage(project, settings, "prepare", row.data.name)
        for seed in row.verdict.reference_seeds:
            if not (project.run(name, seed) / "record.json").exists():  # `results.collect` compares its parameters
                run_stage(project, settings, "train", name, str(seed), "results")
            run_stage(project, settings, "evaluate", name, str(seed), "results")
