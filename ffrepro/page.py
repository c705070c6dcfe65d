"""The whole report as one HTML page that loads nothing: the verdict first, then the tables, whose rows open their runs.

The text around is page.html, a string.Template; sorting and filtering is page.js, and without it every row is there.
Everything that comes from a file passes `escape`. The same files give the same bytes: the page has no date.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pydantic import TypeAdapter, ValidationError

from ffrepro import __version__, claims, config, deviations, lock, record, report, results, tables, targets, verdict
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.report import NOT_RUN, REFERENCE, percent

if TYPE_CHECKING:
    from ffrepro.figures import Figure

HEADLINE = "cifar10"
"""The row of the paper's own number."""

KINDS = {
    verdict.REPRODUCED: "good",
    verdict.NOT_REPRODUCED: "bad",
    verdict.INCONCLUSIVE: "open",
    claims.SUPPORTED: "good",
    claims.CONTRADICTED: "bad",
    NOT_RUN: "none",
    REFERENCE: "ref",
}
"""How a verdict's word is drawn."""

NUMERIC = {"paper (%)", "ours (%)", "difference", "seconds a seed", "blocks", "accuracy (%)", "target (%)", "p"}
"""Columns that are set to the right and sorted by their first number."""

LADDER = {
    "row": "parameters, seeds and rule are those of params.yaml",
    "record, chain": "the seals, and each epoch’s link from the one before: nothing was changed, all belongs together",
    "code, data": "hashes of the modules that train and of the prepared data: this version, these images and labels",
    "initial weights": "made again from the seed: the training began where it says",
    "precision, goodness": "the test set under every label through the weights: the goodness is that of the weights",
    "metrics": "accuracy of every block and vote from goodness and labels: the numbers on this page",
    "self-repeat": "four steps of the row, twice: whether the machine at hand repeats itself",
    "bitwise": "every link against a committed record of the same seed, row, data and code: the same bits",
    "statistics, claims": "mean and spread of all declared seeds by the row’s rule, and the paper’s claims about it",
}
"""What `ffrepro verify` checks; docs/proof.md says it in full."""

COMMANDS = {
    f"ffrepro reproduce {HEADLINE}": "train and judge one row; the name of a table runs all its rows",
    "dvc repro": "every row and seed; --keep-going runs what this machine can",
    "ffrepro explain ablation.symba-batch.overlapping": "from a cell of a table back to its runs and their records",
    "ffrepro verify results/digits": "compute anew, from weights, what a run’s files say",
    "ffrepro report": "write this page and the tables again",
}


def write(project: Layout) -> Path:
    """Write report/index.html and the figures that it holds; returns its path."""
    with lock.alone(project.lock("report"), "writing the page"):
        record.write_text(html(project), project.page)
    return project.page


def html(project: Layout) -> str:
    """The page. Draws the figures anew, since they are part of it."""
    from ffrepro import figures

    return with_figures(project, figures.write(project))


def with_figures(project: Layout, figures: "Sequence[Figure]") -> str:
    """The page with these figures, whose files lie in report/figures."""
    rows, outcomes = report.table(project), claims.read(project)
    here = Path(__file__)
    script = here.with_suffix(".js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(here.with_suffix(".html").read_text(encoding="utf-8")).substitute(
        script=script,
        script_hash=f"sha256-{digest}",
        version=escape(__version__),
        headline=_headline(project, rows),
        counts=_counts(rows),
        counted=_counted(rows),
        outcomes=_outcomes(outcomes),
        tables=_paper_tables(project),
        experiments=_grid("experiments", "All rows", report.COLUMNS, rows, prefix="row-"),
        claims=_grid(
            "claims",
            "Claim by claim, table by table",
            report.CLAIM_COLUMNS,
            [report.claim_cells(one) for one in outcomes],
        ),
        figures=_figures(project, figures),
        deviations=_deviations(project),
        environment=_environment(project),
        ladder=_plain("ladder", "What ffrepro verify checks", ("rung", "what is computed anew"), LADDER.items()),
        commands="\n".join(
            f"<div><dt><code>{escape(command)}</code></dt><dd>{escape(what)}</dd></div>"
            for command, what in COMMANDS.items()
        ),
    )


# The verdict


