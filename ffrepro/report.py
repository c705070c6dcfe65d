"""Runs -> a row's summary -> the tables of all rows and claims, in Markdown and CSV with the same digits."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ffrepro import config, errors, record, results
from ffrepro.config import Experiment
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import (
    Target,
    Text,
    measured,
    read_paper,
    read_references,
    read_tables,
    read_targets,
    spread,
    target_of,
)

NOT_RUN, REFERENCE = "not run", "reference"


def summarise(name: str, row: Experiment, project: Layout, target: Target | None) -> dict[str, Any]:
    """What a row's runs say together: accuracy in percent with its spread, per block too, target, device, seconds."""
    runs = results.collect(name, row, row.seeds, project)
    blocks = [run["metrics"]["blocks"] for run in runs]
    return {
        "experiment": name,
        "row": record.text_hash(config.canonical(row)),
        "seeds": list(row.seeds),
        "accuracy": spread([run["metrics"]["accuracy"] for run in runs]),
        "blocks": {block: spread([b[block] for b in blocks]) for block in blocks[0]},
        "test_images": config.SHAPES[row.data.name][2],
        "target": target.model_dump() if target else None,
        "device": results.devices(runs),
        "seconds": sum(run["record"]["seconds"] for run in runs),
    }


COLUMNS = (
    "experiment",
    "data set",
    "blocks",
    "accuracy (%)",
    "target (%)",
    "difference",
    "verdict",
    "not worse",
    "device",
    "seconds a seed",
    "results",
)


def table(project: Layout) -> list[dict[str, str]]:
    """One row an experiment, every cell as text: its runs here, else what is committed of it. A verdict here of other
    parameters or another target counts as not run."""
    targets, known = read_targets(project.paper, project.reference), results.known(project)
    rows = []
    for name, row in config.load(project.params).experiments.items():
        target, ours = target_of(targets, name, row), known.get(name)
        against, result = target.model_dump() if target else None, results.verdict_on(project, name, row, ours, target)
        cells = {
            "experiment": name,
            "data set": row.data.name,
            "blocks": str(len(row.network.parsed())),
            "accuracy (%)": NOT_RUN,
            "target (%)": f"{percent(against)} {against['kind']}" if against else "none",
            "difference": "",
            "verdict": NOT_RUN,
            "not worse": "",
            "device": "",
            "seconds a seed": "",
            "results": "",
        }
        if ours and (result or ours.source != results.HERE):
            cells |= {
                "accuracy (%)": percent(ours.accuracy),
                "verdict": word(ours, result),
                "device": ours.device,
                "seconds a seed": f"{ours.seconds:.0f}",
                "results": ours.source,
            }
        if result:
            cells |= {
                "difference": "" if result["difference"] is None else f"{result['difference']:+.2f}",
                "not worse": result["not_worse"]["words"].partition(":")[0] if result["not_worse"] else "",
            }
        rows.append(cells)
    return rows


def word(ours: results.Result, result: dict[str, Any] | None) -> str:
    """What stands under "verdict", with what `results.verdict_on` gives."""
    if result:
        return str(result["verdict"])
    return {results.COMMITTED: REFERENCE, results.RELEASED: ours.gap}.get(ours.source, NOT_RUN)


def percent(value: dict[str, Any]) -> str:
    """83.51 ± 0.78 (n = 5), as far as known; a published value with its source's decimals."""
    text = f"{value['mean']:.{value.get('decimals', 2)}f}"
    if value["std"] is not None:
        text += f" ± {value['std']:.2f}"
    return text if value["n"] is None else f"{text} (n = {value['n']})"


