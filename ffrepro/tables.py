"""The paper's tables, in Markdown, LaTeX, CSV, JSON and HTML with the same digits, and the way back from a cell to its
runs."""

import html
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ffrepro import config, deviations, lock, record, report, results, targets
from ffrepro.errors import UserError
from ffrepro.layout import Layout

COLUMNS = ("row", "column", "paper (%)", "ours (%)", "difference", "verdict", "seconds a seed", "results", "experiment")
FORMATS = ("md", "tex", "csv", "json", "html")


class Printed(NamedTuple):
    """A table as it is printed: every cell is text, and every format shows the same text."""

    name: str
    title: str
    rows: list[dict[str, str]]  # under COLUMNS

    def as_(self, ending: str) -> str:
        """The whole file, in one of FORMATS."""
        if ending == "csv":
            return record.as_csv(COLUMNS, self.rows)
        if ending == "json":
            return json.dumps({"table": self.name, "title": self.title, "rows": self.rows}, indent=2) + "\n"
        if ending == "tex":
            return latex(self)
        if ending == "html":
            return html_table(self)
        return f"## {self.title}\n\n{report.markdown(COLUMNS, [list(row.values()) for row in self.rows])}"


def read(project: Layout) -> list[Printed]:
    """The tables of paper.yaml, filled with what is known. A cell of a row without results says "not run"."""
    rows, known = config.load(project.params).experiments, results.known(project)
    published, against = targets.read_paper(project.paper), targets.read_targets(project.paper, project.reference)
    printed = []
    for name, table in targets.read_tables(project.paper, rows).items():
        lines = []
        for cell, experiment in table.cells.items():
            row, ours = rows[experiment], known.get(experiment)
            target = targets.target_of(against, experiment, row)
            result = results.verdict_on(project, experiment, row, ours, target)
            lines.append(_line(cell, experiment, published.get(experiment), ours, result))
        printed.append(Printed(name, table.title, lines))
    return printed


def _line(
    cell: str,
    experiment: str,
    paper: targets.Target | None,
    ours: results.Result | None,
    result: dict[str, Any] | None,
) -> dict[str, str]:
    row, column = cell.split(".")
    told = report.cells(ours, result)
    return {
        "row": row,
        "column": column,
        "paper (%)": report.percent(paper.model_dump()) if paper else "not obtained",
        "ours (%)": told["accuracy"],
        "difference": f"{ours.accuracy['mean'] - paper.mean:+.2f}" if ours and paper else "",
        "verdict": told["verdict"],
        "seconds a seed": told["seconds a seed"],
        "results": told["results"],
        "experiment": experiment,
    }