def _headline(project: Layout, rows: list[dict[str, str]]) -> str:
    """The row of the paper's number in a sentence, by its verdict if that is of these parameters and this target."""
    line = next((row for row in rows if row["experiment"] == HEADLINE), None)
    if line is None:
        return f'<p class="lead">There is no row {HEADLINE} here.</p>'
    row = config.load(project.params).experiments[HEADLINE]
    target = targets.target_of(targets.read_targets(project.paper, project.reference), HEADLINE, row)
    ours, own = results.known(project).get(HEADLINE), results.released(project, HEADLINE, row)
    result = results.verdict_on(project, HEADLINE, row, ours, target)
    text = [f"Its target: {line['target (%)']}, in percent." if target else "It has no target."]
    if ours and result:
        why = report.with_p(f"The rule: {result['rule']}. Here {result['why']}", result["p"]) + "."
        text = [f"Measured: {percent(ours.accuracy)}, in {ours.folder}/{HEADLINE}.", *text, why]
    elif own:
        text = [f"Released: {report.measured_accuracy(own)}, on {own.device}.", *text]
        text += ["No verdict without all seeds."] if own.gap else []
    commands = []
    if not (ours and result and ours.source == results.HERE):
        commands += [f"<code>ffrepro verify results/{HEADLINE}</code> checks it, link by link."] if own else []
        commands += [f"<code>ffrepro reproduce {HEADLINE}</code> trains and judges it."]
    start = f'<p class="lead">The paper’s number, <code>{HEADLINE}</code>: {_word(line["verdict"])}</p>'
    return f"{start}\n<p>{' '.join([escape(' '.join(text)), *commands])}</p>"


def _counts(rows: list[dict[str, str]]) -> str:
    """How many rows have which verdict, all four named."""
    found = Counter(row["verdict"] for row in rows)
    words = (*verdict.EXIT_CODES, NOT_RUN)
    return "\n".join(f'<div class="{KINDS[word]}"><dt>{word}</dt><dd>{found[word]}</dd></div>' for word in words)


def _counted(rows: list[dict[str, str]]) -> str:
    """Of how many rows, and what the four counts leave out."""
    sources = Counter(row["results"] for row in rows if row["verdict"] not in verdict.EXIT_CODES)
    references, some = sources[results.COMMITTED], sources[results.RELEASED]
    return (
        f"Of {_many(len(rows), 'experiment')}. Beside these counts, {references} with a committed reference of other "
        f"seeds, which no rule judges, and {some} with released runs of some seeds."
    )


def _outcomes(outcomes: list[dict[str, Any]]) -> str:
    """Each claim once, with its outcomes and the tables that have them."""
    by_claim: dict[str, dict[str, list[str]]] = {}
    words = {}
    for outcome in outcomes:
        name = outcome["id"].partition(".")[0]
        words[name] = outcome["claim"]
        by_claim.setdefault(name, {}).setdefault(outcome["verdict"], []).append(outcome["table"])
    lines = []
    for name, found in by_claim.items():
        where = (f'{_word(word)} <span class="where">in {escape(", ".join(of))}</span>' for word, of in found.items())
        lines.append(f"<li><span>{escape(words[name])}</span> <span>{'; '.join(where)}</span></li>")
    return "\n".join(lines)


def _word(text: str) -> str:
    """A verdict's word, with its mark; another text as it is."""
    return f'<span class="word {KINDS[text]}">{escape(text)}</span>' if text in KINDS else escape(text)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# Tables


def _table(name: str, title: str, columns: Iterable[str], body: str, kind: str = "") -> str:
    """A table in a region of its own, which scrolls sideways where the window is narrow, also by keyboard."""
    heads = "".join(f'<th scope="col"{_numeric(column)}>{escape(column)}</th>' for column in columns)
    return (
        f'<div class="wide" role="region" aria-labelledby="caption-{name}" tabindex="0">\n'
        f'<table id="table-{name}"{kind}>\n<caption><span><span id="caption-{name}">{escape(title)}</span>'
        f'<span class="shown"></span></span></caption>\n<thead><tr>{heads}</tr></thead>\n{body}\n</table>\n</div>'
    )


def _numeric(column: str) -> str:
    return ' class="n"' if column in NUMERIC else ""


def _cells(line: Mapping[str, str]) -> str:
    """A row's cells; the first is its head, and a cell of the column `experiment` leads to that row below."""
    cells = []
    for place, (column, text) in enumerate(line.items()):
        if place == 0:
            cells.append(f'<th scope="row">{escape(text)}</th>')
        elif column == "experiment":
            cells.append(f'<td class="name"><a href="#row-{escape(text)}">{escape(text)}</a></td>')
        else:
            shown = _word(text) if column == "verdict" else escape(text)
            cells.append(f"<td{_numeric(column)}>{shown}</td>")
    return "".join(cells)


