"""What the image lays out in /out, and what of it stays a user's own. The image itself: tests/test_image.py."""

import fcntl
import os
import re
from pathlib import Path

import pytest

from ffrepro import __version__, container, record
from ffrepro.errors import UserError


@pytest.fixture
def image(tmp_path):
    return make(tmp_path / "image", {"params.yaml": "seeds: [0]", "ffrepro/step.py": "1", "results/a.json": "{}"})


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def make(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def content(out):
    return {
        str(path.relative_to(out)): path.read_text()
        for path in out.rglob("*")
        if path.is_file() and path.name != container.LAID
    }


def test_the_project_is_laid_out_and_laid_out_again_without_touching_it(image, out):
    make(image, {"ffrepro/__pycache__/step.pyc": "bytecode"})
    assert container.lay(image, out) == []
    assert content(out) == {"params.yaml": "seeds: [0]", "ffrepro/step.py": "1", "results/a.json": "{}"}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != container.LAID}
    make(out, {"runs/digits/0/record.json": "made here"})
    assert container.lay(image, out) == []
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()}.items() <= before.items()
    assert content(out)["runs/digits/0/record.json"] == "made here"


def test_an_edited_file_stays_and_edited_code_does_not(image, out):
    container.lay(image, out)
    make(out, {"params.yaml": "seeds: [7]", "ffrepro/step.py": "2"})
    assert container.lay(image, out) == [
        "ffrepro/step.py: put back, since code is the image's",
        "params.yaml: yours, not the image's",
    ]
    assert container.lay(image, out) == ["params.yaml: yours, not the image's"]
    assert content(out) == {"params.yaml": "seeds: [7]", "ffrepro/step.py": "1", "results/a.json": "{}"}


def test_a_newer_image_replaces_what_its_user_has_not_edited_and_takes_away_what_it_no_longer_has(image, out, tmp_path):
    container.lay(image, out)
    make(out, {"results/a.json": "mine"})
    newer = make(tmp_path / "newer", {"params.yaml": "seeds: [0, 1]", "ffrepro/engine.py": "3", "results/a.json": "[]"})
    assert container.lay(newer, out) == ["results/a.json: yours, not the image's"]
    assert content(out) == {"params.yaml": "seeds: [0, 1]", "ffrepro/engine.py": "3", "results/a.json": "mine"}
    assert container.lay(image, out) == ["results/a.json: yours, not the image's"]  # and back
    assert content(out) == {"params.yaml": "seeds: [0]", "ffrepro/step.py": "1", "results/a.json": "mine"}


@pytest.mark.parametrize("files_written", range(4))
def test_ended_in_between_it_is_completed_the_next_time(image, out, tmp_path, monkeypatch, files_written):
    container.lay(image, out)
    newer = make(tmp_path / "newer", {"params.yaml": "seeds: [1]", "ffrepro/step.py": "2", "results/a.json": "[]"})
    write, written = record.write_bytes, []

    def cut_off(text, path):
        if len(written) == files_written + 1:  # the list of what is laid out is the first
            raise KeyboardInterrupt
        written.append(path)
        write(text, path)

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_bytes", cut_off)
        if files_written < 3:
            with pytest.raises(KeyboardInterrupt):
                container.lay(newer, out)
        else:
            container.lay(newer, out)
    assert container.lay(newer, out) == []
    assert content(out) == {"params.yaml": "seeds: [1]", "ffrepro/step.py": "2", "results/a.json": "[]"}


def test_one_container_works_in_a_folder_and_a_killed_one_s_locks_are_taken_away(out):
    make(out, {".dvc/tmp/rwlock": "{}"})
    first = container.alone(out)
    assert not (out / ".dvc" / "tmp" / "rwlock").exists()
    make(out, {".dvc/tmp/rwlock": "{}"})
    assert container.alone(out) is None
    assert (out / ".dvc" / "tmp" / "rwlock").exists()
    os.close(first)
    again = container.alone(out)
    assert again is not None
    fcntl.flock(again, fcntl.LOCK_UN)
    os.close(again)