def measured_accuracy(result: results.Result) -> str:
    """As `percent`; of released runs that are not all of the row's, 76.80 (1 of 5 seeds)."""
    return f"{percent({**result.accuracy, 'n': None})} ({result.gap})" if result.gap else percent(result.accuracy)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. A pipe within a cell is escaped and a line break becomes a space, to leave the table whole."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def write_tables(project: Layout) -> str:
    """Write report/table.md, .csv, report/tables/ and report/claims.md, .csv, .json; returns table.md: the rows, the
    paper's tables, the claims, and where all this departs from what it reproduces, so that no table goes without it."""
    from ffrepro import claims, tables  # SciPy, which `ffrepro list` need not wait for

    rows, outcomes = table(project), claims.read(project)
    printed = tables.write(project)
    judged = [claim_cells(outcome) for outcome in outcomes]
    claims_md = markdown(CLAIM_COLUMNS, [list(line.values()) for line in judged])
    text = "\n".join(
        [
            markdown(COLUMNS, [list(row.values()) for row in rows]),
            *(one.as_("md") for one in printed),
            f"## The paper's claims\n\n{claims_md}",
            deviations_md(project),
        ]
    )
    record.write_text(as_csv(COLUMNS, rows), project.table("csv"))
    record.write_text(text, project.table("md"))
    record.write_text(as_csv(CLAIM_COLUMNS, judged), project.claims("csv"))
    record.write_text(claims_md, project.claims("md"))
    record.write_json(outcomes, project.claims("json"))
    return text


