"""README and docs say what the repository holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])]


def test_the_result_table_is_what_ffrepro_list_prints(root):
    printed = subprocess.run(
        [sys.executable, "-m", "ffrepro", "list"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    between = (root / "README.md").read_text().split("-->\n")[1].split("\n<!--")[0]
    assert between == printed.strip()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(root, document):
    text = (root / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((root / document).parent / target).exists(), f"{document}: {target}"


def test_architecture_names_every_module(root):
    text = (root / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`ffrepro/(\w+)\.py`", text))
    modules = {path.stem for path in (root / "ffrepro").glob("*.py")} - {"__init__", "__main__", "errors"}
    assert named == modules


def test_every_nox_session_in_the_readme_exists(root):
    noxfile = (root / "noxfile.py").read_text()
    for session in set(re.findall(r"nox -s (\w+)", (root / "README.md").read_text())):
        assert f"def {session}(session" in noxfile


def test_every_command_in_the_readme_exists(root):
    text = (root / "README.md").read_text()
    for command in set(re.findall(r"ffrepro ([a-z]+)(?: |$|`)", text)):
        done = subprocess.run(
            [sys.executable, "-m", "ffrepro", command, "--help"], capture_output=True, cwd=root, check=False
        )
        assert done.returncode == 0, command


def test_cifar10_quick_states_the_measured_reference(root):
    from ffrepro import report
    from ffrepro.targets import read_references

    reference = read_references(root / "results" / "reference.json")["cifar10-quick"]
    measured = report.percent({**reference.model_dump(), "n": len(reference.values)})
    text = (root / "docs" / "cifar10-quick.md").read_text()
    assert f"**{measured} %**" in text
    assert f"{reference.seconds / 60:.1f} minutes of training a seed" in text


def test_the_readme_states_the_power_of_the_headline(root, params):
    from ffrepro.targets import read_paper
    from ffrepro.verdict import planning

    row, target = params.experiments["cifar10"], read_paper(root / "paper.yaml")["cifar10"]
    plan = planning({"n": len(row.seeds), "std": None}, target.model_dump(), row.verdict)
    words = {3: "three", 5: "five"}
    text = " ".join((root / "README.md").read_text().split())
    assert (
        f"{words[len(row.seeds)]} seeds of `cifar10` have a chance of {100 * plan['probability']:.0f} % to be called "
        '"reproduced" if there is no difference'
    ) in text
    assert len(row.seeds) >= plan["seeds_for_80_percent"]


def test_ablation_states_the_measured_references(root):
    from ffrepro import report
    from ffrepro.targets import read_references, read_tables

    references = read_references(root / "results" / "reference.json")
    text = (root / "docs" / "ablation.md").read_text()
    for cell, name in read_tables(root / "paper.yaml")["ablation-digits"].cells.items():
        measured = report.percent({**references[name].model_dump(), "n": None})
        assert f"| {measured} |" in text, cell
