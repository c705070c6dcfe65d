"""The page: what stands on it, that nothing from a file becomes markup, and, in Chromium, that it can be used.

Nothing here trains: runs are folders with two small JSON files. FFREPRO_SCREENSHOTS=FOLDER keeps what Chromium shows.
"""

import itertools
import json
import os
import re
import shutil
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import ffrepro
from ffrepro import claims, config, data, page, record, report, results, tables, targets
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.verdict import verdict

HERE = {  # accuracies of the rows' own seeds
    "cifar10": [83.1, 83.9, 83.4, 83.6, 83.2],
    "ablation-digits-threshold-layer-layerwise": [9.4, 10.2, 9.9],
    "ablation-digits-threshold-batch-overlapping": [90.1, 91.4, 89.2],
    "ablation-digits-symba-batch-layerwise": [93.1, 92.2, 93.9],
    "ablation-digits-symba-batch-overlapping": [95.8, 96.4, 95.3],
}
COMMITTED = {  # of their reference seeds
    "digits": [95.6, 94.7, 95.8, 94.7, 95.3],
    "ablation-digits-symba-layer-overlapping": [94.4, 93.1, 94.2],
    "ablation-digits-symba-batch-overlapping": [95.0, 96.1, 95.6],
    "ablation-digits-backprop": [97.2, 97.5, 96.9],
}
DRAWING = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="400pt" height="200pt" viewBox="0 0 400 200"
 xmlns="http://www.w3.org/2000/svg" version="1.1">
 <metadata><a xmlns="http://elsewhere">2026-01-01</a></metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style><path id="m1" d="M 0 0 L 0 5" style="stroke: #000"/>
 <clipPath id="p1"><rect x="0" y="0" width="400" height="200"/></clipPath></defs>
 <g id="figure_1" clip-path="url(#p1)"><path d="M 20 180 L 200 60 L 380 20" style="fill: none; stroke: #0b5a75"/>
 <use xlink:href="#m1" x="20" y="180"/><text x="30" y="30">accuracy &lt; 100 %</text></g>
