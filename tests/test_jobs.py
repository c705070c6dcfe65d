"""Runs as jobs on this machine, their states, and how DVC learns of them. A real Slurm's: tests/test_slurm.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from ffrepro import config, devices, jobs, layout, record, slurm
from ffrepro.errors import UserError


def states(project, *names):
    done = project.call("ffrepro", "status", *names, "--json")
    assert done.returncode == 0, done.stderr
    return {one["run"]: (one["state"], one["of"]) for one in json.loads(done.stdout)}


def files(project):
    names = ("weights.safetensors", "goodness.safetensors", "metrics.json")
    paths = sorted(path for name in names for path in project.root.glob(f"runs/*/*/{name}"))
    return {str(path.relative_to(project.root)): path.read_bytes() for path in paths}


def test_local_jobs_make_the_stages_files_and_dvc_makes_none_of_them_again(project_in, tmp_path):
    for name in ("jobs", "stages"):
        (tmp_path / name).mkdir()
    one, other = project_in(tmp_path / "jobs"), project_in(tmp_path / "stages")
    one.shrink(epochs=2, seeds=[0, 1])
    other.shrink(epochs=2, seeds=[0, 1])
    assert one.call("ffrepro", "status").stdout == "nothing was submitted; ffrepro submit NAME... does\n"
    done = one.run("ffrepro", "submit", "digits", "--local", "2")
    assert (done.returncode, done.stdout) == (0, "2 of 2 runs done\n"), done.stderr
    assert {word for word, _ in states(one).values()} == {"done"}
    assert re.search(r"^digits-0 +done +\d+\.\d\d %$", one.call("ffrepro", "status").stdout, re.MULTILINE)
    assert one.shell("git init -q").returncode == 0  # dvc by itself asks for git
    stages = ("train@digits-0", "evaluate@digits-1", "check@digits", "prepare@digits")
    said = one.run("dvc", "repro", "--single-item", *stages).stdout
    for stage in stages:
        assert f"Stage '{stage}' didn't change" in said
    reported = one.run("ffrepro", "reproduce", "digits")
    assert reported.returncode in (0, 3, 4), reported.stderr
    assert re.findall(r"Running stage '(\w+)", reported.stderr) == ["report", "verdict"]
    other.stages(["check", "digits"], ["prepare", "digits"])
    other.stages(*([stage, "digits", seed] for seed in "01" for stage in ("train", "evaluate")))
    assert files(one) == files(other)
    assert len(files(one)) == 6
    again = one.call("ffrepro", "submit", "digits", "--local", "2")
    assert (again.stdout, "started" in again.stderr) == ("2 of 2 runs done\n", False)


def test_status_tells_of_damaged_metrics_and_of_a_run_that_failed_while_others_go_on(project):
    project.shrink(epochs=5, seeds=[0, 1])
    unwritable, damaged = (project.root / "runs" / "digits" / seed for seed in "01")
    (unwritable / "weights.safetensors").mkdir(parents=True)
    damaged.mkdir(parents=True)
    for name in ("record.json", "metrics.json"):
        (damaged / name).write_text('{"parameters": "x", "accuracy": []}')
    assert states(project, "digits")["digits-1"] == ("not submitted", "damaged")
    command = [sys.executable, "-m", "ffrepro", "submit", "digits", "--local", "1"]
    env = {**os.environ, "PYTHONPATH": str(project.root)}
    process = subprocess.Popen(command, cwd=project.root, env=env, stderr=subprocess.PIPE, text=True)
    try:
        while (found := states(project, "digits"))["digits-0"][0] != "failed":
            assert process.poll() is None, found
            time.sleep(0.1)
        assert found["digits-1"][0] in ("queued", "running")  # in the same look: the command goes on with it
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has a CUDA GPU")
def test_what_a_gpu_made_is_reported_without_one_after_another_row_was_edited(copied):
    project = copied
    project.edit("params.yaml", "requires: cpu\n    data:\n      name: digits", "data:\n      name: digits")  # cuda
    shutil.rmtree(project.root / "runs" / "digits" / "1")  # one is made of the row that needs a GPU, on the CPU
    assert project.call("ffrepro", "submit", "digits", "--local", "2", FFREPRO_DEVICE="cpu").returncode == 0
    first = project.call("ffrepro", "reproduce", "digits", FFREPRO_DEVICE="auto")
    assert first.returncode in (0, 3, 4), first.stderr
    project.edit("params.yaml", "12-block network on SVHN", "12 blocks on SVHN")
    again = project.call("ffrepro", "reproduce", "digits", FFREPRO_DEVICE="auto")
    assert (again.returncode, again.stdout) == (first.returncode, first.stdout), again.stderr
    assert "Running stage" not in again.stderr
    train = project.root / "pipelines" / "train.py"
    train.write_text(f"{train.read_text()}# a change that makes no other numbers\n")
    record_file = project.root / "runs" / "digits" / "0" / "record.json"
    before = record_file.read_bytes()
    assert project.shell("git init -q").returncode == 0  # dvc by itself asks for git
    alone = project.run("dvc", "repro", "verdict@digits", FFREPRO_DEVICE="auto")  # which would train it
    assert "digits needs a CUDA GPU" in alone.stderr
    assert record_file.read_bytes() == before
    again = project.call("ffrepro", "reproduce", "digits", FFREPRO_DEVICE="auto")
    assert (again.returncode, again.stdout) == (first.returncode, first.stdout), again.stderr
    (project.root / "dvc.lock").unlink()  # runs that DVC has never seen, such as those brought from a borrowed machine
    shutil.rmtree(project.root / "jobs")
    shutil.rmtree(project.root / "data")
    again = project.call("ffrepro", "reproduce", "digits", FFREPRO_DEVICE="auto")
    assert (again.returncode, again.stdout) == (first.returncode, first.stdout), again.stderr
    assert record_file.read_bytes() == before
    project.edit(
        "dvc.yaml", "        - pipelines/train.py\n", "        - pipelines/train.py\n        - ffrepro/layout.py\n"
    )
    again = project.call("ffrepro", "reproduce", "digits", FFREPRO_DEVICE="auto")  # the graph of another version
    assert (again.returncode, again.stdout) == (first.returncode, first.stdout), again.stderr
    assert record_file.read_bytes() == before
    project.edit("params.yaml", "blocks: 4 8P", "blocks: 8 8P")  # of this row: it would have to be trained again
    edited = project.run("ffrepro", "reproduce", "digits", FFREPRO_DEVICE="auto")
    assert edited.returncode == 5
    assert "digits needs a CUDA GPU" in edited.stderr.splitlines()[-1]
    stage = project.call("python", "-m", "pipelines.check", "digits", FFREPRO_DEVICE="auto")
    assert (stage.returncode, "digits needs a CUDA GPU" in stage.stderr) == (5, True)


def test_stopped_local_jobs_end_in_order_and_go_on(project):
    project.shrink(epochs=20, seeds=[0, 1])
    command = [sys.executable, "-m", "ffrepro", "submit", "digits", "--local", "1"]
    env = {**os.environ, "PYTHONPATH": str(project.root)}
    process = subprocess.Popen(command, cwd=project.root, env=env, stderr=subprocess.PIPE, text=True)
    while not (project.root / "checkpoints" / "digits-0.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert {run: word for run, (word, _) in states(project).items()} == {"digits-0": "running", "digits-1": "queued"}
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode == 143
    stopped = ("failed", "interrupted; a training goes on from its last checkpoint with the same command")
    assert states(project)["digits-0"] == stopped
    assert states(project)["digits-1"] == ("failed", "ended before it began")
    assert project.call("ffrepro", "submit", "digits", "--local", "2").returncode == 0
    assert "digits-0.pt: going on after epoch" in (project.root / "jobs" / "digits-0.log").read_text()
    assert {word for word, _ in states(project).values()} == {"done"}


def test_what_slurm_has_running_is_not_run_beside_it(project):
    project.shrink(epochs=1, seeds=[0, 1])
    project.stages(["prepare", "digits"])
    record.write_json({"job": "77_0", "process": None}, project.root / "jobs" / "digits-0.json")
    programs = project.root / "programs"
    programs.mkdir()
    squeue = programs / "squeue"
    squeue.write_text("#!/bin/sh\necho '77_0|RUNNING|None'\n")
    squeue.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = project.call("ffrepro", "submit", "digits", "--local", "1", PATH=path)
    assert (done.returncode, done.stdout) == (0, "1 of 2 runs done\n"), done.stderr
    assert "digits-0: running already, as a job of Slurm's, left alone\n" in done.stderr
    assert record.read_json(project.root / "jobs" / "digits-0.json")["job"] == "77_0"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    done = project.call("ffrepro", "status", "digits", PATH=path)
    assert (done.returncode, done.stderr) == (5, "ffrepro: squeue: ended with 1\n")


@pytest.fixture(scope="module")
def made(project_in, tmp_path_factory):
    """A project with two whole runs."""
    project = project_in(tmp_path_factory.mktemp("made"))
    project.shrink(epochs=2, seeds=[0, 1])
    project.stages(["prepare", "digits"])
    assert project.call("ffrepro", "submit", "digits", "--local", "2").returncode == 0
    return layout.Layout(project.root)


@pytest.fixture
def copied(made, project):
    """A copy of it, for a test to change."""
    shutil.copytree(made.root, project.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tmp"))
    return project


@pytest.mark.parametrize(
    "left", ["", "sch", "schema: '2.0'\nstages:\n  tra", "stages:\n  a:\n    outs:\n    - pa", "a: ["]
)
def test_where_dvcs_lock_file_was_cut_off_jobs_are_noted_anew(made, tmp_path, left, call_in):
    shutil.copytree(made.root, tmp_path / "project", ignore=shutil.ignore_patterns("tmp", "cache"))
    root = tmp_path / "project"
    before = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(left)
    done = call_in(root, "ffrepro", "submit", "digits", "--local", "2", PYTHONPATH=str(root))
    assert (done.returncode, done.stdout) == (0, "2 of 2 runs done\n"), done.stderr
    assert "started" not in done.stderr
    assert (root / "dvc.lock").read_text() == before


def test_a_run_that_fails_is_told_of_and_the_others_count(project):
    project.shrink(epochs=2, seeds=[0, 1])
    project.stages(["prepare", "digits"])
    path = project.root / "data" / "digits.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    done = project.call("ffrepro", "submit", "digits", "--local", "2")
    assert (done.returncode, done.stdout) == (1, "0 of 2 runs done\n")
    lines = re.findall(r"^ffrepro: (digits-\d): (.*)$", done.stderr, re.MULTILINE)
    assert [run for run, _ in lines] == ["digits-0", "digits-1"]
    assert all("digits.safetensors: not a whole safetensors file" in of for _, of in lines)
    assert states(project) == {run: ("failed", of) for run, of in lines}
    path.unlink()  # what the line says to do
    assert project.call("ffrepro", "submit", "digits", "--local", "2").returncode == 0


def test_a_lock_file_of_dvcs_that_was_edited_is_told_of_by_dvc(made, tmp_path, call_in, capfd):
    shutil.copytree(made.root, tmp_path / "project", ignore=shutil.ignore_patterns("tmp", "cache"))
    path = tmp_path / "project" / "dvc.lock"
    edited = path.read_text().replace("  train@digits-0:\n    cmd: ", "  train@digits-0:\n    cmd: [", 1)
    path.write_text(edited)
    done = call_in(path.parent, "ffrepro", "reproduce", "digits", PYTHONPATH=str(path.parent))
    assert (done.returncode, path.read_text()) == (2, edited)
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("ffrepro: DVC could not take over the runs that are done; why stands above\n")
    assert "'dvc.lock', YAML" in capfd.readouterr().err  # DVC's own line, past `call_in`


def test_what_was_edited_since_a_run_was_made_counts(made, tmp_path, call_in):
    """A run that DVC does not know of yet, and a row whose rule has changed in between."""
    shutil.copytree(made.root, tmp_path / "project", ignore=shutil.ignore_patterns("tmp", "cache", "dvc.lock"))
    root = tmp_path / "project"
    path = root / "params.yaml"
    assert "margin: 3" in path.read_text()
    path.write_text(path.read_text().replace("margin: 3", "margin: 2"))
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "ffrepro", "reproduce", "digits"], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode in (0, 3, 4), done.stderr
    assert "lies within ±2 points" in done.stdout
    assert re.findall(r"Running stage '(\w+)", done.stderr) == ["report", "verdict"]
    (root / "report" / "rows" / "mnist.json").write_text("{}")  # another row's, which the tables need
    again = call_in(root, "ffrepro", "reproduce", "digits", PYTHONPATH=str(root))
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout)
    assert re.search(r"\nffrepro: .*mnist.json: .*; until then no tables are written\n$", again.stderr), again.stderr


@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_a_note_of_a_submission_that_is_none_is_a_line(tmp_path, content):
    project = layout.Layout(tmp_path)
    project.jobs.mkdir()
    project.job("digits", 0).write_text(content)
    with pytest.raises(UserError, match=r"digits-0.json: not "):
        jobs.submitted(project)


def changed(path, **values):
    def change():
        content = record.read_json(path)
        content.pop("seal")
        record.write_sealed({**content, **values}, path)

    return change


@pytest.mark.parametrize("what", ["seed", "parameters", "code", "data", "weights"])
def test_a_run_of_another_making_is_not_taken_over(made, what):
    params, run = config.load(made.params), jobs.Run("digits", 0)
    path = made.run(*run) / "record.json"
    assert jobs.lacking(made, params, run) == ""
    whole = path.read_bytes()
    try:
        changed(path, **{what: 1 if what == "seed" else "0" * 64})()
        assert jobs.lacking(made, params, run) == f"of other {what}"
    finally:
        path.write_bytes(whole)


def test_a_run_whose_files_were_edited_counts_as_none(made):
    """With the words that tell what was edited; what DVC is told of is whole."""
    params, run = config.load(made.params), jobs.Run("digits", 0)
    folder = made.run(*run)

    def lacks():
        return jobs.lacking(made, params, run), jobs._glance(made, params, run)

    def goodness(path):
        record.write_tensors({name: -table for name, table in record.read_tensors(path).items()}, path)

    unsealed = f"{folder}/{{}}: broken link: not what its seal was made of; it was changed after it was written"
    edits = {
        "metrics.json": (lambda path: path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1')), None),
        "record.json": (lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1')), None),
        "history.csv": (lambda path: path.write_text(path.read_text() + "\n"), ("of other history", "")),
        "goodness.safetensors": (goodness, ("of other goodness", "")),
    }
    assert lacks() == ("", "")
    whole = (folder / "metrics.json").read_bytes()
    try:  # sealed again, an accuracy that its goodness does not give; what DVC would be told of is looked at
        changed(folder / "metrics.json", accuracy=99.9)()
        what = "broken link: accuracy is not what goodness and labels give"
        assert lacks() == (f"{folder}/metrics.json: {what}", "")
    finally:
        (folder / "metrics.json").write_bytes(whole)
    for file, (edit, words) in edits.items():
        whole = (folder / file).read_bytes()
        try:
            edit(folder / file)
            assert (folder / file).read_bytes() != whole
            assert lacks() == (words or (unsealed.format(file), "damaged"))
        finally:
            (folder / file).write_bytes(whole)
    whole = (folder / "record.json").read_bytes()
    try:
        changed(folder / "record.json", code="0" * 64)()
        assert lacks() == ("of other code", "of other code")
    finally:
        (folder / "record.json").write_bytes(whole)


@pytest.mark.parametrize(
    ("file", "edit", "lacks"),
    [
        ("record.json", {"seed": 1}, "of other seed"),  # as in a copy of another seed's folder
        ("metrics.json", {"vote": "all"}, "of other vote"),
        ("metrics.json", {"link": "0" * 64}, "of other evaluation"),
        ("weights.safetensors", None, "no weights.safetensors"),
    ],
)
def test_status_calls_nothing_done_that_reproduce_would_make_again(made, file, edit, lacks):
    params, run = config.load(made.params), jobs.Run("digits", 0)
    path = made.run(*run) / file
    whole = path.read_bytes()
    try:
        changed(path, **edit)() if edit else path.unlink()
        assert (jobs.lacking(made, params, run), jobs._glance(made, params, run)) == (lacks, lacks)
        assert list(jobs.states(made, params, [run])) == [jobs.State(run, "failed", lacks)]
    finally:
        path.write_bytes(whole)


def test_a_finished_run_that_counts_no_more_says_why(copied):
    assert states(copied)["digits-0"][0] == "done"
    copied.edit("params.yaml", "      epochs: 2\n", "      epochs: 3\n")
    assert set(states(copied).values()) == {("failed", "of other parameters")}
    log = copied.root / "jobs" / "digits-0.log"
    log.write_text("digits-0: epoch 1/3  loss 0.6\n")  # of a second job, which was killed
    assert states(copied)["digits-0"] == ("failed", "epoch 1/3  loss 0.6")


def test_a_container_that_is_not_there_is_told_before_anything_is_done(project):
    (project.root / "cluster.yaml").write_text("container: none.sif\n")
    done = project.run("ffrepro", "submit", "digits", "--slurm")
    line = "ffrepro: cluster.yaml: container: given 'none.sif'; allowed: an image that is there\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not (project.root / "data").exists()


def test_a_container_that_is_not_on_this_machine_is_looked_for_by_apptainer(made):
    assert slurm._start(made, slurm.Cluster(container="docker://ffrepro"))[-1] == "docker://ffrepro"
    assert slurm._start(made, slurm.Cluster()) == []


@pytest.mark.parametrize("file", ["weights.safetensors", "goodness.safetensors", "metrics.json", "record.json"])
def test_a_run_that_is_damaged_or_not_whole_is_not_taken_over(made, file):
    params, run = config.load(made.params), jobs.Run("digits", 0)
    path = made.run(*run) / file
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        assert file in jobs.lacking(made, params, run)
        path.unlink()
        assert jobs.lacking(made, params, run) == f"no {file}"
    finally:
        path.write_bytes(whole)


def test_every_gpu_gets_one_run_at_a_time(params, monkeypatch, capsys):
    monkeypatch.setattr(devices, "choose", lambda given: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = {"FFREPRO_DEVICE": "auto"}
    expected = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert jobs._places(params, [], 4, settings) == expected
    assert capsys.readouterr().err == "GPUs here: 2; as many runs at once, one a GPU, not 4\n"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert jobs._places(params, [], 1, settings) == [{"CUDA_VISIBLE_DEVICES": "5"}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # CUDA stops at a name that is of no GPU
    for given in ("3,-1", "0,", "3,99"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert jobs._places(params, [], 2, settings) == [{"CUDA_VISIBLE_DEVICES": given[0]}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")  # of which CUDA counts one
    assert [place["CUDA_VISIBLE_DEVICES"] for place in jobs._places(params, [], 2, settings)] == ["MIG-a", "MIG-b"]


def test_what_cannot_be_submitted_is_a_line(project):
    def line(*arguments, **settings):
        done = project.call("ffrepro", "submit", *arguments, **settings)
        assert done.stdout == ""
        return done.returncode, done.stderr

    assert line("digits") == (2, "ffrepro: submit: give one of --slurm and --local N\n")
    assert line("digits", "--slurm", "--local", "2") == line("digits")
    code, said = line("digit", "--local", "2")
    assert code == 2
    assert said.startswith("ffrepro: no row and no table 'digit'; did you mean digits? there are: ")
    code, said = line("digits", "--slurm", PATH="/nowhere")
    assert (code, said) == (
        5,
        "ffrepro: submit: there is no sbatch here; go to a login node of the cluster, or use --local N\n",
    )
    code, said = line("cifar10", "--local", "2", FFREPRO_DEVICE="auto", FFREPRO_MIRROR="")
    assert code == 5
    assert "cifar10 needs a CUDA GPU" in said
    assert len(said.splitlines()) == 1  # nothing was fetched before
    assert not (project.root / "data").exists()
    (project.root / "cluster.yaml").write_text("partitoin: gpu\nminutes: 0\n")
    assert line("digits", "--slurm") == (
        2,
        "ffrepro: cluster.yaml: minutes: given 0; allowed: a whole number, at least 1, at most 43200\n"
        "ffrepro: cluster.yaml: partitoin: given an unknown key (did you mean partition?); "
        f"allowed: {', '.join(slurm.Cluster.model_fields)}\n",
    )
    assert not (project.root / "jobs").exists()


def test_a_job_is_not_warned_before_it_can_understand(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("minutes: 2\nwarning: 60\n")
    with pytest.raises(UserError) as error:
        slurm.read(path)
    assert str(error.value) == "cluster.yaml: minutes: given 2; allowed: more than warning and 60 s, together 120 s"
    path.write_text("minutes: 2\nwarning: 59\n")
    assert slurm.read(path).minutes == 2
    assert slurm.read(tmp_path / "none.yaml") == slurm.Cluster()


@pytest.mark.parametrize("given", ["a b", "$(reboot)", "--exclusive", "x\n#SBATCH --uid=0", ""])
def test_no_word_of_cluster_yaml_is_more_than_a_word(given, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps({"partition": given}))
    with pytest.raises(UserError, match=r"^cluster.yaml: partition: given "):
        slurm.read(path)