_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
}


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: Printed) -> str:
    """A table environment with booktabs' rules, for \\input; as wide as a page of text allows."""
    shown = COLUMNS[: COLUMNS.index("results")]
    lines = [
        f"% {table.name}: written by `ffrepro report`; needs \\usepackage{{booktabs}}",
        r"\begin{table}\scriptsize\setlength{\tabcolsep}{3pt}",
        f"\\caption{{{escaped(table.title)}}}\\label{{tab:{table.name}}}",
        f"\\begin{{tabular}}{{{'l' * len(shown)}}}",
        r"\toprule",
        " & ".join(map(escaped, shown)) + r" \\",
        r"\midrule",
        *(" & ".join(escaped(row[column]) for column in shown) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def html_table(table: Printed) -> str:
    """A <table>, each row with the address of its cell; everything from a file is escaped."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in COLUMNS)
    body = "".join(
        f'<tr data-experiment="{html.escape(row["experiment"])}">'
        + "".join(f"<td>{html.escape(row[column])}</td>" for column in COLUMNS)
        + "</tr>\n"
        for row in table.rows
    )
    caption = f"<caption>{html.escape(table.title)}</caption>"
    name = html.escape(table.name)
    return f'<table id="table-{name}">{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n'


def numbers(project: Layout) -> str:
    """numbers.tex: \\ff{TABLE.ROW.COLUMN.WHAT} for every number, WHAT of mean, std, n, paper and difference.

    A number that is not there, or is of some of a row's seeds, stops LaTeX with an error instead of leaving a gap.
    """
    known, published = results.known(project), targets.read_paper(project.paper)
    lines = [
        "% Every number of the tables, for \\input: \\ff{ablation.symba-batch.overlapping.mean}. By `ffrepro report`.",
        r"\newcommand{\ff}[1]{\ifcsname ff@#1\endcsname\csname ff@#1\endcsname\else"
        r"\errmessage{ffrepro: no number #1, or not run}\fi}",
    ]
    for name, table in targets.read_tables(project.paper).items():
        for cell, experiment in table.cells.items():
            ours, paper = known.get(experiment), published.get(experiment)
            values: dict[str, str] = {}
            if ours and not ours.gap:
                values = {"mean": f"{ours.accuracy['mean']:.2f}", "n": str(ours.accuracy["n"])}
                values |= {} if ours.accuracy["std"] is None else {"std": f"{ours.accuracy['std']:.2f}"}
            if paper:
                values["paper"] = f"{paper.mean:.{paper.decimals}f}"
            if ours and not ours.gap and paper:
                values["difference"] = escaped(f"{ours.accuracy['mean'] - paper.mean:+.2f}")
            lines += [
                f"\\expandafter\\def\\csname ff@{name}.{cell}.{what}\\endcsname{{{value}}}"
                for what, value in values.items()
            ]
    return "\n".join(lines) + "\n"


def write(project: Layout) -> list[Printed]:
    """Write report/tables/NAME in every format and report/tables/numbers.tex; returns the tables."""
    tables = read(project)
    for table in tables:
        for ending in FORMATS:
            record.write_text(table.as_(ending), project.paper_table(f"{table.name}.{ending}"))
    record.write_text(numbers(project), project.paper_table("numbers.tex"))
    return tables


def write_all(project: Layout) -> str:
    """Write report/table.md, .csv, report/tables/ and report/claims.md, .csv, .json; returns table.md: the rows, the
    paper's tables, the claims, and where all this departs from what it reproduces, so that no table goes without it."""
    from ffrepro import claims  # SciPy, which `ffrepro explain` need not wait for

    with lock.alone(project.lock("report"), "writing tables"):
        rows, outcomes = report.table(project), claims.read(project)
        printed = write(project)
        judged = [report.claim_cells(outcome) for outcome in outcomes]
        claims_md = report.markdown(report.CLAIM_COLUMNS, [list(line.values()) for line in judged])
        text = "\n".join(
            [
                report.markdown(report.COLUMNS, [list(row.values()) for row in rows]),
                *(one.as_("md") for one in printed),
                f"## The paper's claims\n\n{claims_md}",
                departures(project),
            ]
        )
        record.write_text(record.as_csv(report.COLUMNS, rows), project.table("csv"))
        record.write_text(text, project.table("md"))
        record.write_text(record.as_csv(report.CLAIM_COLUMNS, judged), project.claims("csv"))
        record.write_text(claims_md, project.claims("md"))
        record.write_json(outcomes, project.claims("json"))
        return text


def of_table(project: Layout, name: str) -> str:
    """A table of paper.yaml in Markdown, and what becomes of its claims."""
    from ffrepro import claims

    (printed,) = (one for one in read(project) if one.name == name)
    parts = [printed.as_("md")]
    if judged := [list(report.claim_cells(one).values()) for one in claims.read(project) if one["table"] == name]:
        parts.append(report.markdown(report.CLAIM_COLUMNS, judged))
    return "\n".join(parts).rstrip()


def departures(project: Layout) -> str:
    """What departs from the authors' code, of all rows and row by row, and from other code that made a published value:
    Markdown tables."""
    known, rows = deviations.read(project.deviations), config.load(project.params).experiments
    always, targets = deviations.overall(known, rows)
    single = [[name, *line] for name, row in rows.items() for line in deviations.of(row, known)]
    header = ["experiment", "field", "here", "theirs", "why"]
    parts = [
        f"## Deviations from the authors' code, of all rows\n\n{report.markdown(['what', *deviations.WORDS], always)}",
        f"## And row by row\n\n{report.markdown(header, single)}",
    ]
    if targets:
        table = report.markdown(["experiment", *deviations.WORDS], targets)
        parts.append(f"## From other code that made a published value\n\n{table}")
    return "\n".join(parts)


def explain(project: Layout, address: str) -> str:
    """Where a number comes from, `Origins.of`.

    address: TABLE.ROW.COLUMN, or a row's name. Raises UserError, listing what there is, for another.
    """
    origins = Origins(project)
    return origins.of(_experiment(project, address, origins.rows), address)


class Origins:
    """Where the numbers of a project come from; what it reads for that, it reads once for all rows."""

    def __init__(self, project: Layout) -> None:
        self.project, self.rows = project, config.load(project.params).experiments
        self.targets, self.known = targets.read_targets(project.paper, project.reference), results.known(project)

    def of(self, name: str, address: str) -> str:
        """A row, what it says, and of each seed the accuracy, record and code. address: as it was asked for."""
        row, result = self.rows[name], self.known.get(name)
        lines = [f"{address}: experiment {name}, {row.title}"]
        if target := targets.target_of(self.targets, name, row):
            lines.append(f"target: {report.percent(target.model_dump())}, {target.kind}: {target.source}")
        if result is None:
            return "\n".join([*lines, f"{report.NOT_RUN}: ffrepro reproduce {name}"])
        folder, accuracy = result.folder, report.measured_accuracy(result)
        own = results.released(self.project, name, row)
        lines.append(f"ours: {accuracy}, {folder}/{name}, {result.seconds:.0f} s of training a seed, {result.device}")
        for seed, value in zip(result.seeds, result.accuracy["values"], strict=True):
            path = Layout(self.project.root, folder).run(name, seed) / "record.json"
            lines.append(f"seed {seed}: {value:.2f} %; {folder}/{name}/{seed}/record.json: {_facts(path)}")
        if own and result.source != results.RELEASED:
            lines.append(f"released beside it: {report.measured_accuracy(own)}, results/{name}, {own.device}")
        committed = result.source != results.HERE
        lines.append(f"commit: {_commit(self.project, f'results/{name}') if committed else 'runs are not committed'}")
        return "\n".join([*lines, f"parameters: {_parameters(row)}"])


def _experiment(project: Layout, address: str, rows: Iterable[str]) -> str:
    if address in rows:
        return address
    tables = targets.read_tables(project.paper, rows)
    table, _, cell = address.partition(".")
    if table not in tables:
        given = f"explain: given {address!r}; allowed: a row of params.yaml, or TABLE.ROW.COLUMN with a table of"
        raise UserError(f"{given} {', '.join(tables)}")
    cells = tables[table].cells
    if cell not in cells:
        raise UserError(f"explain: given {address!r}; allowed: {', '.join(f'{table}.{one}' for one in cells)}")
    return cells[cell]


def _facts(path: Path) -> str:
    if not path.exists():
        return "not there"
    facts = record.read_sealed(path)
    try:
        return config.plain(f"weights {facts['weights'][:12]}, code {facts['code'][:12]}, {facts['started']}")
    except (KeyError, TypeError):
        raise UserError(f"{path}: not the record of a training; ffrepro verify {path.parent} says more") from None


def _commit(project: Layout, path: str) -> str:
    """The last commit that touched a path; what git says is not trusted to be there."""
    git = ["git", "-C", str(project.root)]
    try:
        last, changed = (
            subprocess.run([*git, *words, "--", path], capture_output=True, text=True, check=False).stdout.strip()
            for words in (["log", "-1", "--format=%h of %as"], ["status", "--porcelain"])
        )
    except OSError:
        return "no git here"
    return f"{last}{', changed since' if changed else ''}" if last else "not committed"


def _parameters(row: config.Experiment) -> str:
    """What the row trains with, one after the other, as params.yaml writes it."""
    content = json.loads(config.training_parameters(row))
    return ", ".join(
        f"{section}.{key} {deviations.shown(value)}"
        for section, values in content.items()
        for key, value in values.items()
    )