</svg>
"""


class Figure(NamedTuple):
    """What ffrepro.figures gives."""

    name: str
    title: str
    words: str


FIGURES = [
    Figure("depth-ablation-digits", "The ablation", "SymBa lies above threshold."),
    Figure("loss-digits", "Losses of the digits", "They fall."),
]


def write_run(project, name, row, seed, accuracy):
    """A run as train and evaluate leave it, as far as the page reads it."""
    device = {"device": "cuda", "gpu": "A GPU"} if row.requires == "cuda" else {"device": "cpu", "threads": 2}
    facts = {
        "seed": seed,
        "ffrepro": "0.1.0",
        "code": "c0de" * 16,
        "parameters": record.text_hash(config.training_parameters(row)),
        "weights": record.text_hash(f"{name} {seed}"),
        "environment": {"python": "3.12.3", "torch": "2.11.0", **device, "kernels": "deterministic"},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 10.0 + seed,
    }
    metrics = {"accuracy": accuracy, "vote": row.evaluation.vote, "blocks": {"1": accuracy}}
    record.write_sealed(facts, project.run(name, seed) / "record.json")
    record.write_sealed(metrics | {"weights": facts["weights"]}, project.run(name, seed) / "metrics.json")


def fill(project):
    """Runs, references and verdicts by the functions of the stages."""
    rows = config.load(project.params).experiments
    results = Layout(project.root, "results")
    for place, known in ((results, COMMITTED), (project, HERE)):
        for name, values in known.items():
            row = rows[name]
            seeds = row.verdict.reference_seeds if place is results else row.seeds
            for seed, value in zip(seeds, values, strict=True):
                write_run(place, name, row, seed, value)
            if place is results:
                report.write_reference(name, row, results, "2 cores, no GPU")
                continue
            target = targets.target_of(targets.read_targets(project.paper, project.reference), name, row)
            summary = report.summarise(name, row, project, target)
            record.write_json(summary, project.summary(name))
            record.write_json(verdict(summary, row.verdict), project.verdict(name))
    for figure in FIGURES:
        record.write_text(DRAWING, project.page.parent / "figures" / f"{figure.name}.svg")


def small(root, folder):
    """A project of 13 rows of this one, two tables and the claims about the ablation on digits."""
    params, paper = config.read_yaml(root / "params.yaml"), config.read_yaml(root / "paper.yaml")
    kept = {"digits", "cifar10-quick", "cifar10"}
    rows = params["experiments"]
    params["experiments"] = {
        name: row for name, row in rows.items() if name in kept or name.startswith("ablation-digits")
    }
    paper["tables"] = {
        "headline": {"title": "The paper's number", "rows": {"trifecta-large": {"cifar10": "cifar10"}}},
        "ablation-digits": paper["tables"]["ablation-digits"],
    }
    for claim in paper["claims"].values():
        claim["tables"] = ["ablation-digits"]
    for content, name in ((params, "params.yaml"), (paper, "paper.yaml")):
        (folder / name).write_text(json.dumps(content))
    shutil.copy(root / "deviations.yaml", folder)
    return Layout(folder)


@pytest.fixture(scope="module")
def project(root, tmp_path_factory):
    made = small(root, tmp_path_factory.mktemp("page"))
    fill(made)
    return made


@pytest.fixture(scope="module")
def html(project):
    text = page.with_figures(project, FIGURES)
    record.write_text(text, project.page)
    return text


class Tags(HTMLParser):
    """The start tags of a page as (tag, attributes); every tag must be closed in turn."""

    EMPTY = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, *tags):
        return [attrs for tag, attrs in self.found if tag in tags]


# What stands on it


def test_the_verdict_comes_first_in_words_and_counts(html):
    start = html[html.index("<main") : html.index('id="tables"')]
    assert re.search(r'<code>cifar10</code>: <span class="word good">reproduced</span>', start)
    assert (
        "Measured: 83.44 ± 0.32 (n = 5), in runs/cifar10. Its target: 83.51 ± 0.78 published, in percent. The rule: "
        in start
    )
    counts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", start))
    assert counts == {"reproduced": "2", "not reproduced": "0", "inconclusive": "3", "not run": "5"}
    assert "Of 13 experiments. Beside these counts, 3 with a committed reference of other seeds, which no rule" in start
    assert "judges, and 0 with released runs of some seeds." in start
    for name in ("SymBa&#x27;s loss gives", "All three techniques together"):
        assert name in start


def test_without_any_run_everything_says_not_run(root, tmp_path):
    empty = small(root, tmp_path)
    text = page.with_figures(empty, [])
    assert (
        "Its target: 83.51 ± 0.78 published, in percent. <code>ffrepro reproduce cifar10</code> trains and judges it."
        in text
    )
    assert "<dt>not run</dt><dd>13</dd>" in text
    assert "Nothing has been run yet." in text
    assert "None is drawn yet." in text
    assert "<pre>" not in text


def test_released_runs_of_the_headline_are_told_of(root, tmp_path):
    made = small(root, tmp_path)
    place, row = Layout(made.root, "results"), config.load(made.params).experiments["cifar10"]
    verify, train = (
        "<code>ffrepro verify results/cifar10</code> checks",
        "<code>ffrepro reproduce cifar10</code> trains",
    )
    for seed, accuracy in enumerate((76.0, 78.0, 77.0)):
        write_run(place, "cifar10", row, seed, accuracy)
    text = page.with_figures(made, [])
    assert "<code>cifar10</code>: 3 of 5 seeds</p>" in text
    assert "<p>Released: 77.00 ± 1.00 (3 of 5 seeds), on A GPU. Its target: 83.51 ± 0.78 published, in" in text
    assert f"No verdict without all seeds. {verify} it, link by link. {train} and judges it.</p>" in text
    assert "Beside these counts, 0 with a committed reference of other seeds, which no rule judges, and 1 with" in text
    assert "<dt>not run</dt><dd>12</dd>" in text

    for seed in row.verdict.reference_seeds:
        write_run(place, "cifar10", row, seed, 80.0)
    report.write_reference("cifar10", row, place, "2 cores, no GPU")
    text = page.with_figures(made, [])
    assert '<code>cifar10</code>: <span class="word ref">reference</span></p>' in text
    assert "<p>Released: 77.00 ± 1.00 (3 of 5 seeds), on A GPU. Its target:" in text

    for seed, accuracy in ((3, 77.5), (4, 76.5)):
        write_run(place, "cifar10", row, seed, accuracy)
    text = page.with_figures(made, [])
    assert '<code>cifar10</code>: <span class="word bad">not reproduced</span></p>' in text
    assert "<p>Measured: 77.00 ± 0.79 (n = 5), in results/cifar10. Its target: 83.51 ± 0.78 published, in" in text
    assert "Here the interval is [-7.26, -5.76], p = " in text
    assert f"{verify} it, link by link. {train} and judges it.</p>" in text
    assert "<dt>not reproduced</dt><dd>1</dd>" in text


def test_every_row_of_every_table_is_there(project, html):
    printed = [row for table in tables.read(project) for row in table.rows]
    lines = printed + report.table(project) + [report.claim_cells(one) for one in claims.read(project)]
    assert len(printed) == 11
    assert len([1 for _, attrs in Tags(html).found if "data-row" in attrs]) == len(lines)
    shown = []
    for line in html.splitlines():
        found = re.findall("<t[hd].*?>(.*?)</t[hd]>", line)
        shown.append([unescape(re.sub("<.*?>", "", cell)) for cell in found])
    for one in lines:
        assert list(one.values()) in shown


def test_a_row_opens_its_runs_and_one_that_is_not_run_names_its_command(project, html):
    for row in (row for table in tables.read(project) for row in table.rows):
        name = row["experiment"]
        text = page.escape(tables.explain(project, name))
        command = f"<code>ffrepro reproduce {name}</code>"
        assert (f"<pre>{text}</pre>" in html) == bool(row["results"])
        assert bool(row["results"]) or command in html
    assert "seed 2: 93.90 %; runs/ablation-digits-symba-batch-layerwise/2/record.json: weights " in html


def test_environments_are_counted_once_each(html):
    start = html[html.index('id="table-environments"') : html.index('id="proof"')]
    assert re.findall(r'<th scope="row">(\d+)</th>', start) == ["23", "5"]  # 4 x 3 + 5 + 2 x 3 on the CPU, 5 on a GPU
    assert "A GPU" in start


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"environment": 5}',
        "{",
        record.sealed({"environment": {"device": "cpu", "python": "\ud800"}}),
        record.sealed({"environment": {"device": "cpu", "python": [1]}}),
    ],
)
def test_a_damaged_record_stops_no_page(project, tmp_path, content):
    shutil.copytree(project.root, tmp_path / "copy")
    project = Layout(tmp_path / "copy")
    name, shown = next((name, one) for name, one in results.known(project).items() if one.folder == "results")
    (Layout(project.root, "results").run(name, shown.seeds[0]) / "record.json").write_text(content)
    assert "1 run without a whole record here." in page._environment(project)


def test_a_departing_value_stands_once_with_its_rows(html):
    assert 'id="table-targets"' not in html  # none of these rows has another code's value
    start = html[html.index('id="table-fields"') : html.index('id="environment"')]
    assert start.count('<th scope="row">training.schedule</th>') == 1
    assert start.count('<th scope="row">training.epochs</th>') == 4  # 20, 18, 200 and 15
    assert "<summary>10 rows</summary>" in start


def test_headings_landmarks_and_ids(html):
    tags = Tags(html)
    assert len(tags.named("h1")) == 1
    levels = [int(tag[1]) for tag, _ in tags.found if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(tags.named(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert len(tags.named("caption")) == len(tags.named("table"))
    ids = [attrs["id"] for _, attrs in tags.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    inner = {attrs["href"][1:] for attrs in tags.named("a", "use") if attrs["href"].startswith("#")}
    inner |= {name for _, attrs in tags.found for name in attrs.get("aria-labelledby", "").split()}
    assert inner <= set(ids)
    assert all("scope" in attrs for attrs in tags.named("th"))


# Nothing from elsewhere, and nothing from a file that runs


def test_it_loads_nothing(html):
    tags = Tags(html)
    outside = [attrs["href"] for attrs in tags.named("a") if not attrs["href"].startswith("#")]
    assert outside == ["https://arxiv.org/abs/2311.18130"]
    for tag, attrs in tags.found:
        assert tag not in ("img", "iframe", "object", "embed", "base", "image", "form")
        assert "src" not in attrs
        assert tag == "a" or attrs.get("href", "#").startswith(("#", "data:,"))
        assert not [name for name in attrs if name.startswith("on")]
    assert not re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", html)
    (policy,) = (attrs["content"] for attrs in tags.named("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy


def test_the_same_files_give_the_same_bytes(project, html):
    assert page.with_figures(project, FIGURES) == html
    assert "2026-01-01" not in html  # of the drawing's metadata


HOSTILE = """<script>alert(1)</script></style></script>"'><img src=x onerror=alert(2)>&lt; --> $script {}"""