def _grid(name: str, title: str, columns: Iterable[str], rows: list[dict[str, str]], prefix: str = "") -> str:
    """A table that can be sorted, a line for each row; with a prefix, links lead to PREFIX and the row's first cell."""
    lines = []
    for row in rows:
        first = next(iter(row.values()))
        anchor = f' id="{escape(prefix + first)}"' if prefix else ""
        lines.append(f"<tr data-row{anchor}>{_cells(row)}</tr>")
    body = "\n".join(lines)
    return _table(name, title, columns, f"<tbody>\n{body}\n</tbody>", ' class="sortable"')


def _paper_tables(project: Layout) -> str:
    """The paper's tables; below each row its runs, or the command that makes them."""
    below: dict[str, str] = {}
    origins, parts = tables.Origins(project), []
    for table in tables.read(project):
        bodies = []
        for row in table.rows:
            name = row["experiment"]
            if name not in below:
                below[name] = _runs(origins, name) if row["results"] else _how(name)
            bodies.append(
                f'<tbody data-row>\n<tr>{_cells(row)}</tr>\n<tr class="runs"><td colspan="{len(tables.COLUMNS)}">'
                f"{below[name]}</td></tr>\n</tbody>"
            )
        parts.append(_table(table.name, table.title, tables.COLUMNS, "\n".join(bodies), ' class="sortable"'))
    return "\n".join(parts)


def _runs(origins: tables.Origins, name: str) -> str:
    text = escape(origins.of(name, name))
    return f"<details><summary>Runs and parameters</summary>\n<pre>{text}</pre></details>"


def _how(name: str) -> str:
    return f"<div>To run it: <code>ffrepro reproduce {escape(name)}</code></div>"