def as_csv(header: Sequence[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


CLAIM_COLUMNS = ("claim", "in words", "pairs", "verdict", "p", "why", "results")


def claim_cells(outcome: dict[str, Any]) -> dict[str, str]:
    """A claim's outcome as text; p is that of "higher", for a contradicted claim that of "lower"."""
    p = outcome["p_reversed" if outcome["verdict"] == "contradicted" else "p"]
    pairs = len(outcome["pairs"])
    return {
        "claim": outcome["id"],
        "in words": outcome["claim"],
        "pairs": f"each of {pairs}" if outcome["each"] else f"mean of {pairs}" if pairs > 1 else "1",
        "verdict": outcome["verdict"],
        "p": p_text(p).removeprefix(", p ").removeprefix("= "),
        "why": outcome["why"],
        "results": " and ".join(outcome["sources"]),
    }


THEIRS = ("theirs", "here", "why")


def deviations_md(project: Layout) -> str:
    """What departs from the authors' code, of all rows and row by row, and from other code that made a published value:
    Markdown tables."""
    from ffrepro import deviations

    known, rows = deviations.read(project.deviations), config.load(project.params).experiments
    always = [[name.replace("-", " "), *entry.words] for name, entry in known.always.items()]
    single = [[name, *line] for name, row in rows.items() for line in deviations.of(row, known)]
    targets = [[name, *entry.words] for name, entry in known.targets.items() if name in rows]
    parts = [
        f"## Deviations from the authors' code, of all rows\n\n{markdown(['what', *THEIRS], always)}",
        f"## And row by row\n\n{markdown(['experiment', 'field', 'here', 'theirs', 'why'], single)}",
    ]
    if targets:
        parts.append(f"## From other code that made a published value\n\n{markdown(['experiment', *THEIRS], targets)}")
    return "\n".join(parts)


def sentence(result: dict[str, Any]) -> str:
    """The verdict as a person reads it: measured, target and its source, rule, outcome; then what stands beside it."""
    target = result["target"]
    against = f"{percent(target)}, {target['kind']}: {target['source']}" if target else "none"
    lines = [
        f"{result['experiment']}: test accuracy in percent {percent(result['accuracy'])}, "
        f"on {result['device']}, {result['seconds']:.0f} s of training",
        f"target:  {against}",
        f"rule:    {result['rule']}",
        f"verdict: {result['verdict']}: {result['why']}{p_text(result['p'])}",
    ]
    if reading := result["not_worse"]:
        lines.append(f"one-sided reading: {reading['words']}{p_text(reading['p'])}")
    if result["bootstrap"]:
        low, high = result["bootstrap"]
        lines.append(f"bootstrap interval over seeds: [{low:+.2f}, {high:+.2f}] (too narrow for few seeds; no say)")
    lines.append(
        f"sampling error: another test set of {result['test_images']} images would add ±{result['sampling_error']:.2f} "
        "points to a run (binomial standard error; not in the interval, since all runs share one test set)"
    )
    if power := result["power"]:
        n, enough = result["accuracy"]["n"], power["seeds_for_80_percent"]
        needs = "more than 100 seeds" if enough is None else f"{enough} seed{'s' * (enough > 1)}"
        lines.append(
            f'power: {100 * power["probability"]:.0f} % to say "reproduced" with n = {n} if the true mean is the target'
            f"; 80 % takes {needs} (by the {power['std_of']} spread, {power['std']:.2f} points)"
        )
    return "\n".join(lines)


def p_text(p: float | None) -> str:
    """, p = 0.0123, to 2 digits at least; nothing for None."""
    if p is None:
        return ""
    return ", p < 0.0001" if p < 1e-4 else f", p = {p:.4f}"


def of_table(project: Layout, name: str) -> str:
    """A table of paper.yaml in Markdown, and what becomes of its claims."""
    from ffrepro import claims, tables

    (printed,) = (one for one in tables.read(project) if one.name == name)
    judged = [list(claim_cells(one).values()) for one in claims.read(project) if one["table"] == name]
    return "\n".join([printed.as_("md"), markdown(CLAIM_COLUMNS, judged)] if judged else [printed.as_("md")]).rstrip()


def overview(project: Layout, table: str | None = None) -> str:
    """Rows as a Markdown table: what each is, needs and costs, its published accuracy and the one committed here.

    Of a table of paper.yaml, `all`, or (None) those that are like no other.
    """
    from ffrepro.progress import duration

    rows = config.load(project.params).experiments
    tables = read_tables(project.paper, rows)
    if table is None:
        chosen = config.original(project.params)
    elif table == "all":
        chosen = list(rows)
    else:
        errors.known(f"no table {table!r} in paper.yaml", table, [*tables, "all"])
        chosen = list(dict.fromkeys(tables[table].cells.values()))
    published, committed = read_paper(project.paper), results.committed(project)
    header = ["experiment", "what", "data set", "blocks", "needs", "seeds"]
    header += ["cost a seed", "published (%)", "measured (%)"]
    lines = []
    for name in chosen:
        row, ours = rows[name], committed.get(name)
        cost = f"{duration(ours.seconds)} on {ours.device}" if ours else NOT_RUN
        accuracy = measured_accuracy(ours) if ours else NOT_RUN
        paper = percent(published[name].model_dump()) if name in published else "none"
        needs = {"cuda": "CUDA", "cpu": "CPU"}[row.requires]
        blocks = row.network.blocks
        lines.append([name, row.title, row.data.name, blocks, needs, str(len(row.seeds)), cost, paper, accuracy])
    return markdown(header, lines).rstrip()


def check_machine(machine: str) -> None:
    """Raise UserError for a machine's class that `results/reference.json` cannot hold."""
    try:
        TypeAdapter(Text).validate_python(machine)
    except ValidationError:
        given = config.plain(machine[:60])
        raise UserError(f"--machine: given {given!r}; allowed: one line of at most 1000 printable characters") from None


def write_reference(name: str, row: Experiment, project: Layout, machine: str) -> dict[str, Any]:
    """Put the accuracies of the row's reference runs below results/ into results/reference.json; returns the entry."""
    seeds = row.verdict.reference_seeds
    runs = results.collect(name, row, seeds, project)
    accuracy = spread([run["metrics"]["accuracy"] for run in runs])
    entry = {
        "seeds": list(seeds),
        "values": accuracy["values"],
        "mean": accuracy["mean"],
        "std": accuracy["std"],
        "seconds": sum(run["record"]["seconds"] for run in runs) / len(runs),
        "row": measured(row),
        "command": f"ffrepro reference {name}",
        "machine": machine,
        "ffrepro": runs[0]["record"]["ffrepro"],
    }
    read_references(project.reference)  # refuses what is no reference file, instead of writing into it
    known = record.read_json(project.reference) if project.reference.exists() else {}
    record.write_json({**known, name: entry}, project.reference)
    return {**entry, "n": accuracy["n"]}