def test_hostile_titles_and_sources_are_text(root, tmp_path):
    made = small(root, tmp_path)
    params, paper = config.read_yaml(made.params), config.read_yaml(made.paper)
    differences = config.read_yaml(made.deviations)
    params["experiments"]["ablation-digits-backprop"]["title"] = HOSTILE
    paper["tables"]["headline"]["title"] = HOSTILE
    for claim in paper["claims"].values():
        claim["claim"] = HOSTILE
    paper["sources"] = dict.fromkeys(paper["sources"], HOSTILE)
    paper["targets"]["ablation-digits-backprop"] = {"mean": 97, "std": None, "source": "trifecta"}
    differences["always"]["device"]["why"] = HOSTILE
    differences["targets"] = {"ablation-digits-backprop": {"theirs": HOSTILE, "here": "x", "why": "y"}}
    for path, content in ((made.params, params), (made.paper, paper), (made.deviations, differences)):
        path.write_text(json.dumps(content))
    fill(made)
    figures = [Figure("loss-digits", HOSTILE, HOSTILE)]
    text = page.with_figures(made, figures)
    tags = Tags(text)
    assert len(tags.named("script")) == len(tags.named("style")) - 1 == 1  # the drawing has a style of its own
    assert tags.named("img") == []
    assert text.count(page.escape(HOSTILE)) >= 10
    assert page.escape(HOSTILE) in text[text.index('id="table-targets"') : text.index('id="environment"')]
    assert HOSTILE not in text
    (drawing,) = tags.named("svg")
    assert drawing["aria-label"] == HOSTILE