def test_an_image_s_identity_and_the_digest_that_it_is_told(tmp_path, monkeypatch):
    assert record.image() == {}  # not in an image
    monkeypatch.setattr(record, "IMAGE", make(tmp_path, {"identity.json": '{"revision": "abc"}'}) / "identity.json")
    monkeypatch.delenv("FFREPRO_IMAGE_ID", raising=False)
    assert record.image() == {"image": {"config": None, "revision": "abc"}}
    digest = "sha256:" + "0" * 64
    monkeypatch.setenv("FFREPRO_IMAGE_ID", digest)
    assert record.image()["image"]["config"] == digest
    monkeypatch.setenv("FFREPRO_IMAGE_ID", "latest")
    asked = "docker image inspect --format '{{.Id}}' ffrepro"
    with pytest.raises(
        UserError, match=f"^FFREPRO_IMAGE_ID: given 'latest'; allowed: what `{re.escape(asked)}` prints"
    ):
        record.image()


def test_the_image_s_lock_is_the_run_lock_without_what_builds(root):
    run, image = (
        dict(re.findall(r"^([\w.-]+)==([^ ]+)", (root / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))
        for name in ("run", "image")
    )
    assert image.items() <= run.items()
    assert run.keys() - image.keys() == {"hatchling", "pluggy", "trove-classifiers"}


def test_the_dockerfile_s_version_and_what_it_takes_along(root):
    assert f'version="{__version__}"' in (root / "Dockerfile").read_text()
    taken = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert taken >= {"dvc.yaml", "graph.yaml", "params.yaml", "paper.yaml", "deviations.yaml", "results"}
    assert all((root / name).exists() for name in taken)


def test_the_dockerfile_keeps_to_what_podman_understands(root):
    text = (root / "Dockerfile").read_text()
    unwanted = r"^# *syntax=|<<|--link|--parents|--exclude|--network|--start-interval|\$\{\w+%|target=[^/]"
    assert not re.search(unwanted, text, re.MULTILINE)
    assert re.search(r"^ARG BASE_IMAGE=python:3\.12-slim-bookworm@sha256:[0-9a-f]{64}$", text, re.MULTILINE)


@pytest.fixture
def inside(image, out, monkeypatch):
    """As in a container: these folders for /opt/ffrepro, /out and /data, and what is mounted."""
    monkeypatch.chdir(out)
    monkeypatch.delenv("FFREPRO_DATA", raising=False)
    monkeypatch.setattr(container, "IMAGE", image)
    monkeypatch.setattr(container, "OUT", out)
    monkeypatch.setattr(container, "DATA", out.parent / "data")

    def mounted(*paths):
        monkeypatch.setattr(container, "mounted", lambda path: path in paths)

    return mounted


def test_reading_needs_no_folder_and_leaves_none(image, out, inside):
    inside()
    container.enter("list")
    assert Path.cwd() == image
    assert not [*out.iterdir()]


def test_a_folder_that_is_given_becomes_the_project(out, inside, capsys):
    inside(out)
    container.enter("reproduce")
    assert Path.cwd() == out
    assert (out / "params.yaml").exists()
    assert capsys.readouterr().err == ""


def test_without_one_the_command_says_that_nothing_will_be_left(out, inside, capsys):
    inside()
    container.enter("reproduce")
    assert capsys.readouterr().err.endswith(": what this makes goes with the container\n")


@pytest.mark.parametrize("left", [container.LOCK, f"{container.LAID}.part"])
def test_a_first_start_that_was_cut_off_does_not_spoil_the_folder(out, inside, left):
    make(out, {left: "{"})
    inside(out)
    container.enter("reproduce")
    assert (out / "params.yaml").exists()


def test_another_user_s_file_is_one_line(out, inside):
    (out / container.LOCK).mkdir()  # what root, whom these tests may run as, cannot open either
    inside(out)
    with pytest.raises(UserError, match=r"Is a directory; give a folder of yours: docker run "):
        container.enter("reproduce")


def test_what_is_mounted_is_read_from_the_kernel():
    assert container.mounted(Path("/proc"))
    assert not container.mounted(Path(__file__).parent)
