"""README and docs say what the repository holds, and their commands do what they say."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffrepro.targets import read_targets, spread, target_of
from ffrepro.verdict import power, verdict

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
    modules = {path.stem for path in (root / "ffrepro").glob("*.py")} - {"__init__", "__main__"}
    assert named == modules


def test_every_nox_session_in_the_readme_exists(root):
    noxfile = (root / "noxfile.py").read_text()
    for session in set(re.findall(r"nox -s (\w+)", (root / "README.md").read_text())):
        assert f"def {session}(session" in noxfile


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
        '"reproduced" if their true mean is the printed one'
    ) in text
    assert len(row.seeds) >= plan["seeds_for_80_percent"]


@pytest.mark.parametrize("table", ["ablation-digits", "ablation-fashion"])
def test_ablation_states_the_measured_references(root, table):
    from ffrepro import report
    from ffrepro.targets import read_references, read_tables

    references = read_references(root / "results" / "reference.json")
    text = (root / "docs" / "ablation.md").read_text()
    for cell, name in read_tables(root / "paper.yaml")[table].cells.items():
        if name in references:
            measured = report.percent({**references[name].model_dump(), "n": None})
            assert f"| {measured} |" in text, cell


def test_parameters_is_what_the_models_say(root):
    from ffrepro import handbook

    assert (root / "docs" / "parameters.md").read_text() == handbook.markdown(root / "params.yaml")


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """(what a comment asks for, the indented lines below it) of each part of a page that a test carries out."""
    for asked, content in re.findall(r"<!-- (\w+(?:: .+?)?) -->\n(.*?)<!-- end", document.read_text(), re.DOTALL):
        yield asked, "".join(line.removeprefix("    ") for line in content.splitlines(keepends=True))


def edit(project, asked: str, content: str) -> None:
    """Write a part of a page into the file that its comment names, where it says."""
    what, file, place = re.fullmatch(r"(\w+): (\S+) ?(.*)", asked).groups()
    path = project.root / file
    text = path.read_text()
    if what == "append":
        text = text.rstrip("\n") + "\n\n" + content
    elif what == "insert":
        start = place.removeprefix("before: ")
        assert text.count("\n" + start) == 1, place
        text = text.replace("\n" + start, "\n" + content + "\n" * 2 * content.startswith("def ") + start)
    else:
        start = place.removeprefix("starting: ")
        (line,) = (line for line in text.splitlines() if line.startswith(start))
        text = text.replace(line, content.rstrip("\n"))
    path.write_text(text)


def test_adding_an_experiment_and_a_data_set_as_the_page_says(project, root):
    (project.root / "docs").mkdir()
    project.keep("digits", "cifar10-quick", "cifar10", "mnist", "fashion-mnist", "svhn")
    project.edit("params.yaml", "reference_seeds: [3, 4, 5, 6, 7]", "reference_seeds: [3, 4]")  # a training each
    codes = []
    for asked, content in blocks(root / "docs" / "adding.md"):
        if asked != "run":
            edit(project, asked, content)
            continue
        for line in content.splitlines():
            done = project.shell(line)
            codes.append((line, done.returncode))
            assert "Traceback" not in done.stderr
    assert codes == [
        ("ffrepro params check", 2),
        ("ffrepro params graph", 0),
        ("ffrepro reproduce digits-small", 4),
        ('ffrepro reference digits-small --machine "a laptop"', 0),
        ("ffrepro reproduce digits-small", 4),
        ("ffrepro explain digits-small", 0),
        ("ffrepro params graph", 0),
        ("ffrepro reproduce digits-in-negative", 4),
        ("ffrepro params schema > params.schema.json", 0),
        ("ffrepro params handbook > docs/parameters.md", 0),
    ]
    assert "inverted-digits" in (project.root / "docs" / "parameters.md").read_text()


def test_the_power_of_the_seeds_is_what_params_says(root, params):
    rule, said = params.experiments["cifar10"].verdict, (root / "params.yaml").read_text()
    powers = [power(n, None, 0.78, rule) for n in (5, 4, 3)]  # 0.78: the published spread
    five, four, three = (f"{100 * p:.0f} %" for p in powers)
    assert f'"reproduced" if it is: {five}; of 4 seeds {four}, of 3 seeds {three}' in said
    for name, spread_of_a_seed, words in (
        ("mnist", 0.06, "margin: 0.2 # power: {:.0f} %; "),
        ("fashion-mnist", 0.49, "# power by the default margin: {:.0f} %\n"),
        ("hinton", 0.1, "margin: 0.3 # no spread is published; with one of 0.1 points the rule's power is {:.0f} %\n"),
    ):
        row = params.experiments[name]
        assert words.format(100 * power(len(row.seeds), None, spread_of_a_seed, row.verdict)) in said


def test_a_single_run_of_cifar10_quick_is_inconclusive_where_its_page_says(root, params):
    row, page = params.experiments["cifar10-quick"], (root / "docs" / "cifar10-quick.md").read_text()
    target = target_of(read_targets(root / "paper.yaml", root / "results" / "reference.json"), "cifar10-quick", row)
    assert target is not None

    def word(percent):
        found = {"accuracy": spread([percent]), "target": target.model_dump(), "test_images": 10_000}
        return verdict(found, row.verdict)["verdict"]

    low, high = map(float, re.search(r"wherever it ends from (\S+) to (\S+) %", page).groups())
    assert [word(low), word((low + high) / 2), word(high)] == ["inconclusive"] * 3
    assert [word(low - 0.01), word(high + 0.01)] == ["not reproduced"] * 2


def test_a_job_a_seed_as_elsewhere_says(project, root):
    project.shrink("8 16P", seeds=[0, 1, 2])
    (content,) = (content for asked, content in blocks(root / "docs" / "elsewhere.md") if asked.startswith("slurm"))
    once, jobs, after = ("\n".join(part.splitlines()) for part in content.split("\n\n"))
    for script in (
        once,
        *(f"SLURM_ARRAY_TASK_ID={seed}; ROW=digits\n{jobs}" for seed in (0, 1, 2)),
        f"ROW=digits\n{after}",
    ):
        done = project.shell(script)
        assert done.returncode == 0, done.stderr
    assert json.loads((project.root / "report" / "verdicts" / "digits.json").read_text())["accuracy"]["n"] == 3


def test_the_licence_of_every_locked_package_is_listed(root):
    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    locked = re.findall(r"^([\w.-]+)==", (root / "requirements" / "run.txt").read_text(), re.MULTILINE)
    listed = re.findall(r"^\| ([\w.-]+) ", (root / "docs" / "licences.md").read_text(), re.MULTILINE)
    missing = {plain(name) for name in locked} - {plain(name) for name in listed}
    assert missing <= {"appnope", "colorama", "pywin32", "tzdata"}  # of other systems: not installed on Linux
