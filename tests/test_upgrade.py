"""A project folder that an earlier state of this package left behind, opened by this one.

tests/fixtures/project-VERSION-COMMIT.tar.gz holds what that commit's code made of a tiny digits row with two seeds: 1
trained and evaluated, 0 stopped after an epoch. It is data, made once: no command makes it anew.
"""

import tarfile
from pathlib import Path

import pytest

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("project-*.tar.gz"))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_a_folder_of_before_is_gone_on_with_or_told_of(project, fixture):
    with tarfile.open(fixture) as tar:
        tar.extractall(project.root, filter="data")
    checked = project.run("ffrepro", "verify", "runs/digits/1")  # before anything is made anew
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = project.run("ffrepro", "reproduce", "digits")
    assert done.returncode in (0, 3, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert "digits-0.pt: not a whole checkpoint (without seal): not resumed, training starts anew" in done.stderr
    checked = project.call("ffrepro", "verify", "runs/digits")
    assert checked.returncode == done.returncode, checked.stdout + checked.stderr
    assert project.call("ffrepro", "export", "runs/digits", "--to", "crate").returncode == 0