def _plain(name: str, title: str, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A small table in the order that it is given in."""
    lines = (_cells(dict(zip(columns, row, strict=True))) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return _table(name, title, columns, f"<tbody>\n{body}\n</tbody>")


def _deviations(project: Layout) -> str:
    """Those of every row; then each departing value once, with the rows that have it; then those from other code."""
    known, rows = deviations.read(project.deviations), config.load(project.params).experiments
    always, targets = deviations.overall(known, rows)
    by_value: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows.items():
        for one in deviations.of(row, known):
            by_value.setdefault(one, []).append(name)
    order = {path: place for place, path in enumerate(known.fields)}
    columns = ("field", "here", "theirs", "why")
    body = "\n".join(
        f"<tr>{_cells(dict(zip(columns, one, strict=True)))}<td>{_names(names)}</td></tr>"
        for one, names in sorted(by_value.items(), key=lambda item: order[item[0][0]])
    )
    parts = [
        _plain("always", "From the authors’ code, of all rows", ("what", *deviations.WORDS), always),
        _table("fields", "From the authors’ code, of single rows", (*columns, "in"), f"<tbody>\n{body}\n</tbody>"),
    ]
    if targets:
        parts.append(
            _plain("targets", "From other code that made a published value", ("row", *deviations.WORDS), targets)
        )
    return "\n".join(parts)


def _names(names: list[str]) -> str:
    listed = "".join(f"<li>{escape(name)}</li>" for name in names)
    return f"<details><summary>{_many(len(names), 'row')}</summary><ul>{listed}</ul></details>"


def _environment(project: Layout) -> str:
    """The environments of the runs that the results are of, each once."""
    runs: Counter[str] = Counter()
    missing = 0
    for name, result in results.known(project).items():
        place = Layout(project.root, result.folder)
        for seed in result.seeds:
            try:
                facts = record.read_sealed(place.run(name, seed) / "record.json")["environment"]
                TypeAdapter(results.Facts).validate_python(facts)
                runs[json.dumps(facts)] += 1
            except (UserError, ValidationError, KeyError, TypeError):
                missing += 1
    found = [(json.loads(text), count) for text, count in runs.most_common()]
    keys = list(dict.fromkeys(key for facts, _ in found for key in facts))
    rows = [(str(count), *(str(facts.get(key, "")) for key in keys)) for facts, count in found]
    gap = f'<p class="note">{_many(missing, "run")} without a whole record here.</p>' if missing else ""
    if not rows:
        return gap or '<p class="note">Nothing has been run yet.</p>'
    return _plain("environments", "Environments of the runs", ("runs", *keys), rows) + gap


# Figures

SVG = {
    "svg",
    "g",
    "defs",
    "style",
    "path",
    "use",
    "clipPath",
    "rect",
    "circle",
    "ellipse",
    "line",
    "polyline",
    "polygon",
    "text",
    "tspan",
    "title",
    "desc",
    "linearGradient",
    "stop",
    "pattern",
}
"""The elements that a figure may have: what Matplotlib draws with, and nothing that runs, loads or links."""


def _figures(project: Layout, figures: "Sequence[Figure]") -> str:
    """The figures in groups of what they are about, which their names, KIND-ABOUT, say. Those of rows are folded."""
    groups: dict[str, list[str]] = {}
    for figure in figures:
        groups.setdefault(figure.name.partition("-")[2], []).append(_figure(project, figure))
    unfolded, parts = targets.read_tables(project.paper), []
    for about, drawn in groups.items():
        summary = f'<h3>{escape(about)}</h3> <span class="note">{_many(len(drawn), "figure")}</span>'
        parts += [f'<details class="group"{" open" if about in unfolded else ""}>', f"<summary>{summary}</summary>"]
        parts += ['<div class="pair">', *drawn, "</div>", "</details>"]
    return "\n".join(parts) or '<p class="note">None is drawn yet.</p>'


def _figure(project: Layout, figure: "Figure") -> str:
    """A figure with its drawing inlined."""
    name = escape(figure.name)
    drawing = inlined(project.figures / f"{figure.name}.svg", figure.name, figure.words)
    return (
        f'<figure role="group" id="figure-{name}" aria-labelledby="title-{name}">\n{drawing}\n'
        f'<figcaption><strong id="title-{name}">{escape(figure.title)}</strong> {escape(figure.words)}</figcaption>\n'
        "</figure>"
    )


def inlined(path: Path, name: str, words: str) -> str:
    """An SVG file as an element of the page, named by words. Its ids, and what refers to them, begin with `name`, and
    its style sheet is held within `#figure-NAME`, so that figures leave each other and the page alone.

    Raises UserError for a file that is not there or no SVG, and for one that could run, load or link something.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path.name}: cannot be read: {error.strerror}; run `ffrepro report` again") from None
    except ElementTree.ParseError as error:
        raise UserError(f"{path.name}: not SVG ({error}); delete it and run `ffrepro report` again") from None
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith("}metadata")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        if element.tag not in SVG:
            raise UserError(f"{path.name}: given <{element.tag}>; allowed in a figure: {', '.join(sorted(SVG))}")
        element.attrib = dict(_attributes(element.attrib, path, name))
        if element.tag == "style":
            element.text = f"#figure-{name} {{ {_sheet(element.text or '', path, name)} }}"
    root.attrib |= {"role": "img", "aria-label": words}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _attributes(given: Mapping[str, str], path: Path, name: str) -> Iterator[tuple[str, str]]:
    for full, value in given.items():
        key = _local(full)
        if key.lower().startswith("on") or (key == "href" and not value.startswith("#")):
            raise UserError(f"{path.name}: given {key}={value!r}; allowed in a figure: no handlers, and links to #ids")
        if key == "id":
            yield key, f"{name}-{value}"
        elif key == "href":
            yield key, f"#{name}-{value[1:]}"
        else:
            yield key, _referring(value, path, name)


def _sheet(text: str, path: Path, name: str) -> str:
    """A style sheet that can be set within braces; what could close them, or hide that it does, is refused."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            break
    if depth or re.search(r"""["']|/\*""", text):
        raise UserError(f"{path.name}: given style {text!r}; allowed in a figure: whole rules, no quotes, no comments")
    return _referring(text, path, name)


def _referring(text: str, path: Path, name: str) -> str:
    """A style or an attribute with its url(#ID) prefixed; anything that loads is refused."""
    if re.search(r"""@import|\\|url\((?!["']?#)""", text, re.IGNORECASE):
        raise UserError(f"{path.name}: given {text!r}; allowed in a figure: url(#ID), and nothing that loads")
    return re.sub(r"""url\(["']?#([^"')]*)["']?\)""", rf"url(#{name}-\1)", text)
