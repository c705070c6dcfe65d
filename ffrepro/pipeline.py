"""Run a row's part of the DVC graph, and train the committed references by the same stages."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ffrepro import config, record
from ffrepro.config import Experiment, Params
from ffrepro.errors import EXIT_CODE_FILE, UserError
from ffrepro.layout import Layout

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
    with tempfile.TemporaryFile("w+", encoding="utf-8") as text:
        text.write(
            "# Every row's seeds as DVC's train and evaluate stages. Written by `ffrepro params graph`; do not edit.\n"
        )
        yaml.dump(config.graph(params), text)
        text.seek(0)
        record.write_text(text.read(), project.graph)


def environment(project: Layout, settings: dict[str, str]) -> dict[str, str]:
    """The environment of a stage: this Python first on the path, and our settings laid over the caller's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **settings, "PATH": path, "DVC_NO_ANALYTICS": "1"}


def repro(project: Layout, stage: str, settings: dict[str, str]) -> None:
    """`dvc repro STAGE`, with or without git around the project; what DVC prints goes to stderr.

    Raises UserError with the exit code of the stage that failed; the stage has printed its own line by then.
    """
    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch) / "code"
        env = environment(project, {**settings, EXIT_CODE_FILE: str(code)})
        if not any((folder / ".git").exists() for folder in (project.root, *project.root.parents)):
            Path(scratch, "config").write_text(NO_GIT)  # DVC has no variable for this, only a system-wide file
            env["DVC_SYSTEM_CONFIG_DIR"] = scratch
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", stage], cwd=project.root, env=env, stdout=sys.stderr, check=False
        )
        if done.returncode:
            error = UserError(f"{stage}: a stage failed; its own line stands above")
            error.exit_code = int(code.read_text()) if code.exists() else 1
            raise error


def train_references(project: Layout, name: str, row: Experiment, settings: dict[str, str]) -> None:
    """Run check, prepare, train and evaluate for the row's reference seeds, with `results` as the folder of the
    runs."""
    stages = [["check", name, "results"], ["prepare", row.data.name]]
    for seed in row.verdict.reference_seeds:
        stages += [["train", name, str(seed), "results"], ["evaluate", name, str(seed), "results"]]
    for stage, *arguments in stages:
        if stage == "train" and (project.run(name, int(arguments[1])) / "record.json").exists():
            continue  # `report.collect` compares its parameters with the row's
        done = subprocess.run(
            [sys.executable, "-m", f"pipelines.{stage}", *arguments],
            cwd=project.root,
            env=environment(project, settings),
        )
        if done.returncode:
            error = UserError(f"reference: the stage {stage} of {name} failed; its own line stands above")
            error.exit_code = done.returncode
            raise error
