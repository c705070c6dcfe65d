"""The commands as a person types them."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from ffrepro import config, data, devices, engine, errors, evaluation, evidence, lock


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from ffrepro.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "print(sorted({'torch', 'dvc', 'pydantic', 'numpy', 'rich.progress'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_version():
    done = subprocess.run([sys.executable, "-m", "ffrepro", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "ffrepro 0.1.0\n"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("reproduce", "digitz"), "ffrepro: no row and no table 'digitz'; did you mean digits? there are: "),
        (("params", "show", "nothing"), "ffrepro: no experiment 'nothing' in params.yaml; there are: "),
        (("fetch", "cifar"), "ffrepro: no data set 'cifar'; did you mean cifar10? there are: "),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_2(project, command, line):
    done = project.call("ffrepro", *command)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_file_that_the_system_keeps_back_is_a_line(project, capsys):
    done = project.call("ffrepro", "evaluate", "digits", "--runs", "a" * 300)
    assert (done.returncode, done.stderr) == (
        2,
        f"ffrepro: {project.root}/{'a' * 300}/digits/experiment.json: File name too long\n",
    )

    def main():
        raise PermissionError(errno.EACCES, "Permission denied", "results\n/digits")

    assert errors.run(main) == 2
    assert capsys.readouterr().err == "ffrepro: 'results\\n/digits': Permission denied\n"

    def without_a_file():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):  # no mistake of a user's
        errors.run(without_a_file)


@pytest.mark.parametrize("command", [("reproduce",), ("reproduce", "digits", "--device", "tpu"), ("repro", "digits")])
def test_wrong_usage_exits_with_2_and_no_traceback(project, command):
    done = project.call("ffrepro", *command)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("prepare", "given nothing; usage: python -m pipelines.prepare NAME"),
        ("prepare digit", "no data set 'digit'; did you mean digits? there are: "),
        ("train digits", "given 'digits'; usage: python -m pipelines.train NAME SEED [RUNS]"),
        ("evaluate digits x", "given 'x' as the seed; allowed: a whole number from 0 up; usage: python -m "),
        ("run digits -1", "given '-1' as the seed; allowed: a whole number from 0 up; usage: python -m "),
        ("table all", "given 'all'; usage: python -m pipelines.table\n"),
        ("scale 0", "scale: given 0 runs; allowed: 1 and more\n"),
        ("note check@digits", "/"),  # which is no repository of git's: DVC's own line
    ],
)
def test_a_stage_that_is_called_wrongly_says_how_to_call_it(project, command, line):
    stage, *arguments = command.split()
    start = project.run if stage == "note" else project.call  # DVC, which the other stages do without
    done = start("python", "-m", f"pipelines.{stage}", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"ffrepro: {line}")


def test_only_stages_are_noted(project):
    project.keep("digits", "cifar10")
    assert project.shell("git init -q").returncode == 0
    for arguments, given in (((), "nothing"), (("check@digits", "train@digit-0"), "'train@digit-0'")):
        done = project.run("python", "-m", "pipelines.note", *arguments)
        line = f"ffrepro: given {given}; allowed: stages; `dvc stage list` names them\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_stage_says_what_it_does(project):
    done = project.run("python", "-m", "pipelines.verdict", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m pipelines.verdict NAME\n\nreport/rows/ROW.json and the row's rule")


def test_outside_a_project_the_remedy_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ffrepro", "list"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"ffrepro: no ffrepro project in {tmp_path.name} or above it (params.yaml and dvc.yaml); go to your clone\n"
    )


def test_in_a_folder_that_is_gone_the_remedy_is_named(project, tmp_path):
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {sys.executable} -m ffrepro list"
    done = project.shell(script)
    assert (done.returncode, done.stderr) == (
        2,
        "ffrepro: the current folder is not there any more; go to your clone\n",
    )


def test_list_names_the_rows_asked_for(project, params):
    def listed(*options):
        done = project.call("ffrepro", "list", *options)
        assert done.returncode == 0
        return [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()[2:]]

    assert listed("--table", "all") == list(params.experiments)
    originals = listed()
    assert set(originals) < set(params.experiments)
    assert "cifar10" in originals
    assert "83.51 ± 0.78" in project.call("ffrepro", "list").stdout
    assert "ablation-symba-batch-layerwise" not in originals
    assert "ablation-symba-batch-layerwise" in listed("--table", "ablation")
    done = project.call("ffrepro", "list", "--table", "ablatoin")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean ablation?" in done.stderr


def test_explain_leads_from_a_cell_to_its_row(project):
    done = project.call("ffrepro", "explain", "headline.trifecta-large.cifar10")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert (
        lines[0] == "headline.trifecta-large.cifar10: experiment cifar10, The Trifecta's 12-block network on CIFAR-10"
    )
    assert lines[1].startswith("target: 83.51 ± 0.78, published: Trifecta")
    assert lines[2] == "not run: ffrepro reproduce cifar10"
    for address in ("headline.trifecta-large.imagenet", "headlines.a.b", "nothing"):
        done = project.call("ffrepro", "explain", address)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"ffrepro: explain: given {address!r}; allowed: ")


def test_params_commands(project, root):
    assert project.call("ffrepro", "params", "check").stdout.endswith("sound\n")
    assert project.call("ffrepro", "params", "schema").stdout == (root / "params.schema.json").read_text()
    assert '"epochs": 200' in project.call("ffrepro", "params", "show", "cifar10").stdout
    project.edit("graph.yaml", "seed: 0", "seed: 7")
    done = project.call("ffrepro", "params", "check")
    assert done.returncode == 2
    assert "ffrepro params graph" in done.stderr


def test_a_paper_row_that_is_no_experiment_is_refused(project):
    project.edit("paper.yaml", "  cifar10: {mean", "  cifar11: {mean")
    done = project.call("ffrepro", "params", "check")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "ffrepro: paper.yaml: targets.cifar11: no such row in params.yaml; did you mean cifar10?"
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        ("deviations.yaml", "theirs: float16", "theirs: float8", "fields.training.precision.theirs: given 'float8'"),
        (
            "deviations.yaml",
            "\n  hinton:\n",
            "\n  hintn:\n",
            "targets.hintn: no such target in paper.yaml; did you mean hin",
        ),
        ("paper.yaml", "each: true", "each: yes", "claims.all-three-highest.each: given 'yes'; allowed: true or false"),
        (
            "paper.yaml",
            "symba-batch-deep: {overlapping: cifar10}",
            "symba-batch-deep: {overlapping: mnist}",
            "claims.deep-above-shallow.ablation.pairs: given ['mnist', 'ablation-symba-batch-overlapping'], rows of ",
        ),
    ],
)
def test_params_check_reads_claims_and_deviations(project, file, old, new, line):
    project.edit(file, old, new)
    done = project.call("ffrepro", "params", "check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"ffrepro: {file}: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("device", ["cpus", "0"])
def test_a_wrong_device_in_the_environment_is_one_line(project, device):
    project.stages(["check", "digits"], ["prepare", "digits"])
    done = project.call("python", "-m", "pipelines.train", "digits", "0", FFREPRO_DEVICE=device)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ffrepro: device: given '{device}'; allowed: auto, cpu, cuda")


def test_embedded_data_need_no_fetching(project):
    done = project.run("ffrepro", "fetch", "digits", "--offline")
    assert done.returncode == 0
    assert "embedded, nothing to fetch" in done.stdout


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["evaluate", "digist"], "no experiment 'digist' in params.yaml; did you mean digits?"),
        (
            ["evaluate", "cifar10"],
            "cifar10: nothing of it in runs/; `ffrepro reproduce cifar10` trains it, and --runs results takes what is "
            "committed\n",
        ),
        (
            ["reference", "digits", "--machine", "one\nline"],
            r"--machine: given 'one\\nline'; allowed: one line of at most 1000 printable characters",
        ),
        (
            ["bench", "digits", "--machine", "caf\udce9"],
            r"--machine: given 'caf\\udce9'; allowed: one line of at most 1000 printable characters",
        ),
        (["bench", "digits", "--output", "caf\udce9"], "--output: given 'caf"),
        (["bench", "digits", "--output", "."], "--output: given '.'; allowed: FOLDER/NAME, for NAME.json and NAME.md"),
        (["params", "handbook"], "params.yaml: defaults.network.norm: given 'bath'; allowed: "),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(project, command, line):
    if command == ["params", "handbook"]:
        project.edit("params.yaml", "    norm: batch\n    label", "    norm: bath\n    label")
    done = project.call("ffrepro", *command)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ffrepro: {line}")
    assert (done.stderr.count("\n"), done.stdout) == (1, "")


@pytest.mark.parametrize(
    "command",
    [["params", "check"], ["list", "--table", "headline"], ["explain", "headline.original-large.svhn"], ["report"]],
)
def test_a_table_with_a_row_that_is_none_is_one_line(project, command):
    project.edit("paper.yaml", "svhn: original-large-svhn", "svhn: original-large-svhm")
    done = project.call("ffrepro", *command)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "ffrepro: paper.yaml: tables.headline: no row 'original-large-svhm'; did you mean original-large-svhn?"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("word", "on"), [("1", True), ("true", True), ("0", False), ("False", False), ("no", False)])
def test_a_switch_takes_words_for_no(monkeypatch, word, on):
    monkeypatch.setenv("FFREPRO_FAST", word)
    assert devices.fast() is on


def test_a_terminal_without_the_sign_gets_another(root):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "ffrepro", "list"], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "67.91 ? 3.10 (n = 4)" in done.stdout


def test_an_argument_that_is_not_utf8_can_be_told_of(tmp_path):
    with lock.alone(tmp_path / "lock", "`ffrepro reproduce digits --mirror /m\udce9`"):
        assert b"--mirror /m?`" in (tmp_path / "lock").read_bytes()


def test_evaluate_repeats_the_stage_and_takes_another_precision(project):
    project.shrink("8 16P 16 16", epochs=1)
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])
    folder = project.root / "runs" / "digits" / "0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    measured = json.loads(before["metrics.json"])
    done = project.call("ffrepro", "evaluate", "digits")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"digits-0: {measured['accuracy']:.2f} % of 360 test images in float32; blocks ")
    other = project.call("ffrepro", "evaluate", "digits", "--seed", "0", "--precision", "bfloat16")
    assert " % of 360 test images in bfloat16; blocks " in other.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_evaluate_takes_images_that_were_trained_on_or_held_out_and_statistics_anew(project):
    project.shrink("8 16P 16 16", epochs=1)
    project.edit("params.yaml", "      name: digits\n", "      name: digits\n      held_out: 437\n")
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])
    printed = {}
    for images, first in (("held-out", None), ("training", None), ("training", 200), ("test", 100)):
        options = ("--first", str(first)) if first else ()
        done = project.call("ffrepro", "evaluate", "digits", "--images", images, *options)
        assert done.returncode == 0, done.stderr
        printed[images, first] = done.stdout
    assert " % of 437 held-out images in float32; " in printed["held-out", None]
    assert " % of 1000 training images in float32; " in printed["training", None]
    assert " % of 200 training images in float32; " in printed["training", 200]
    assert " % of 100 test images in float32; " in printed["test", 100]

    restated = project.call("ffrepro", "evaluate", "digits", "--images", "held-out", "--restated")
    assert restated.returncode == 0, restated.stderr

    folder = project.root / "runs" / "digits" / "0"
    names, last = ((folder / "history.csv").read_text().splitlines()[i].split(",") for i in (0, -1))
    told = [f"{float(value):.2f}" for name, value in zip(names, last, strict=True) if name.startswith("held_out_")]
    assert printed["held-out", None].endswith(f"blocks {' '.join(told)}\n")
    train, test = data.load(project.root / "data" / "digits.safetensors")
    row = config.read_experiment(folder.parent / "experiment.json")
    network = evidence.network(evidence.read(folder), torch.device("cpu"))
    for (images, first), split in {("training", 200): data.held_out(train, 437)[0], ("test", 100): test}.items():
        table = evaluation.goodness_table(network, split.images[:first], row)
        accuracy = evaluation.accuracy(evaluation.predictions(table, "last"), split.labels[:first])
        assert printed[images, first].startswith(f"digits-0: {accuracy:.2f} % of ")
    learned, held_out = data.held_out(train, 437)
    evaluation.restate(network, learned, row, engine.draw(row, 0, 1, 1000))
    table = evaluation.goodness_table(network, held_out.images, row)
    blocks = evaluation.block_accuracies(table, held_out.labels)
    told = " ".join(f"{value:.2f}" for value in blocks.values())
    wanted = f"digits-0: {blocks['4']:.2f} % of 437 held-out images in float32, statistics anew; blocks {told}\n"
    assert restated.stdout == wanted
    assert told not in printed["held-out", None]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("digits",), "digits: nothing of it in runs/; `ffrepro reproduce digits` trains it"),
        (("digits", "--images", "held-out"), "--images: given held-out, but digits holds none out; allowed: test, tr"),
        (("digits", "--seed", "7"), "record.json: no such file; get it anew"),
        (
            ("ablation-digits-symba-layer-overlapping", "--restated"),
            "--restated: ablation-digits-symba-layer-overlapping has layer norm, without statistics; leave it out",
        ),
        (("digits", "--precision", "float8"), "evaluate: training.precision: given 'float8'; allowed: float32, "),
    ],
)
def test_evaluate_says_in_one_line_what_is_missing(project, options, says):
    if len(options) > 1:
        project.stages(["check", options[0]])  # `evaluate` prepares the data itself
    done = project.call("ffrepro", "evaluate", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr
