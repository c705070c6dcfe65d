"""Every command that README and docs show is carried out: here, or where ELSEWHERE says."""

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ffrepro import config

ROOT = Path(__file__).parent.parent
PROGRAMS = "ffrepro|dvc|nox|pip|python|docker|bash|source|UV_OFFLINE"
PLACEHOLDER = re.compile(r"\b(ROW|CLASS|DATA|FOLDER)\b")

# In a copy of the project with its committed results: (command, exit code), in an order that a reader could take.
ON_RESULTS = [
    ("ffrepro list", 0),
    ("ffrepro list --table all", 0),
    ("ffrepro list --table ablation-digits", 0),
    ("ffrepro list --table ablation-fashion", 0),
    ("ffrepro explain ablation-fashion.symba-batch.overlapping", 0),
    ("ffrepro explain ablation-digits.symba-batch.overlapping", 0),
    ("ffrepro explain digits", 0),
    ("ffrepro explain hinton-narrow", 0),
    ("ffrepro params check", 0),
    ("ffrepro params show digits", 0),
    ("ffrepro params graph", 0),
    ("ffrepro params handbook", 0),
    ("FFREPRO_THREADS=1 ffrepro verify results/digits/3", 0),
    ("ffrepro verify results/digits", 0),
    ("ffrepro verify results/hinton", 4),
    ("ffrepro export results/digits --to crate", 0),
    ("ffrepro report", 0),
    ("ffrepro status", 0),
]
# In a copy whose CPU rows take a moment each, without a GPU: 5 says that one is needed.
ON_RUNS = [
    ("ffrepro doctor", 0),
    ("ffrepro reproduce cifar10", 5),
    ("dvc repro verdict@cifar10", 255),
    ("ffrepro reproduce digits --keep-states", 4),
    ("ffrepro reproduce digits", 4),
    ("ffrepro audit runs/digits/0 --epochs 2", 0),
    ("ffrepro verify runs/digits", 4),
    ("ffrepro reproduce cifar10-quick", 4),
    ("ffrepro reproduce ablation-digits", 4),
    ("dvc repro", 255),
    ("dvc repro --keep-going", 255),
    ("dvc metrics show", 0),
    ("FFREPRO_DEVICE=cpu python -m pipelines.check cifar10", 0),
]
BUILDING = 'docker build --build-arg REVISION="$(git describe --always --dirty --abbrev=40)"'
CONTAINER = 'docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/out:/out"'
# What installs or needs another machine, and what takes long and is another command above with another row or number.
ELSEWHERE = {
    'pip install "nox[uv]" && nox -s reproduce -- digits': "by hand, in a fresh clone",
    "nox -s tests": ".ci/run",
    "nox -s dev": "by hand",
    "nox -s slow": "by hand",
    "nox -s chaos": "by hand",
    "nox -s chaos -- tests/test_chaos.py": "by hand",
    "nox -s slow -- tests/test_training.py": "by hand",
    "nox -s audit": "by hand",
    "nox -s cuda": "by hand, on a GPU, without nox",
    "python -m pipelines.gpu --out out --rounds 2 --steps 24": "by hand, on a GPU",
    "python -m pipelines.gpu --out out --device cpu --only differences": "by hand",
    "ffrepro reproduce hinton": "by hand, its three seeds by `submit --local`; as every row",
    "ffrepro evaluate hinton --images training --first 10000": "by hand, after training",
    "ffrepro verify runs/hinton": "by hand, after training",
    "python -m pipelines.tries": "tests/test_tries.py",
    "python -m pipelines.release cifar10 0": "by hand; tests/test_release.py, with another row",
    "ffrepro evaluate cifar10 --weights released": "by hand; tests/test_release.py, with another row",
    "ffrepro evaluate cifar10 --weights released --images training --first 10000": "by hand; tests/test_cli.py",
    "ffrepro evaluate cifar10 --weights released --images training --first 10000 --restated": "by hand; "
    "tests/test_release.py, with another row",
    "python -m pipelines.precision cifar10 0 --weights initial": "by hand; tests/test_precision.py, with another row",
    "python -m pipelines.precision cifar10 0 --weights released": "by hand",
    "ffrepro verify results/cifar10": "by hand",
    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 ffrepro verify "
    "results/ablation-fashion-symba-batch-layerwise/4": "by hand",
    "nox -s slurm": "by hand",
    "dvc config --local core.hardlink_lock true": "tests/test_pipeline.py",
    "nox -s mutation": "by hand",
    "nox -s coverage": "by hand",
    "python -m pipelines.scale 1 10 100 1000 --slurm": "by hand",
    "ffrepro submit headline ablation --slurm": "tests/test_slurm.py, with another table",
    "ffrepro submit cifar10 --slurm": "tests/test_slurm.py, with another row",
    "ffrepro reproduce headline": "like reproduce ablation-digits; needs a GPU",
    "ffrepro submit ablation-digits --local 2": "tests/test_jobs.py, with another row",
    "python -m pipelines.evaluate cifar10 0": "tests/test_parallel.py, with another row",
    "python -m pipelines.note check@digits prepare@digits train@digits-0 evaluate@digits-0": "by `ffrepro submit`",
    "nox -s image": ".ci/run",
    "nox -s image -- -m image": "by hand",
    "CONTAINER_ENGINE=podman nox -s image": "by hand",
    f"{BUILDING} -t ffrepro .": "tests/test_image.py",
    f"{CONTAINER} ffrepro reproduce digits": "tests/test_image.py",
    f"{CONTAINER} --gpus all -v cache:/data ffrepro reproduce cifar10": "not run: needs a GPU",
    "FFREPRO_USER=1000:1000 docker compose run --rm cpu reproduce digits": "tests/test_image.py, with another command",
    "ffrepro reproduce digits --portable": "by hand, in a fresh clone: it made the records to compare with",
    "ffrepro reproduce ablation-digits --portable": "by hand, in a fresh clone, on an AMD EPYC",
    "FFREPRO_PORTABLE=1 ffrepro verify runs/digits": "by hand, in a fresh clone",
    "ffrepro reproduce cifar10-quick --portable": "by hand, in a fresh clone: it made the record to compare with",
    "FFREPRO_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ffrepro reproduce cifar10-quick": (
        "by hand, in a fresh clone"
    ),
    "FFREPRO_PORTABLE=1 ffrepro verify runs/cifar10-quick": "by hand, in a fresh clone",
    "FFREPRO_PORTABLE=1 ffrepro verify runs/ablation-digits-deep": "by hand, in a fresh clone, each of the ten rows",
    "FFREPRO_SCREENSHOTS=docs/screenshots nox -s browser": "by hand",
    "source .venv/bin/activate": "by hand",
    "pip download --require-hashes --no-deps -r requirements/dev.txt -d wheels": "by hand",
    'pip install --no-index --find-links wheels "nox[uv]"': "by hand",
    "UV_OFFLINE=1 UV_FIND_LINKS=wheels nox -s dev": "by hand",
    "ffrepro fetch cifar10": "tests/test_data.py, from a mirror",
    "ffrepro audit runs/digits/0 --epochs 20": "like --epochs 2",
    "ffrepro evaluate cifar10-quick --runs results": "tests/test_cli.py, with another row",
    "ffrepro verify results/cifar10-quick": "like verify results/digits",
    "python -m pipelines.away bring out cifar10 0": "tests/test_away.py",
    'nox -s bench -- cifar10 --blocks "128P 128 256P 256 256 512P" --batch 128 --precision bfloat16': "results/bench",
}


