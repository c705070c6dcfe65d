"""The paper's claims, which are comparisons between rows: whether the rows' results support them.

A claim's test is one-sided, at level 0.05, and looks at nothing but each row's mean, spread and n over its declared
seeds. Rows count as independent; equal seeds make them alike, if anything, and then the test is cautious.
"""

from collections.abc import Mapping
from typing import Any

from ffrepro import config, results
from ffrepro.config import Experiment
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import Claim, read_claims
from ffrepro.verdict import INCONCLUSIVE, p_above, welch

ALPHA = 0.05
SUPPORTED, CONTRADICTED, NOT_RUN = "supported", "contradicted", "not run"


def difference(pairs: list[tuple[str, str]], rows: Mapping[str, dict[str, Any]]) -> tuple[float, float, float]:
    """The mean over pairs of (mean of the higher row - mean of the lower), its p for "above 0" and its p for "below".

    rows: {"mean", "std", "n"} by name, n at least 2. The standard error is that of the weighted sum over rows, so a row
    of several pairs enters once, with its whole weight; degrees of freedom by Welch and Satterthwaite over all rows.
    """
    weights: dict[str, float] = {}
    for higher, lower in pairs:
        weights[higher] = weights.get(higher, 0) + 1
        weights[lower] = weights.get(lower, 0) - 1
    terms = [(weight / len(pairs), rows[name]) for name, weight in weights.items() if weight]
    error, found = welch(terms), sum(weight * row["mean"] for weight, row in terms)
    return found, p_above(found, error), p_above(-found, error)


def judge(claim: Claim, rows: Mapping[str, dict[str, Any]], gaps: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The claim's outcome by its rows' results: {"mean", "std", "n"} in percent by name, of those rows that have any;
    gaps: what there is of others, such as "1 of 5 seeds".

    `each: false`: the mean over pairs decides, supported at p < 0.05 for higher, contradicted at p < 0.05 for lower.
    `each: true`: every pair must hold. Supported when each is at p < 0.05 (intersection-union: p is the largest, and
    needs no correction); contradicted when one is reversed at p < 0.05 / number of pairs (Bonferroni, since any of them
    would do). `difference` is then the smallest.
    """
    pairs = list(claim.pairs)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    outcome: dict[str, Any] = {
        "claim": claim.claim,
        "table": claim.table,
        "pairs": [list(pair) for pair in pairs],
        "each": claim.each,
        "difference": None,
        "p": None,
        "p_reversed": None,
    }
    if missing := [name for name in names if name not in rows]:
        each = (f"{name} ({gaps[name]})" if gaps and name in gaps else name for name in missing)
        return {**outcome, "verdict": NOT_RUN, "why": f"no results of {', '.join(each)}"}
    if single := [name for name in names if rows[name]["n"] < 2]:
        return {**outcome, "verdict": INCONCLUSIVE, "why": f"1 seed does not tell the spread: {', '.join(single)}"}
    single_pairs = [difference([pair], rows) for pair in pairs]
    tests = single_pairs if claim.each else [difference(pairs, rows)]
    found, p = min(test[0] for test in tests), max(test[1] for test in tests)
    p_reversed = min(1.0, len(tests) * min(test[2] for test in tests))
    if p < ALPHA:
        word = SUPPORTED
    elif p_reversed < ALPHA:
        word = CONTRADICTED
    else:
        word = INCONCLUSIVE
    kind = "smallest " if claim.each else "mean "
    what = f"{kind if len(pairs) > 1 else ''}difference"
    why = f"{what} {found:+.2f} points"
    if not claim.each and len(pairs) > 1:  # a mean can hide one large pair, and pairs that say the opposite
        apart = sorted(test[0] for test in single_pairs)
        below = f", {sum(one < 0 for one in apart)} of {len(apart)} below 0" if apart[0] < 0 else ""
        why += f"; single pairs {apart[0]:+.2f} to {apart[-1]:+.2f}{below}"
    return {**outcome, "difference": found, "p": p, "p_reversed": p_reversed, "verdict": word, "why": why}


def check(claims: Mapping[str, Claim], rows: Mapping[str, Experiment]) -> None:
    """Refuse a pair of rows on different data sets, whose accuracies say nothing about each other."""
    for name, claim in claims.items():
        for pair in claim.pairs:
            sets = {rows[row].data.name: None for row in pair if row in rows}
            if len(sets) > 1:
                given = f"paper.yaml: claims.{name}.pairs: given {list(pair)}, rows of {' and '.join(sets)}"
                raise UserError(f"{given}; allowed: rows of one data set")


def read(project: Layout) -> list[dict[str, Any]]:
    """The outcome of every claim in each of its tables, by the runs here where a row has them, else by what is
    committed of it (`sources` names each that was taken): a reference, or released runs of all its seeds."""
    rows, claims = config.load(project.params).experiments, read_claims(project.paper)
    check(claims, rows)
    known = results.known(project)
    gaps = {name: result.gap for name, result in known.items() if result.gap}
    found = {name: result for name, result in known.items() if name not in gaps}
    accuracies = {name: result.accuracy for name, result in found.items()}
    outcomes = []
    for name, claim in claims.items():
        sources = {found[row].source for pair in claim.pairs for row in pair if row in found}
        outcomes.append({"id": name, **judge(claim, accuracies, gaps), "sources": sorted(sources)})
    return outcomes
