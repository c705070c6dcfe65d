"""The paper's tables: the same digits in every format, numbers for LaTeX, and the way back from a cell."""

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess

import pytest
from test_report import write_run

from ffrepro import config, record, results, tables, targets, verdict
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.tables import COLUMNS, FORMATS, Printed
from ffrepro.targets import spread

PAPER = """
sources: {someone: "Someone, Table 1"}
targets:
  digits: {mean: 95, std: null, decimals: 0, source: someone}
tables:
  small:
    title: 100 % of $1_000 & more
    rows:
      upper: {left: digits, right: other}
      lower: {left: third}
claims: {}
"""


@pytest.fixture
def small(root, tmp_path):
    """Three rows: `digits` ran here, `other` has a committed reference, `third` has neither."""
    text = (root / "params.yaml").read_text()
    digits = text[text.index("  digits:") : text.index("  cifar10-quick:")]
    digits = digits.replace("reference_seeds: [3, 4, 5, 6, 7]", "reference_seeds: [3, 4]")
    rest = text[: text.index("  digits:")] + digits
    for name in ("other", "third"):
        rest += digits.replace("  digits:", f"  {name}:")
    (tmp_path / "params.yaml").write_text(rest)
    (tmp_path / "paper.yaml").write_text(PAPER)
    project = Layout(tmp_path)
    row = config.load(project.params).experiments["digits"]
    summary = {"row": record.text_hash(config.canonical(row)), "seeds": [0, 1, 2], "seconds": 30.0, "device": "cpu"}
    record.write_json({**summary, "accuracy": spread([95.0, 96.0, 97.0])}, project.summary("digits"))
    for seed in (0, 1, 2):
        write_run(project, row, seed, 95.0 + seed, "digits")
    target = targets.read_paper(project.paper)["digits"].model_dump()
    summary |= {"accuracy": spread([95.0, 96.0, 97.0]), "target": target, "test_images": 360}
    judged = verdict.verdict(summary, row.verdict) | {"verdict": "inconclusive"}  # edited: not what is shown
    record.write_json(judged, project.verdict("digits"))
    its = spread([80.0, 82.0])
    reference = {"seeds": [3, 4], "values": its["values"], "mean": its["mean"], "std": its["std"], "seconds": 4.2}
    reference |= {"row": targets.measured(row), "command": "c", "machine": "2 cores", "ffrepro": "0"}
    record.write_json({"other": reference}, project.reference)
    return project


def test_the_cells_by_hand(small):
    (table,) = tables.read(small)
    left, right, none = table.rows
    assert tuple(left) == COLUMNS
    assert list(left.values()) == [
        "upper",
        "left",
        "95",
        "96.00 ± 1.00 (n = 3)",
        "+1.00",
        "reproduced",
        "10",
        "here",
        "digits",
    ]
    assert list(right.values())[2:] == [
        "not obtained",
        "81.00 ± 1.41 (n = 2)",
        "",
        "reference",
        "4",
        "committed",
        "other",
    ]
    assert list(none.values())[2:] == ["not obtained", "not run", "", "not run", "", "", "third"]


def test_a_verdict_of_other_parameters_does_not_count(small):
    record.write_json({"row": "another", "verdict": "reproduced"}, small.verdict("digits"))
    assert tables.read(small)[0].rows[0]["verdict"] == "not run"


def test_a_verdict_against_another_target_does_not_count(small):
    assert tables.read(small)[0].rows[0]["verdict"] == "reproduced"
    small.paper.write_text(PAPER.replace("mean: 95", "mean: 94"))
    line = tables.read(small)[0].rows[0]
    assert (line["difference"], line["verdict"]) == ("+2.00", "not run")


