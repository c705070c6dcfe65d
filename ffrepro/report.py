"""Runs -> a row's summary -> the tables of all rows and claims, in Markdown and CSV with the same digits."""

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
        told = cells(ours, result)
        difference, not_worse = (result["difference"], result["not_worse"]) if result else (None, None)
        line = {
            "experiment": name,
            "data set": row.data.name,
            "blocks": str(len(row.network.parsed())),
            "accuracy (%)": told["accuracy"],
            "target (%)": f"{percent(against)} {against['kind']}" if against else "none",
            "difference": "" if difference is None else f"{difference:+.2f}",
            "verdict": told["verdict"],
            "not worse": not_worse["words"].partition(":")[0] if not_worse else "",
            "device": ours.device if ours else "",
            "seconds a seed": told["seconds a seed"],
            "results": told["results"],
        }
        rows.append(line)
    return rows


def cells(ours: results.Result | None, result: dict[str, Any] | None) -> dict[str, str]:
    """What every table tells of a row's result: accuracy, verdict, seconds a seed, results.

    result: of `results.verdict_on`.
    """
    if ours is None:
        return {"accuracy": NOT_RUN, "verdict": NOT_RUN, "seconds a seed": "", "results": ""}
    unjudged = {results.COMMITTED: REFERENCE, results.RELEASED: ours.gap}.get(ours.source, NOT_RUN)
    return {
        "accuracy": percent(ours.accuracy),
        "verdict": result["verdict"] if result else unjudged,
        "seconds a seed": f"{ours.seconds:.0f}",
        "results": ours.source,
    }


def percent(value: dict[str, Any]) -> str:
    """83.51 ± 0.78 (n = 5), as far as known; a published mean with its source's decimals."""
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
        "p": p_text(p).removeprefix("= "),
        "why": outcome["why"],
        "results": " and ".join(outcome["sources"]),
    }


def sentence(result: dict[str, Any]) -> str:
    """The verdict as a person reads it: measured, target and its source, rule, outcome; then what stands beside it."""
    target = result["target"]
    against = f"{percent(target)}, {target['kind']}: {target['source']}" if target else "none"
    lines = [
        f"{result['experiment']}: test accuracy in percent {percent(result['accuracy'])}, "
        f"on {result['device']}, {result['seconds']:.0f} s of training",
        f"target:  {against}",
        f"rule:    {result['rule']}",
        with_p(f"verdict: {result['verdict']}: {result['why']}", result["p"]),
    ]
    if reading := result["not_worse"]:
        lines.append(with_p(f"one-sided reading: {reading['words']}", reading["p"]))
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
    """= 0.0123, or < 0.0001; nothing for None."""
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def with_p(words: str, p: float | None) -> str:
    """The words, and ", p = 0.0123" where there is one."""
    return f"{words}, p {p_text(p)}" if p is not None else words


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
        errors.require_known(f"no table {table!r} in paper.yaml", table, [*tables, "all"])
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
        needs, blocks = row.requires.upper(), row.network.blocks
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
