"""The DVC graph: what it tracks, what an edit runs again, and what it refuses."""

import ast
import contextlib
import fcntl
import graphlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from ffrepro import checkpoint, config, layout, pipeline, record

PLUMBING = {"__init__", "checkpoint", "config", "devices", "errors", "jobs", "layout", "lock", "progress", "record"}
"""Modules that carry numbers from place to place but do not make them: editing a progress bar must not retrain the
paper. What `config` makes of params.yaml is tracked leaf by leaf instead."""


def dvc_yaml(root):
    stages = YAML(typ="safe").load(root / "dvc.yaml")["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def imported(path: Path, root: Path) -> set[str]:
    """The package's modules that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ffrepro":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ffrepro."):
            found.add(node.module.split(".")[1])
    return {name for name in found if (root / "ffrepro" / f"{name}.py").exists()}


def closure(path: Path, root: Path) -> set[str]:
    """Everything a file imports, directly or through others; the plumbing's own imports are left out."""
    found, new = set(), imported(path, root)
    while new:
        name = new.pop()
        found.add(name)
        if name not in PLUMBING:
            new |= imported(root / "ffrepro" / f"{name}.py", root) - found
    return found


@pytest.mark.parametrize("stage", ["check", "prepare", "train", "evaluate", "report", "verdict", "table"])
def test_code_dependencies_are_what_the_stage_imports(root, stage):
    deps = dvc_yaml(root)[stage]["deps"]
    tracked = {Path(dep).stem for dep in deps if dep.startswith("ffrepro/")}
    imports = closure(root / "pipelines" / f"{stage}.py", root)
    assert f"pipelines/{stage}.py" in deps
    assert imports - PLUMBING <= tracked <= imports


def test_no_module_imports_another_in_a_circle(root):
    modules = {path.stem: imported(path, root) for path in (root / "ffrepro").glob("*.py")}
    assert {"jobs", "squeue", "report", "tables"} <= modules.keys()
    graphlib.TopologicalSorter(modules).prepare()  # raises CycleError


def test_a_verdict_of_what_is_no_summary_is_a_line(project):
    project.stages(["check", "digits"])
    path = project.root / "report" / "rows" / "digits.json"
    path.parent.mkdir(parents=True)
    for content, line in (("{}", "not what a stage writes"), ('{"row": "x"}', "not there, or of other parameters")):
        path.write_text(content)
        done = project.call("python", "-m", "pipelines.verdict", "digits")
        assert done.returncode == 2
        assert re.fullmatch(rf"ffrepro: .*digits.json: {line}; .*run `dvc repro` again\n", done.stderr), done.stderr


def leaves(content, prefix=""):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def tracked_leaves(root, stage):
    params = [p for p in dvc_yaml(root)[stage].get("params", []) if isinstance(p, dict)]
    return {leaf for p in params for tracked in p.values() for leaf in tracked}


def test_every_field_is_used_and_every_tracked_path_exists(root, params):
    fields = set(leaves(params.experiments["digits"].model_dump()))
    tracked = set().union(*(tracked_leaves(root, stage) for stage in ("train", "evaluate", "verdict")))
    assert tracked <= fields
    elsewhere = {  # fields that no stage tracks as a leaf, and the code that reads them
        "title": ("report.py", "row.title"),
        "requires": ("devices.py", "row.requires"),
        "seeds": ("report.py", "row.seeds"),
        "verdict.reference_seeds": ("pipeline.py", "row.verdict.reference_seeds"),
    }
    assert fields - tracked == set(elsewhere)
    for module, expression in elsewhere.values():
        assert expression in (root / "ffrepro" / module).read_text()


def test_a_training_tracks_exactly_what_its_record_hashes(root, params):
    hashed = set(leaves(json.loads(config.training_parameters(params.experiments["digits"]))))
    assert tracked_leaves(root, "train") == hashed


def test_stage_names_read_well_and_hold_every_row(project, params):
    names = project.run("dvc", "stage", "list", "--name-only", DVC_SYSTEM_CONFIG_DIR=no_git(project)).stdout.split()
    for name, row in params.experiments.items():
        runs = [f"{stage}@{name}-{seed}" for stage in ("train", "evaluate") for seed in row.seeds]
        assert {f"check@{name}", f"prepare@{row.data.name}", *runs, f"report@{name}", f"verdict@{name}"} <= set(names)


def no_git(project):
    folder = project.root / "system"
    folder.mkdir(exist_ok=True)
    (folder / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    return str(folder)


def ran(done):
    """The stages that a `dvc repro` ran."""
    assert done.returncode == 0, done.stderr
    return re.findall(r"Running stage '(.*)'", done.stdout)


@pytest.fixture(scope="module")
def reproduced(project_in, tmp_path_factory):
    """A project whose row `digits` was reproduced, and what the command said."""
    project = project_in(tmp_path_factory.mktemp("reproduced"))
    project.shrink(seeds=[0, 1])
    return project.root, project.run("ffrepro", "reproduce", "digits", "--json")


@pytest.fixture
def copied(reproduced, project):
    """A copy of it, for a test to change."""
    root, said = reproduced
    shutil.copytree(root, project.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tmp"))
    return project, said


def test_an_edit_runs_again_what_it_touches_and_nothing_else(copied):
    project, done = copied
    settings = {"DVC_SYSTEM_CONFIG_DIR": no_git(project)}

    def repro():
        return project.run("dvc", "repro", "verdict@digits", **settings)

    first = re.findall(r"Running stage '(.*)'", done.stderr)
    assert first.index("prepare@digits") < first.index("train@digits-0") < first.index("evaluate@digits-0")
    assert first[-2:] == ["report@digits", "verdict@digits"]
    assert len(first) == 8  # check, prepare, 2 x (train, evaluate), report, verdict
    assert ran(repro()) == []
    project.edit("params.yaml", "on a CPU, 5 narrow blocks", "on a CPU")  # another row: it might be like it
    assert ran(repro()) == ["check@digits"]
    project.edit("paper.yaml", "targets:\n", "targets:\n  digits: {mean: 50, std: 1, source: trifecta}\n")
    assert ran(repro()) == ["report@digits", "verdict@digits"]
    rule = "    verdict:\n      reference_seeds: [3, 4, 5, 6, 7]"
    project.edit("params.yaml", rule, f"    evaluation:\n      vote: all\n{rule}")
    assert sorted(ran(repro())) == [
        "check@digits",
        "evaluate@digits-0",
        "evaluate@digits-1",
        "report@digits",
        "verdict@digits",
    ]
    project.edit("params.yaml", "margin: ", "margin: 9")
    assert ran(repro()) == ["check@digits", "report@digits", "verdict@digits"]
    project.edit("params.yaml", "seeds: [0, 1]", "seeds: [0]")  # run 1 is left on the disk, and must not count
    assert project.run("ffrepro", "params", "graph").returncode == 0
    done = repro()
    assert done.returncode != 0
    assert "runs/digits: run 1 is of no declared seed (0); remove that folder" in done.stderr


def test_reproduce_prints_the_verdict_as_json_and_repeats_from_the_cache(copied):
    project, first = copied
    result = json.loads(first.stdout)
    assert {"experiment", "verdict", "accuracy", "target", "device", "seconds"} <= result.keys()
    assert result["experiment"] == "digits"
    assert re.fullmatch(r"1 thread of .+", result["device"])
    values = result["accuracy"]["values"]
    assert result["accuracy"] == {
        "mean": pytest.approx(sum(values) / 2),
        "std": pytest.approx(abs(values[0] - values[1]) / 2**0.5),
        "n": 2,
        "values": values,
    }
    assert first.returncode == {"reproduced": 0, "not reproduced": 3, "inconclusive": 4}[result["verdict"]]
    again = project.call("ffrepro", "reproduce", "digits")
    assert "Running stage" not in again.stderr
    assert again.returncode == first.returncode
    assert f"verdict: {result['verdict']}" in again.stdout
    keeping = project.call("ffrepro", "reproduce", "digits", "--keep-states")
    assert keeping.stderr.endswith(
        "ffrepro: digits-0, digits-1: not all states kept, trained before without --keep-states; delete runs/digits "
        "and give this again\n"
    )
    kept = [checkpoint.kept_state(project.root / "checkpoints" / f"digits-{seed}", 1) for seed in (0, 1)]
    for path in kept:
        record.write_bytes(b"", path)  # as many as there are epochs, but not this training's
    still = project.call("ffrepro", "reproduce", "digits", "--keep-states")
    assert still.stderr.splitlines()[-1] == keeping.stderr.splitlines()[-1]
    shutil.rmtree(project.root / "runs" / "digits")
    keeping = project.call("ffrepro", "reproduce", "digits", "--keep-states")
    assert "not all states kept" not in keeping.stderr
    kept[0].write_bytes(kept[1].read_bytes())
    keeping = project.call("ffrepro", "reproduce", "digits", "--keep-states")
    assert "ffrepro: digits-0: not all states kept" in keeping.stderr
    assert "| digits | digits | 2 |" in (project.root / "report" / "table.md").read_text()
    assert "| cifar10 | cifar10 | 12 | not run |" in (project.root / "report" / "table.md").read_text()


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has a CUDA GPU")
def test_a_row_that_needs_cuda_says_so_in_one_line(project):
    project.edit("params.yaml", "blocks: 64 128P 128 128 128 256P 256 256 256 512P 512 512", "blocks: 4 8P")
    measured = r"this CPU would take \d+ \w+ a seed in (bfloat16|float32) \(from measured steps\)"
    for command, cost in {
        ("ffrepro", "reproduce", "cifar10"): measured,
        ("python", "-m", "pipelines.check", "cifar10"): "this CPU takes as `ffrepro doctor` says",  # at once
    }.items():
        done = project.call(*command, FFREPRO_DEVICE="auto")
        assert done.returncode == 5
        assert re.fullmatch(
            rf"ffrepro: cifar10 needs a CUDA GPU and PyTorch finds none here; {cost}; run digits, cifar10-quick "
            r"instead; in float16, which this row has, a CPU takes many times as long\n",
            done.stderr,
        )
        assert not (project.root / "runs").exists()


def test_bad_parameters_stop_everything_before_it_runs(project):
    project.edit("params.yaml", "epochs: 20\n", "epochs: many\n")
    line = "params.yaml: experiments.digits.training.epochs: given 'many'; allowed: "
    for command in (("ffrepro", "reproduce", "cifar10-quick"), ("python", "-m", "pipelines.check", "digits")):
        done = project.run(*command)
        assert done.returncode == 2
        assert done.stderr.startswith(f"ffrepro: {line}")
        assert done.stderr.count("\n") == 1
        assert not (project.root / "runs").exists()


def test_a_failing_stage_gives_its_exit_code_through_dvc(project):
    done = project.run("ffrepro", "reproduce", "cifar10-quick", "--offline", FFREPRO_MIRROR="")
    assert done.returncode == 2
    assert (
        "cifar-10-python.tar.gz: official source not asked (offline); name a folder or URL that has it" in done.stderr
    )


CUT = "ffrepro: dvc.lock: cut off while DVC wrote it; now .dvc/tmp/dvc.lock.cut-off, whole runs are kept"


def test_where_dvcs_lock_file_was_cut_off_no_whole_run_is_made_again(copied):
    project, first = copied
    path, before = project.root / "dvc.lock", outcome(project)
    whole = path.read_text()
    for last, told in ("  train@digits-1", True), ("", False):  # no YAML any more; YAML without the last entries
        path.write_text(whole[: whole.index("  train@digits-1:")] + last)
        again = project.call("ffrepro", "reproduce", "digits", "--json")
        assert (again.returncode, again.stdout) == (first.returncode, first.stdout), again.stderr
        assert (CUT in again.stderr.splitlines()) == told, again.stderr
        assert not {"prepare", "train", "evaluate"} & {*re.findall(r"Running stage '(\w+)", again.stderr)}
        assert outcome(project) == before


def outcome(project):
    return {path: path.read_bytes() for path in (project.root / "runs" / "digits").glob("[01]/*")}


def test_dvcs_other_kind_of_lock_is_let_be(copied):
    project, _ = copied
    assert project.run("dvc", "config", "--local", "core.hardlink_lock", "true").returncode == 0
    for _ in range(2):
        (project.root / "report" / "verdicts" / "digits.json").unlink()  # for DVC to have something to run
        done = project.run("ffrepro", "reproduce", "digits")
        assert done.returncode in (3, 4), done.stderr
    assert not (project.root / ".dvc" / "tmp" / "lock").exists()


def test_a_signal_before_a_stage_has_begun_is_no_traceback(project):
    command = [sys.executable, "-m", "pipelines.train", "digits", "0"]
    process = subprocess.Popen(command, cwd=project.root, stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():  # it imports for seconds more
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == ("", 130)


def test_a_lock_that_was_cut_off_anywhere_is_put_aside_as_far_as_dvc_would_stumble(project):
    whole = """schema: '2.0'
stages:
  prepare@digits:
    cmd: python -m pipelines.prepare digits
    outs:
    - path: data/digits.safetensors
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 12
"""
    path, told = project.root / "dvc.lock", set()
    aside = project.root / ".dvc" / "tmp" / "dvc.lock.cut-off"
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        with pipeline.alone(layout.Layout(project.root)):
            if not path.exists():
                told.add(cut)
                assert aside.read_text() == whole[:cut]
    for text in ("schema: '2.0'\nstages:\n  p:\n    cmd: x\n", whole):
        path.write_text(text)
        with pipeline.alone(layout.Layout(project.root)):
            assert path.read_text() == text
    # nothing, "sch", "schema", "schema: '2" and a stage without its command, for which DVC has a line of its own alone
    assert told >= {0, 3, 6, len("schema: '2"), len("schema: '2.0'\nstages:\n  prepare")}
    path.write_text(whole[:6])
    with (path.parent / ".dvc" / "tmp" / "lock").open("w") as guard:  # a DVC is writing it
        fcntl.flock(guard, fcntl.LOCK_EX)
        with pipeline.alone(layout.Layout(project.root)):
            assert path.read_text() == whole[:6]
    for cut in sorted(told)[:: len(told) // 4]:
        path.write_text(whole[:cut])
        assert project.run("dvc", "repro", "prepare@digits").returncode == 255


@pytest.fixture
def processes():
    """Starts programs that run until the test ends: `processes(program, argument, ...)`."""
    started = []

    def start(*command):
        started.append(subprocess.Popen(command))
        with contextlib.suppress(psutil.ZombieProcess):
            while not psutil.Process(started[-1].pid).cmdline():  # the kernel tells it a moment after the start
                time.sleep(0.001)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_what_a_killed_dvc_left_in_its_locks_stops_nobody(copied, processes):
    project, _ = copied
    locks = project.root / ".dvc" / "tmp" / "rwlock"
    locks.parent.mkdir()
    (locks.parent / "rwlock.lock").touch()
    ours = "-c repro --keep-going verdict@digits"
    killed = processes(sys.executable, "-c", "", *ours.split()[1:])  # not waited for: the kernel still lists it
    while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    other = processes("sleep", "600")  # has the number of one that was killed, as after a restart
    working = processes(sys.executable, "-c", "import time; time.sleep(600)", "repro", "prepare@mnist")  # a `dvc repro`
    gone, taken = {"pid": killed.pid, "cmd": ours}, {"pid": other.pid, "cmd": ours}
    live = {"pid": working.pid, "cmd": "/my environment/dvc/__main__.py repro prepare@mnist"}
    none = {"pid": -1, "cmd": ours}
    runs = str(project.root / "runs")
    left = {
        "write": {f"{runs}/a": gone, f"{runs}/b": taken, f"{runs}/c": live},
        "read": {f"{runs}/d": [live, taken, none]},
    }
    held = {"write": {f"{runs}/c": live}, "read": {f"{runs}/d": [live]}}

    def after(text):
        locks.write_text(text)
        with pipeline.alone(layout.Layout(project.root)):
            return json.loads(locks.read_text()) if locks.exists() else None

    assert after(json.dumps(left)) == held
    assert after("{}") == {}
    assert after("") is None  # cut off while DVC wrote it: it would not go on
    assert after(json.dumps(left)[:40]) is None
    assert after('{"write": {"a": 3}}') is None
    with (locks.parent / "rwlock.lock").open() as guard:  # a DVC that is at them now: nobody else's
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert after(json.dumps(left)) == left
    (locks.parent / "rwlock.lock").unlink()
    assert after(json.dumps(left)) == left  # locked by another means, or not at all
    assert not (locks.parent / "rwlock.lock").exists()  # which, to `core.hardlink_lock`, would mean locked

    files = [project.root / "runs" / "digits" / "experiment.json", project.root / "data" / "digits.safetensors"]
    locks.write_text(json.dumps({"write": {str(file): who for file, who in zip(files, (gone, taken), strict=True)}}))
    done = project.run(
        "dvc", "repro", "check@digits", "prepare@digits", "--keep-going", DVC_SYSTEM_CONFIG_DIR=no_git(project)
    )
    assert done.stderr.count("is busy") == 2
    done = project.run("ffrepro", "reproduce", "digits")
    assert "verdict: " in done.stdout, done.stderr
    assert "busy" not in done.stderr


def group(leader):
    """The commands of the processes of a process group that still have one.

    What has ended gives its memory back, its command with it, and closes its files after that; the kernel takes the
    rest of it down when whoever reads its output has gone on already.
    """
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(one.pid) == leader and (command := one.cmdline()):
                found.append(command)
    return found


IN_DVC = """
import os, signal, sys
if "dvc.cli" in str(sys.orig_argv):
    os.killpg(os.getpgid(0), signal.SIGINT)
"""
BEFORE_DVC_IS_KNOWN = """
import os, signal, subprocess
class Popen(subprocess.Popen):
    def __init__(self, command, *given, **named):
        super().__init__(command, *given, **named)
        if "dvc.cli" in str(command):
            os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Popen
"""


@pytest.mark.parametrize(
    ("at_start", "code"),
    [pytest.param(IN_DVC, 130, id="to all"), pytest.param(BEFORE_DVC_IS_KNOWN, 143, id="to the command alone")],
)
def test_a_signal_while_dvc_starts_is_a_line_and_leaves_nothing_behind(project, at_start, code):
    (project.root / "sitecustomize.py").write_text(at_start)
    process = subprocess.Popen(
        [sys.executable, "-m", "ffrepro", "reproduce", "digits"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, err = process.communicate()
    line = "ffrepro: interrupted; a training goes on from its last checkpoint with the same command"
    assert (process.returncode, err.splitlines()[-1]) == (code, line), err
    assert "Traceback" not in err
    assert group(process.pid) == []


STARTS_STAGES = """
import os, time
for _ in range(300):
    if not os.fork():
        os.execlp("sleep", "sleep", "300")
    time.sleep(0.001)
"""
STARTS_A_SHELL = f"""
import signal, subprocess, sys
signal.signal(signal.SIGUSR1, signal.default_int_handler)
try:
    subprocess.run([sys.executable, "-S", "-c", {STARTS_STAGES!r}])
except KeyboardInterrupt:
    pass
"""


def test_a_shell_that_is_just_starting_a_stage_leaves_none_behind():
    # dash has started the stage a millisecond after DVC has started dash; this shell never stops starting some
    process = subprocess.Popen([sys.executable, "-S", "-c", STARTS_A_SHELL], start_new_session=True)
    try:
        while len(group(process.pid)) < 10:
            assert process.poll() is None
        pipeline._end(process, is_dvc=True)
        assert group(process.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_signal_ends_everything_in_order_and_the_same_command_goes_on(project):
    project.shrink(seeds=[0, 1])
    project.edit("params.yaml", "epochs: 1\n", "epochs: 25\n")  # none ends in the three
    command = [sys.executable, "-m", "ffrepro", "reproduce", "digits"]
    env = {**os.environ, "PYTHONPATH": str(project.root)}

    def saved():
        return {path: path.stat().st_mtime_ns for path in project.root.glob("checkpoints/*.pt")}

    # as a terminal does and `tini -g`, to everything that the command has started; or as `kill`, to the command alone
    for how, to, code in [
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGTERM, os.killpg, 143),
        (signal.SIGTERM, os.kill, 143),
    ]:
        before = max(saved().values(), default=0)
        process = subprocess.Popen(
            command,
            cwd=project.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while max(saved().values(), default=0) == before:
            assert process.poll() is None
            time.sleep(0.05)
        to(process.pid, how)
        out, err = process.communicate()
        assert process.returncode == code
        assert out == ""
        assert "Traceback" not in err
        assert err.endswith("ffrepro: interrupted; a training goes on from its last checkpoint with the same command\n")
        # DVC would train the next seed; where it has begun that before it was told, it ends before the first epoch
        assert len({path for path, at in saved().items() if at > before}) == 1
        assert "had been killed" not in err  # DVC has put its locks away
        assert group(process.pid) == []  # nothing is left behind
    again = project.run("ffrepro", "reproduce", "digits")
    assert re.search(r"digits-\d.pt: going on after epoch", again.stderr)
    assert "verdict: " in again.stdout