class Cells(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_every_format_shows_the_same_cells(small):
    (table,) = tables.write(small)
    wanted = [list(row.values()) for row in table.rows]
    text = {ending: small.paper_table(f"small.{ending}").read_text() for ending in FORMATS}
    header, *lines = csv.reader(io.StringIO(text["csv"]))
    assert (header, lines) == (list(COLUMNS), wanted)
    assert [list(row.values()) for row in json.loads(text["json"])["rows"]] == wanted
    marks = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text["md"].splitlines()[2:]]
    assert [marks[0], *marks[2:]] == [list(COLUMNS), *wanted]
    parsed = Cells()
    parsed.feed(text["html"])
    assert parsed.rows == [list(COLUMNS), *wanted]
    tex = [line.removesuffix(r" \\") for line in text["tex"].splitlines() if line.endswith(r" \\")]
    plain = [re.sub(r"\\([&%$#_{}])", r"\1", line.replace(r"$\pm$", "±")).split(" & ") for line in tex]
    assert plain == [list(COLUMNS[:-2]), *(row[:-2] for row in wanted)]


HOSTILE = "<script>alert('&')</script> \\input{/etc/passwd} 5 % $x_1^2$ ~#{}"


def test_hostile_text_is_escaped():
    row = dict.fromkeys(COLUMNS, HOSTILE)
    table = Printed("small", HOSTILE, [row])
    page = table.as_("html")
    assert "<script" not in page
    parsed = Cells()
    parsed.feed(page)
    assert parsed.rows[1] == [HOSTILE] * len(COLUMNS)
    assert r"\input" not in table.as_("tex")


def test_numbers_name_every_value_of_every_cell(small):
    text = tables.numbers(small)
    values = dict(re.findall(r"\\csname ff@(\S+?)\\endcsname\{(.*)\}", text))
    assert values == {
        "small.upper.left.mean": "96.00",
        "small.upper.left.std": "1.00",
        "small.upper.left.n": "3",
        "small.upper.left.paper": "95",
        "small.upper.left.difference": "+1.00",
        "small.upper.right.mean": "81.00",
        "small.upper.right.std": "1.41",
        "small.upper.right.n": "2",
    }


def test_explain_lists_seeds_and_records(small):
    facts = {"weights": "w" * 64, "code": "c" * 64, "started": "2026-01-01T00:00:00+00:00"}
    own = {("record.json", key): value for key, value in facts.items()} | {("metrics.json", "weights"): "w" * 64}
    write_run(small, config.load(small.params).experiments["digits"], 0, 95.0, "digits", changed=own)
    lines = tables.explain(small, "small.upper.left").splitlines()
    assert lines[0].startswith("small.upper.left: experiment digits, ")
    assert lines[2] == "ours: 96.00 ± 1.00 (n = 3), runs/digits, 10 s of training a seed, cpu"
    assert (
        lines[3]
        == f"seed 0: 95.00 %; runs/digits/0/record.json: weights {'w' * 12}, code {'c' * 12}, 2026-01-01T00:00:00+00:00"
    )
    own = "weights weights 1, code c0dec0dec0de, 2026-01-02T03:04:05+00:00"
    assert lines[4] == f"seed 1: 96.00 %; runs/digits/1/record.json: {own}"
    assert lines[5].startswith("seed 2: 97.00 %; runs/digits/2/record.json: weights weights 2, ")
    assert lines[6] == "commit: runs are not committed"
    assert "training.epochs 20, " in lines[7]
    assert "augmentation.flip false" in lines[7]
    committed = tables.explain(small, "other")
    assert "\nours: 81.00 ± 1.41 (n = 2), results/other, 4 s of training a seed, 2 cores\n" in committed
    assert "\nseed 4: 82.00 %; results/other/4/record.json: not there\n" in committed
    assert "\ncommit: not committed\n" in committed
    assert tables.explain(small, "small.lower.left").endswith("\nnot run: ffrepro reproduce third")


def test_explain_quotes_no_record_that_was_edited(small):
    path = small.root / "results" / "other" / "3" / "record.json"
    record.write_sealed({"weights": "w", "code": "c", "started": "2026-01-01T00:00:00+00:00"}, path)
    path.write_text(path.read_text().replace("2026", "1999"))
    with pytest.raises(UserError, match=r"record\.json: broken link: not what its seal was made of"):
        tables.explain(small, "other")


