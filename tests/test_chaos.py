"""SIGKILL at random instants of a whole `reproduce`, from fetching to the verdict: nothing is lost, nothing is wrong.

The suite kills twice, `nox -s chaos` fifty times: FFREPRO_KILLS. FFREPRO_CHAOS_SEED repeats the instants of a
run, as far as a machine's time repeats.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import NamedTuple

import psutil
import pytest

KILLS = int(os.environ.get("FFREPRO_KILLS", "2"))
SEED = int(os.environ.get("FFREPRO_CHAOS_SEED", "0"))
ROW = "hinton-narrow"  # made tiny, on MNIST: the smallest data set that has to be fetched
MADE = ("data", "runs", "report", "checkpoints", "dvc.lock", ".dvc/tmp", ".dvc/cache")
STAGES = ("check", "prepare", "train", "evaluate", "report", "verdict")
pytestmark = [
    pytest.mark.skipif("FFREPRO_MIRROR" not in os.environ, reason="FFREPRO_MIRROR names no mirror of MNIST"),
    *([pytest.mark.chaos] if "FFREPRO_KILLS" in os.environ else []),
]


class Killed(NamedTuple):
    after: float  # seconds
    stage: str  # that ran, "" for DVC or the command between stages
    whole: bool  # everything at once, as when the power goes; else one process, as the kernel does for want of memory


def start(project, log):
    return subprocess.Popen(
        [sys.executable, "-m", "ffrepro", "reproduce", ROW],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root)},
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
    )


def processes(command):
    """The command's processes with the stage that runs."""
    family = [command, *command.children(recursive=True)]
    words = [word for one in family[1:] for word in one.cmdline()]
    return family, next((word.removeprefix("pipelines.") for word in words if word.startswith("pipelines.")), "")


def kill(process, after, whole, draw):
    """Kill at an instant; None where everything had ended before it."""
    time.sleep(after)
    try:
        family, stage = processes(psutil.Process(process.pid))
        if process.poll() is not None:
            return None
        if whole:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            draw.choice(family).kill()
    except (psutil.NoSuchProcess, ProcessLookupError):  # one ended in between
        return None
    return Killed(after, stage, whole)


def outcome(project):
    """What has to be the same bytes, whatever happened before."""
    folder = project.root / "runs" / ROW / "0"
    files = {name: (folder / name).read_bytes() for name in ("weights.safetensors", "goodness.safetensors")}
    files["metrics.json"] = (folder / "metrics.json").read_bytes()
    verdict = json.loads((project.root / "report" / "verdicts" / f"{ROW}.json").read_text())
    chain = json.loads((folder / "record.json").read_text())["chain"]
    return files, chain, {name: value for name, value in verdict.items() if "seconds" not in name}


def wait_for_orphans(project):
    def at_work():
        for one in psutil.process_iter():
            try:
                if one.cwd() == str(project.root):
                    return True
            except psutil.Error:
                continue
        return False

    while at_work():
        time.sleep(0.1)


def clear(root):
    for name in MADE:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def finish(project, log):
    """Give the command again; returns what it had to mend."""
    with log.open("w") as file:
        code = start(project, file).wait()
    text = log.read_text()
    assert "Traceback" not in text, text
    assert code in (0, 3, 4), text
    return ["dvc.lock"] if "dvc.lock: cut off while DVC wrote it; now " in text else []


def test_killed_at_random_instants_the_same_command_ends_in_the_same_bytes(project, tmp_path_factory):
    project.edit("params.yaml", "      blocks: 500 500 500 500\n", "      blocks: 16 16 16\n")
    project.edit("params.yaml", "      slope: 500\n      epochs: 10\n", "      slope: 16\n      epochs: 4\n")
    project.edit("params.yaml", f"  {ROW}:\n", f"  {ROW}:\n    seeds: [0]\n")
    project.keep("hinton", ROW)
    log = tmp_path_factory.mktemp("log") / "stderr"
    begun = time.monotonic()
    assert finish(project, log) == []
    whole_time = time.monotonic() - begun
    undisturbed = outcome(project)
    draw, told = random.Random(SEED), Counter()
    for n in range(KILLS):
        clear(project.root)
        after = draw.uniform(0, whole_time)
        with log.open("w") as file:
            process = start(project, file)
            killed = kill(process, after, n % 2 == 0, draw)
            code = process.wait()
        if killed and killed.whole:
            assert code == -signal.SIGKILL
        assert "Traceback" not in log.read_text()
        remedy = finish(project, log)  # at once: what lost its parent may still be at work
        wait_for_orphans(project)
        assert outcome(project) == undisturbed
        assert not [*project.root.rglob("*.part")]
        told["after it had ended" if killed is None else f"in {killed.stage or 'DVC or between stages'}"] += 1
        told.update(remedy)
        print(f"{n + 1} of {KILLS}: {killed}", flush=True)
    print(f"\n{KILLS} kills within {whole_time:.1f} s, seed {SEED}: {dict(told)}")