# Figures


def test_a_drawing_is_inlined_with_ids_of_its_own(project, html):
    tags = Tags(html)
    assert [attrs["aria-label"] for attrs in tags.named("svg")] == [figure.words for figure in FIGURES]
    assert {attrs["role"] for attrs in tags.named("svg")} == {"img"}
    assert {attrs["role"] for attrs in tags.named("figure")} == {"group"}
    assert [attrs["href"] for attrs in tags.named("use")] == ["#depth-ablation-digits-m1", "#loss-digits-m1"]
    assert 'clip-path="url(#loss-digits-p1)"' in html
    assert '<style type="text/css">#figure-loss-digits { *{stroke-linejoin: round} }</style>' in html
    assert "accuracy &lt; 100 %" in html
    groups = [attrs for attrs in tags.named("details") if attrs.get("class") == "group"]
    assert ["open" in attrs for attrs in groups] == [True, False]  # a table's, and a row's
    assert "<?xml" not in html
    assert html.count("<!DOCTYPE") == 1
    assert "elsewhere</" not in html


@pytest.mark.parametrize(
    ("old", "new", "given"),
    [
        ("<text", "<script>alert(1)</script><text", "<script>"),
        ("<text", "<foreignObject/><text", "<foreignObject>"),
        ("<text", "<a href='https://a.b'/><text", "<a>"),
        ("<text", "<text onclick='alert(1)'", "onclick='alert(1)'"),
        ("<text", "<text ONLOAD='alert(1)'", "ONLOAD='alert(1)'"),
        ('"#m1"', '"https://a.b/c.svg#m1"', "href='https://a.b/c.svg#m1'"),
        ('"#m1"', '"data:image/svg+xml,x"', "href='data:image/svg+xml,x'"),
        ("url(#p1)", "url(https://a.b)", "'url(https://a.b)'"),
        ("*{", "@import 'x';*{", "@import 'x';*{stroke-linejoin: round}"),
        ("*{", "@import url(#p1);*{", "'@import url(#p1);*{stroke-linejoin: round}'"),
        ("*{", "/*{*/} body {", "'/*{*/} body {stroke-linejoin: round}'"),
        ("*{", "} body {", "'} body {stroke-linejoin: round}'"),
        ("*{", r"*{background: u\72l(https://a.b);", r"'*{background: u\\72l(https://a.b);stroke-linejoin: round}'"),
        ("</svg>", "", "not SVG (no element found: line 11, column 0)"),
    ],
)
def test_a_drawing_that_runs_loads_or_links_is_refused(tmp_path, old, new, given):
    assert old in DRAWING
    path = tmp_path / "bad.svg"
    path.write_text(DRAWING.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        page.inlined(path, "bad", "words")
    assert str(caught.value).startswith("bad.svg: ")
    assert given in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_drawing_is_one_line(project):
    with pytest.raises(UserError, match=r"^gone\.svg: cannot be read: No such file or directory; run `ffrepro report`"):
        page.with_figures(project, [Figure("gone", "Gone", "gone")])


def test_write_draws_the_figures_and_writes_the_page(project, html, monkeypatch):
    drawn = []
    fake = SimpleNamespace(write=lambda given: drawn.append(given) or FIGURES)
    monkeypatch.setitem(sys.modules, "ffrepro.figures", fake)
    monkeypatch.setattr(ffrepro, "figures", fake, raising=False)
    project.page.unlink()
    assert page.write(project) == project.page == project.root / "report" / "index.html"
    assert project.page.read_text() == html
    assert drawn == [project]


def test_what_matplotlib_draws_can_be_inlined(root, tmp_path):
    made = small(root, tmp_path)
    fill(made)
    drawings = Tags(page.html(made)).named("svg")
    assert len(drawings) >= 2
    assert len(drawings) == len(list((tmp_path / "report" / "figures").glob("*.svg")))


# In a browser

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MISSING = "no Chromium: apt-get install chromium, or name the browser in FFREPRO_CHROMIUM"


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    named = [os.environ.get("FFREPRO_CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
    path = next((name for name in named if name), None)
    if path is None or not Path(path).exists():
        pytest.fail(MISSING, pytrace=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, project, html):
    """opened(size, ...): the page in a new window without network; what it asks for or complains of fails the test."""
    contexts, wrong = [], []

    def open_(size="desktop", path=project.page, **settings):
        width, height = SIZES[size]
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        context.set_offline(True)
        sheet = context.new_page()
        sheet.on("request", lambda request: request.url.startswith("file://") or wrong.append(request.url))
        sheet.on("console", lambda message: wrong.append(message.text))
        sheet.on("pageerror", lambda error: wrong.append(str(error)))
        sheet.goto(path.as_uri())
        return sheet

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def column(sheet, table, name):
    """The texts of a table's column, from top to bottom, of the rows that are shown."""
    return sheet.evaluate(
        """([table, name]) => {
          const rows = [...document.querySelectorAll(`#table-${table} [data-row]`)].filter((row) => !row.hidden);
          const heads = [...document.querySelectorAll(`#table-${table} thead th`)];
          const at = heads.findIndex((head) => head.textContent.trim() === name);
          return rows.map((row) => row.querySelectorAll("th, td")[at].textContent.trim());
        }""",
        [table, name],
    )


def head(sheet, table, name):
    return sheet.locator(f"#table-{table} thead th").filter(has=sheet.get_by_role("button", name=name, exact=True))


def overflow(sheet):
    return sheet.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.browser
def test_it_opens_without_network_and_without_complaint(opened):
    sheet = opened()
    assert sheet.title() == "Is The Trifecta reproduced? Results of ffrepro"
    assert sheet.get_by_role("heading", level=1).count() == 1
    assert sheet.get_by_role("main").is_visible()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["ours (%)", "seconds a seed", "paper (%)"])
def test_a_numeric_header_sorts_by_number_with_not_run_last(opened, name):
    sheet = opened()
    printed = column(sheet, "ablation-digits", name)
    one = head(sheet, "ablation-digits", name)
    orders = {}
    for order in ("ascending", "descending", "none"):
        one.get_by_role("button").click()
        assert one.get_attribute("aria-sort") == order
        assert sheet.locator("#table-ablation-digits th[aria-sort=none]").count() == 8 + (order == "none")
        orders[order] = column(sheet, "ablation-digits", name)
    numbers = [float(re.match(r"[\d.]+", text).group()) for text in printed if re.match(r"\d", text)]
    rest = [text for text in printed if not re.match(r"\d", text)]
    for order, texts in orders.items():
        if order != "none":
            found = [float(re.match(r"[\d.]+", text).group()) for text in texts[: len(numbers)]]
            assert found == sorted(numbers, reverse=order == "descending")
            assert texts[len(numbers) :] == rest
    assert orders["none"] == printed
    if name == "ours (%)":
        assert orders["ascending"][0] == "9.83 ± 0.40 (n = 3)"  # by text it would be the last
        assert rest == ["not run"] * 4


@pytest.mark.browser
def test_a_text_header_sorts_by_text_and_runs_stay_with_their_row(opened):
    sheet = opened()
    for table, name, size in (
        ("ablation-digits", "column", 10),
        ("experiments", "verdict", 13),
        ("claims", "claim", 5),
    ):
        head(sheet, table, name).get_by_role("button").press("Enter")
        texts = column(sheet, table, name)
        assert len(texts) == size
        assert texts == sorted(texts, key=lambda text: (text == "not run", text))
    for row in sheet.locator("#table-ablation-digits tbody").all():
        name = row.locator("tr").first.locator("td").last.inner_text()
        assert name in row.locator(".runs").text_content()


@pytest.mark.browser
def test_the_filter_counts_the_rows_of_all_tables(opened):
    sheet = opened()
    assert sheet.locator("#count").inner_text() == "29 of 29 rows"  # 1 + 10 cells, 13 rows, 5 claims
    sheet.get_by_label("Filter rows").fill("SymBa OVERLAPPING")
    assert (
        sheet.locator("#count").inner_text() == "9 of 29 rows"
    )  # 3 cells, 2 rows, and the 4 claims whose reasons name one
    assert column(sheet, "ablation-digits", "row") == ["symba-layer", "symba-batch", "symba-batch-deep"]
    assert len(column(sheet, "experiments", "experiment")) == 2
    assert column(sheet, "headline", "row") == []
    assert sheet.locator("#table-ablation-digits .shown").inner_text() == "3 of 10 rows"
    sheet.get_by_label("Filter rows").fill("nothing has these words")
    assert sheet.locator("#count").inner_text() == "0 of 29 rows"
    sheet.get_by_label("Filter rows").fill("")
    assert sheet.locator("[data-row]:visible").count() == 29


@pytest.mark.browser
@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_runs_open_by_keyboard(opened, key):
    sheet = opened()
    row = sheet.locator("#table-ablation-digits tbody").filter(has_text="runs/ablation-digits-symba-batch-layerwise/2")
    summary = row.locator("summary")
    runs = summary.locator("xpath=../pre")
    assert not runs.is_visible()
    summary.focus()
    sheet.keyboard.press(key)
    assert runs.is_visible()
    for seed in (0, 1, 2):
        assert f"seed {seed}: " in runs.inner_text()
    sheet.keyboard.press(key)
    assert not runs.is_visible()


@pytest.mark.browser
def test_the_first_tab_skips_to_the_results(opened):
    sheet = opened()
    sheet.keyboard.press("Tab")
    assert sheet.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert sheet.locator(".skip").bounding_box()["y"] >= 0
    sheet.keyboard.press("Enter")
    assert sheet.evaluate("document.activeElement.id") == "main"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(opened, size, scheme):
    from axe_playwright_python.sync_playwright import Axe

    sheet = opened(size, color_scheme=scheme, reduced_motion="reduce")
    sheet.locator("summary").first.click()
    head(sheet, "ablation-digits", "ours (%)").get_by_role("button").click()
    found = Axe().run(sheet)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.browser
@pytest.mark.parametrize("size", SIZES)
def test_the_page_itself_never_scrolls_sideways(opened, size):
    sheet = opened(size)
    assert overflow(sheet) <= 0
    sheet.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    assert overflow(sheet) <= 0
    for runs in sheet.locator(".runs pre").all():  # they fit beside the table's own scrolling
        assert runs.bounding_box()["width"] <= SIZES[size][0]


@pytest.mark.browser
def test_without_javascript_every_row_is_there_and_runs_open(opened):
    sheet = opened(java_script_enabled=False)
    assert sheet.locator("[data-row]:visible").count() == 29
    assert sheet.locator("table:visible").count() == 8
    assert sheet.get_by_role("searchbox").count() == sheet.get_by_role("button").count() == 0
    row = sheet.locator("#table-ablation-digits tbody").filter(has_text="results/ablation-digits-backprop/3")
    row.locator("summary").click()
    assert sheet.get_by_text("seed 3: 97.20 %").is_visible()


@pytest.mark.browser
def test_paper_has_everything_unfolded_and_no_controls(opened):
    sheet = opened()
    for text in ("seed 3: 97.20 %", "seed 2: 93.90 %"):
        assert not sheet.get_by_text(text).is_visible()
    sheet.emulate_media(media="print")
    for text in ("seed 3: 97.20 %", "seed 2: 93.90 %"):
        assert sheet.get_by_text(text).is_visible()
        assert sheet.get_by_text(text).bounding_box()["height"] > 50
    for control in (".tools", "nav", ".skip"):
        assert not sheet.locator(control).is_visible()
    assert overflow(sheet) <= 0


@pytest.fixture(scope="module")
def of_committed_results(root, tmp_path_factory):
    """The page of what the repository holds; figures of images only where they are the embedded digits."""
    made = Layout(tmp_path_factory.mktemp("committed"))
    for name in ("params.yaml", "paper.yaml", "deviations.yaml", "dvc.yaml"):
        shutil.copy(root / name, made.root)
    shutil.copytree(root / "results", made.root / "results")
    data.save(*data.read("digits", made.downloads), made.data("digits"))
    return page.write(made)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_it(opened, of_committed_results, tmp_path, size, scheme):
    folder = Path(os.environ.get("FFREPRO_SCREENSHOTS") or tmp_path)
    picture = folder / f"{size}-{scheme}.png"
    sheet = opened(size, of_committed_results, color_scheme=scheme, reduced_motion="reduce")
    assert overflow(sheet) <= 0
    sheet.screenshot(path=picture)
    assert picture.stat().st_size > 10_000
    sheet.screenshot(path=tmp_path / "whole.png", full_page=True)