def test_the_commit_is_that_of_the_results(small):
    def git(*arguments):
        subprocess.run(["git", "-C", str(small.root), *arguments], check=True, capture_output=True)

    record.write_sealed(
        {"weights": "w", "code": "c", "started": "s"}, small.root / "results" / "other" / "3" / "record.json"
    )
    git("init", "-q")
    git("add", "results")
    git("-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-q", "-m", "x")
    assert re.search(r"^commit: [0-9a-f]{7,} of \d{4}-\d\d-\d\d$", _explained(small), re.MULTILINE)
    (small.root / "results" / "other" / "3" / "metrics.json").write_text("{}")
    assert re.search(r"^commit: [0-9a-f]{7,} of .*-\d\d, changed since$", _explained(small), re.MULTILINE)


def _explained(project):
    text = tables.explain(project, "other")
    return "\n".join(line for line in text.splitlines() if line.startswith("commit"))


@pytest.mark.parametrize("address", ["small", "small.upper", "small.upper.middle", "large.upper.left", ""])
def test_an_address_of_nothing_is_one_line_with_what_there_is(small, address):
    with pytest.raises(UserError) as caught:
        tables.explain(small, address)
    assert str(caught.value).startswith(f"explain: given {address!r}; allowed: ")
    assert "\n" not in str(caught.value)
    assert "small" in str(caught.value).split("allowed: ")[1]


def test_a_cell_of_no_row_is_refused(small):
    small.paper.write_text(PAPER.replace("left: third", "left: thrid"))
    with pytest.raises(UserError, match=r"^paper\.yaml: tables\.small: no row 'thrid'; did you mean third\?"):
        tables.read(small)


def test_the_papers_tables_hold_every_row_but_those_that_stand_alone(root, params):
    cells = {row for table in targets.read_tables(root / "paper.yaml").values() for row in table.cells.values()}
    assert cells <= set(params.experiments)
    assert set(params.experiments) - cells == {"digits", "cifar10-quick", "hinton-narrow"}


def test_results_of_other_parameters_are_none(small):
    assert {name: one.source for name, one in results.known(small).items()} == {"digits": "here", "other": "committed"}
    small.params.write_text(small.params.read_text().replace("lr: 0.002", "lr: 0.003"))
    assert results.known(small) == {}


@pytest.mark.parametrize("file", ["metrics.json", "record.json"])
def test_a_summary_whose_runs_were_removed_is_none(small, file):
    (small.run("digits", 1) / file).unlink()
    assert "digits" not in results.known(small)
    assert tables.explain(small, "digits").endswith("\nnot run: ffrepro reproduce digits")


@pytest.mark.latex
def test_tables_and_numbers_compile(small, tmp_path):
    """The real pdflatex, on tables with every sign that needs care; a number that is not there stops it."""
    assert shutil.which("pdflatex"), "no pdflatex: apt-get install texlive-latex-recommended"
    tables.write(small)
    row = dict.fromkeys(COLUMNS, HOSTILE)
    small.paper_table("hostile.tex").write_text(Printed("hostile", HOSTILE, [row]).as_("tex"))

    def compiled(number):
        document = r"\documentclass{article}\usepackage{booktabs}\input{numbers}\begin{document}"
        document += rf"\input{{small}}\input{{hostile}}\ff{{small.upper.left.{number}}}\end{{document}}"
        small.paper_table("all.tex").write_text(document)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        return subprocess.run(command, cwd=small.paper_table(""), capture_output=True, text=True, check=False)

    done = compiled("mean")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout.split("small.tex")[1].split("hostile.tex")[0]
    assert small.paper_table("all.pdf").read_bytes().startswith(b"%PDF")
    done = compiled("median")
    assert done.returncode != 0
    assert "ffrepro: no number small.upper.left.median, or not run" in done.stdout
