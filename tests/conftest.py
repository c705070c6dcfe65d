import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["FFREPRO_DEVICE"] = "cpu"  # the promises of this suite are the CPU's, also on a machine with a GPU
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what many processes of a copy import is compiled once
os.environ["FFREPRO_THREADS"] = "1"  # trainings beside one another: a second thread each would wait for a free core

from ffrepro import cli, config, data, determinism, errors

ROOT = Path(__file__).parent.parent
FEW = ("digits", "cifar10-quick", "cifar10", "mnist", "fashion-mnist", "svhn")  # of 54 rows, for DVC to read
determinism.switch_on()
# A shell's background job ignores Ctrl-C, and so would what the tests start from one: give it its meaning back.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def params() -> config.Params:
    return config.load(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def digits() -> tuple[data.Split, data.Split]:
    return data.read("digits", ROOT)


@pytest.fixture
def row_content(params: config.Params) -> Callable[..., dict[str, Any]]:
    """The digits row with other values, unchecked, as a mapping: row_content(epochs=2, blocks="8 8P")."""

    def changed(name: str = "digits", **values: Any) -> dict[str, Any]:
        content = params.experiments[name].model_dump(mode="json")
        for key, value in values.items():
            places = [section for section in content.values() if isinstance(section, dict) and key in section]
            assert len(places) == 1, f"{key} is in {len(places)} sections"
            places[0][key] = value
        return content

    return changed


@pytest.fixture
def row(row_content: Callable[..., dict[str, Any]]) -> Callable[..., config.Experiment]:
    """The digits row with other values: row(epochs=2, blocks="8 8P")."""
    return lambda *name, **values: config.Experiment.model_validate(row_content(*name, **values))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def call_in(folder: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Call `ffrepro` or `python -m MODULE` in a folder, without a process of its own, which would take PyTorch seconds.

    For tests of what files, messages and exit codes say.
    """
    as_is = {"encoding": "utf-8", "errors": "surrogatepass", "newline": ""}
    with (
        tempfile.TemporaryFile("w+", **as_is) as out,  # files, into which a stage that a command starts can write, too
        tempfile.TemporaryFile("w+", **as_is) as err,
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            if command[0] == "ffrepro":
                code = errors.run(lambda: cli.app(command[1:], prog_name="ffrepro"))
            else:
                assert command[:2] == ("python", "-m")
                code = errors.run(importlib.import_module(command[2]).main, *command[3:])
        except SystemExit as exit_:  # Typer's and argparse's way to end
            code = exit_.code
        said = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess(command, code, *said)


class Project:
    """A copy of the project in an empty folder, without git, in which a test may edit and run what a user would."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for name in ("params.yaml", "paper.yaml", "deviations.yaml", "graph.yaml", "dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        for name in ("ffrepro", "pipelines", ".dvc"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
        (folder / "results").mkdir()
        shutil.copy(ROOT / "results" / "reference.json", folder / "results")

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new))

    def keep(self, *rows: str) -> None:
        """Leave these rows alone, none of them `like` one that goes, and no tables: DVC reads every stage of each."""
        path = self.root / "params.yaml"
        head, _, written = path.read_text().partition("\nexperiments:\n")
        blocks = re.split(r"^(?=  [a-z0-9-]+:$)", written, flags=re.MULTILINE)
        kept = [block for block in blocks if block.partition(":")[0].strip() in rows]
        assert len(kept) == len(rows)
        path.write_text(f"{head}\nexperiments:\n{''.join(kept)}")
        path = self.root / "paper.yaml"
        of_others = rf"^  (?!(?:{'|'.join(rows)}):)[a-z0-9-]+: \{{mean.*\n"
        targets = re.sub(of_others, "", path.read_text().partition("\ntables:\n")[0], flags=re.MULTILINE)
        path.write_text(f"{targets}\ntables: {{}}\nclaims: {{}}\n")
        path = self.root / "deviations.yaml"
        path.write_text(re.sub(r"^targets:\n.*?(?=^fields:)", "", path.read_text(), flags=re.MULTILINE | re.DOTALL))
        assert self.call("ffrepro", "params", "graph").returncode == 0

    def shrink(
        self, blocks: str = "4 8P", epochs: int = 1, seeds: list[int] | None = None, rows: tuple[str, ...] = FEW
    ) -> None:
        """Make the row `digits` one of moments; with seeds, beside few other rows."""
        if seeds and rows:
            self.keep(*rows)
        self.edit("params.yaml", "blocks: 48 96P 96 96", f"blocks: {blocks}")
        self.edit("params.yaml", "      epochs: 20\n", f"      epochs: {epochs}\n")
        if seeds:
            self.edit("params.yaml", "seeds: [0, 1, 2]", f"seeds: {seeds}")
            assert self.call("ffrepro", "params", "graph").returncode == 0

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `ffrepro`, `dvc` or `python` with arguments in the project, as after activating its environment."""
        binaries = Path(sys.executable).parent
        start = [sys.executable, "-m", "ffrepro"] if command[0] == "ffrepro" else [str(binaries / command[0])]
        return self._run([*start, *command[1:]], settings)

    def call(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """What `run` does with `ffrepro` or `python -m MODULE`, by `call_in`, so with the checkout's own code."""
        return call_in(self.root, *command, PYTHONPATH=str(self.root), **settings)

    def shell(self, script: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run lines as a page shows them; the first that fails ends them."""
        return self._run(["bash", "-ec", f'ffrepro() {{ python -m ffrepro "$@"; }}\n{script}'], settings)

    def _run(self, command: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            **settings,
        }
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)

    def stages(self, *stages: list[str], **settings: str) -> None:
        for stage, *arguments in stages:
            done = self.call("python", "-m", f"pipelines.{stage}", *arguments, **settings)
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def project_in() -> Callable[[Path], Project]:
    """A project in a folder that a test made: project_in(folder)."""
    return Project


@pytest.fixture(scope="session", name="call_in")
def call_in_a_folder() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`call_in`, for tests of commands in a folder that is no copy of the project."""
    return call_in


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)
