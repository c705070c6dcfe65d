"""A training on a borrowed machine, piece by piece, ends in the very files that the stages here would have made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ffrepro import record
from pipelines.away import PART, PAUSED

NOT_THERE = ("dvc", "rich", "ruamel", "safetensors", "typer", "sklearn", "scipy")  # Pillow comes with torchvision
NOT_FOR_CUDA_TESTS = ("dvc", "matplotlib", "safetensors", "sklearn", "hypothesis", "rocrate", "statsmodels", "submitit")

BARE = """
import runpy, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec


class Find:  # no function, which pytest's own finder would make its method
    def __call__(self, name, *rest):
        return None if name.partition(".")[0] in {absent} else find(name, *rest)


PathFinder.find_spec = Find()
sys.argv = ["", *{arguments}]
runpy.run_module("{module}", run_name="__main__")
"""


def away(project, *arguments, absent=NOT_THERE):
    """The script, in a process that cannot import what the borrowed machine lacks if anything is absent."""
    if not absent:
        return project.call("python", "-m", "pipelines.away", *arguments)
    return bare(project.root, absent, "pipelines.away", *arguments)


def bare(root, absent, module, *arguments):
    return subprocess.run(
        [sys.executable, "-c", BARE.format(absent=set(absent), module=module, arguments=list(arguments))],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def pieces(project, row, seed, *options, command="run", absent=NOT_THERE):
    """Call it until the training is complete; how often it paused, and the folder that comes back."""
    out, scratch = project.root / "out", project.root / "scratch"
    for paused in range(20):
        done = away(
            project,
            *(command, row, str(seed), "--scratch", str(scratch), "--out", str(out)),
            *("--device", "cpu", "--minutes", "0", *options),
            absent=absent,
        )
        if done.returncode == 0:
            return paused, out
        assert done.returncode == PAUSED, done.stderr
    raise AssertionError("never complete")


def test_what_is_blocked_cannot_be_imported(project):
    done = away(project, "--help", absent={"numpy", "torch"})
    assert "No module named 'torch'" in done.stderr


def test_the_cuda_tests_can_be_collected_with_the_packages_that_the_docs_name(root):
    done = bare(
        root,
        NOT_FOR_CUDA_TESTS,
        "pytest",
        *["-m", "cuda", "-W", "default", "-p", "no:cacheprovider", "--collect-only", "-q"],
        "tests/test_cuda.py",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_doctor_on_a_gpu" in done.stdout


@pytest.fixture
def shrunken(project):
    project.shrink("8 16P 16 16", epochs=3)
    project.stages(["check", "digits"])
    return project


def test_pieces_make_the_files_of_the_stages(shrunken):
    # scikit-learn holds the digits, so it is there, and SciPy with it
    paused, out = pieces(shrunken, "digits", 0, absent=set(NOT_THERE) - {"sklearn", "scipy"})
    assert paused == 2
    assert all(file.stat().st_size <= PART for file in out.iterdir())
    done = shrunken.call("python", "-m", "pipelines.away", "bring", "out", "digits", "0")
    assert done.returncode == 0, done.stderr
    folder = shrunken.root / "runs" / "digits" / "0"
    brought = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert brought.keys() == {
        "weights.safetensors",
        "goodness.safetensors",
        "history.csv",
        "record.json",
        "metrics.json",
    }
    assert json.loads((out / "chain.json").read_text()) == json.loads(brought["record.json"])["chain"][:2]
    shutil.rmtree(folder)
    shrunken.stages(["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])
    for name in ("weights.safetensors", "goodness.safetensors", "metrics.json"):
        assert brought[name] == (folder / name).read_bytes()
    mine, theirs = json.loads((folder / "record.json").read_text()), json.loads(brought["record.json"])
    when = {"seconds", "started", "ended", "history", "seal", "lock"}  # the borrowed machine has no lock file
    assert {name: mine[name] for name in mine.keys() - when} == {name: theirs[name] for name in theirs.keys() - when}


def test_real_images_with_nothing_but_torch_numpy_and_pydantic(project):
    mirror = os.environ.get("FFREPRO_MIRROR", "")
    if not (Path(mirror) / "MNIST" / "raw").is_dir():
        pytest.skip("FFREPRO_MIRROR names no folder with MNIST/raw")
    project.edit("params.yaml", "      name: mnist\n", "      name: mnist\n      held_out: 59000\n")
    project.edit("params.yaml", "blocks: 64 128P 128 128 128 256P 256 256 256 512P 512 512", "blocks: 4P 4P 4")
    project.edit("params.yaml", "  epochs: 200", "  epochs: 2")
    project.edit("params.yaml", "precision: float16", "precision: bfloat16")
    project.stages(["check", "mnist"])
    paused, out = pieces(project, "mnist", 0, "--mirror", mirror, "--curve", "100")
    assert paused == 1
    header = (out / "history.csv").read_text().splitlines()[0].split(",")
    assert header[-3:] == ["test_1", "test_2", "test_3"]
    assert json.loads((out / "metrics.json").read_text())["images"] == 10_000


def test_other_values_are_tried_on_images_held_out_of_the_training_set(shrunken):
    options = ("--held-out", "437", "--set", "training.schedule=cosine", "--set", "training.epochs=2")
    there = set(NOT_THERE) - {"sklearn", "scipy"}
    left = shrunken.root / "out" / "history.csv"
    left.parent.mkdir()
    left.touch()  # by the same command, killed before its last word: it goes on
    paused, out = pieces(shrunken, "digits", 0, *options, command="try", absent=there)
    assert paused == 1
    assert not list((shrunken.root / "scratch").glob("*.pt"))
    tried = json.loads((out / "try.json").read_text())
    assert tried["row"]["data"]["held_out"] == 437
    assert tried["set"] == {"training.schedule": "cosine", "training.epochs": 2}
    assert not (out / "metrics.json").exists()  # which would be of test images

    # the same as a row of its own, by the stages here
    shrunken.edit("params.yaml", "      name: digits\n", "      name: digits\n      held_out: 437\n")
    shrunken.edit("params.yaml", "      epochs: 3", "      epochs: 2")
    shrunken.edit(
        "params.yaml", "schedule: linear\n      precision: float32", "schedule: cosine\n      precision: float32"
    )
    shrunken.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"])
    folder = shrunken.root / "runs" / "digits" / "0"
    mine = json.loads((folder / "record.json").read_text())
    for name in ("row", "parameters", "data", "initial_weights", "chain", "weights", "environment"):
        assert tried[name] == mine[name]
    last = dict(zip(*(line.split(",") for line in (folder / "history.csv").read_text().splitlines()[::2]), strict=True))
    assert tried["held_out"]["images"] == 437
    assert not [name for name in tried["held_out"] if "test" in name]
    assert tried["held_out"]["blocks"] == {
        name.removeprefix("held_out_"): float(value) for name, value in last.items() if name.startswith("held_out_")
    }
    own, restated = tried["held_out"], tried["held_out_restated"]
    assert own["weights"] == mine["weights"] != restated["weights"]  # which have the statistics among them
    assert own["data"] == restated["data"] != tried["trained_on"]["data"]
    assert (tried["trained_on"]["images"], tried["trained_on"]["weights"]) == (437, mine["weights"])
    assert own["goodness_table"] != restated["goodness_table"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["--set", "evaluation.vote=all"],
            "'evaluation.vote=all' is not SECTION.FIELD=VALUE, of augmentation, network,",
        ),
        (["--set", "data.held_out=3"], "'data.held_out=3' is not SECTION.FIELD=VALUE"),
        (["--set", "training.lr=null"], "'training.lr=null' is not SECTION.FIELD=VALUE"),
        (["--set", "training.schedule"], "'training.schedule' is not SECTION.FIELD=VALUE"),
        (
            ["--set", "training.schedule=steps"],
            "--set: training.schedule: given 'steps'; allowed: constant, linear, cosine",
        ),
        (["--set", "training.rate=1"], "--set: training.rate: given an unknown key (did you mean update?); allowed: "),
        (["--held-out", "0"], "--held-out: given 0; allowed: 1 and more"),
        (["--held-out", "1437"], "--held-out: data.held_out: given 1437; allowed: fewer than the 1437 training images"),
        (["--out", "used"], "used: has metrics.json of another training; name another folder with --out"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_trained(shrunken, given, says):
    used = shrunken.root / "used" / "metrics.json"
    used.parent.mkdir()
    used.touch()
    started = ("try", "digits", "0", "--held-out", "9", "--scratch", "scratch", "--out", "out", "--device", "cpu")
    done = away(shrunken, *started, *given, absent=())
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (shrunken.root / "scratch").exists()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("other seed", "seed is 0, not 1; it is of another run"),
        ("other row", "parameters is '"),
        ("no history", "out: no history.csv there; bring the whole folder of a complete training"),
        ("no weights", "no tensors-00"),
        ("cut weights", "tensors-*: not whole"),
        ("other metrics", "are not of one training"),
        ("other accuracy", "out/metrics.json: broken link: accuracy is not what goodness and labels give"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(shrunken, what, says):
    _, out = pieces(shrunken, "digits", 0, "--minutes", "9", absent=())
    seed = "0"
    if what == "other seed":
        seed = "1"
    elif what == "other row":
        shrunken.edit("params.yaml", "      epochs: 3", "      epochs: 4")
        shrunken.stages(["check", "digits"])
    elif what == "no history":
        (out / "history.csv").unlink()
    elif what == "no weights":
        (out / "tensors-00").unlink()
    elif what == "other accuracy":
        shrunken.stages(["prepare", "digits"])
        record.write_sealed({**record.read_json(out / "metrics.json"), "accuracy": 99.9}, out / "metrics.json")
    elif what == "cut weights":
        (out / "tensors-00").write_bytes((out / "tensors-00").read_bytes()[:-100])
    else:
        content = json.loads((out / "metrics.json").read_text())
        (out / "metrics.json").write_text(json.dumps({**content, "goodness_table": "0" * 64}))
    done = away(shrunken, "bring", "out", "digits", seed, absent=())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert not (shrunken.root / "runs" / "digits" / seed).exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["run", "digits", "-3"], "argument seed: '-3' is no whole number from 0 up"),
        (["run", "digits", "2147483648"], "argument seed: '2147483648' is no seed; allowed: 0 to 2147483647"),
        (["bring", "a" * 300, "digits", "0"], "File name too long"),
        (["run", "digits", "0", "--curve", "-5"], "argument --curve: '-5' is no whole number from 0 up"),
        (["run", "mnist", "0"], "mnist/experiment.json: no such file"),
        (
            ["bring", "out", "digits", "0", "--runs", "other"],
            "no experiment.json there; python -m pipelines.check digits",
        ),
        (["bring", "nowhere", "digits", "0"], "nowhere: no history.csv there"),
    ],
)
def test_a_mistake_of_the_command_is_a_line(shrunken, given, says):
    folders = ["--scratch", "scratch", "--out", "out", "--device", "cpu"] if given[0] == "run" else []
    done = away(shrunken, *given, *folders, absent=())
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(shrunken):
    # scikit-learn holds the digits, so it is there, and SciPy with it
    given = ("run", "digits", "0", "--scratch", "scratch", "--out", "out")
    done = away(shrunken, *given, absent=set(NOT_THERE) - {"sklearn", "scipy"})
    assert done.returncode == 5
    assert done.stderr == "ffrepro: device: cuda was asked for, and PyTorch finds no CUDA GPU here; use --device cpu\n"
    assert not (shrunken.root / "out").exists()


def test_files_of_another_shape_are_refused_in_one_line(shrunken):
    _, out = pieces(shrunken, "digits", 0, "--minutes", "9", absent=())
    bring = ("bring", "out", "digits", "0")
    for name in ("record.json", "metrics.json"):
        content = (out / name).read_text()
        for text in ("[]", "null", "7"):
            (out / name).write_text(text)
            done = away(shrunken, *bring, absent=())
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert f"{name}: not what a training writes; bring the whole folder again" in done.stderr
        (out / name).write_text(content)
    for path in out.glob("tensors-*"):
        path.unlink()
    one = torch.zeros(1)
    for tensors in (
        {"weights": {}},
        [],
        {"weights": {"w": 1}, "goodness": None},
        {"weights": one, "goodness": one},
        {"weights": {0: one}, "goodness": one},
        {"weights": {"w": one.to(torch.complex128)}, "goodness": one},
    ):
        torch.save(tensors, out / "tensors-00")
        done = away(shrunken, *bring, absent=())
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "tensors-*: not whole" in done.stderr
    assert not (shrunken.root / "runs" / "digits" / "0").exists()


def test_what_is_refused_leaves_the_run_that_is_here(shrunken):
    _, out = pieces(shrunken, "digits", 0, "--minutes", "9", absent=())
    bring = ("bring", "out", "digits", "0", "--runs", str(shrunken.root / "runs"))
    done = away(shrunken, *bring, absent=())
    assert done.returncode == 0, done.stderr
    folder = shrunken.root / "runs" / "digits" / "0"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (out / "history.csv").write_text((out / "history.csv").read_text() + "4,1\n")
    done = away(shrunken, *bring, absent=())
    assert done.returncode == 2
    assert "out/history.csv: broken link: not the history that record.json names" in done.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {file.name for file in folder.parents[1].iterdir()} == {"digits"}