def documented() -> list[str]:
    """The commands of README and docs in their order, each once: indented lines, and `code` of three words or more.

    Without those that a page marks for tests/test_docs.py to carry out, and those that show a form: reproduce ROW.
    """
    commands = []
    for document in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        text = re.sub(
            r"<!-- (run|slurm|append|insert|line)\b.*?<!-- end.*?-->", "", document.read_text(), flags=re.DOTALL
        )
        blocks = re.findall(rf"^    ((?:[A-Z_]+=\S+ )*(?:{PROGRAMS}) .*)$", text, re.MULTILINE)
        inline = re.findall(rf"`((?:[A-Z_]+=\S+ )*(?:{PROGRAMS}) [^` ]+ [^`]+)`", text)
        commands += [re.sub(r"\s+# .*", "", command).strip() for command in [*blocks, *inline]]
    return list(dict.fromkeys(command for command in commands if not PLACEHOLDER.search(command)))


def test_every_command_is_carried_out_somewhere():
    here = [command for command, _ in [*ON_RESULTS, *ON_RUNS]]
    assert sorted(documented()) == sorted([*here, *ELSEWHERE])


def carried_out(project, commands: list[tuple[str, int]], **settings: str) -> list[tuple[str, int]]:
    codes = []
    for command, _ in commands:
        done = project.shell(command, **settings)
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        codes.append((command, done.returncode))
    return codes


def test_commands_on_the_committed_results(project):
    """In this process: a traceback would be this test's."""
    shutil.copytree(ROOT / "results", project.root / "results", dirs_exist_ok=True)
    codes = []
    for command, _ in ON_RESULTS:
        words = shlex.split(command)
        settings = [*itertools.takewhile(lambda word: "=" in word, words)]
        done = project.call(*words[len(settings) :], **dict(setting.split("=", 1) for setting in settings))
        codes.append((command, done.returncode))
    assert codes == ON_RESULTS


def shrink(project) -> set[str]:
    """Make every row that a CPU can run one of a moment, with one seed; returns their names."""
    path = project.root / "params.yaml"
    on_cpu = {name for name, row in config.load(path).experiments.items() if row.requires == "cpu"}
    content = YAML(typ="safe").load(path.read_text())
    content["seeds"] = [0]
    for name, row in content["experiments"].items():
        if "seeds" in row:
            row["seeds"] = [0]
        if name in on_cpu:
            row["data"] = {"name": "digits"}
            network, training = row.setdefault("network", {}), row.setdefault("training", {})
            network |= {"blocks": "4 4 4 4", "label_patch": 1}
            training |= {"epochs": 2, "batch": 256, "precision": "float32"}
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return on_cpu


@pytest.mark.slow
def test_commands_that_train_and_what_dvc_completes_without_a_gpu(project):
    on_cpu = shrink(project)
    assert project.shell("git init -q; ffrepro params graph").returncode == 0  # dvc by itself asks for git
    without_gpu = {"FFREPRO_DEVICE": "auto", "CUDA_VISIBLE_DEVICES": ""}
    assert carried_out(project, ON_RUNS, **without_gpu) == ON_RUNS
    judged = {path.stem for path in (project.root / "report" / "verdicts").glob("*.json")}
    assert judged == on_cpu
