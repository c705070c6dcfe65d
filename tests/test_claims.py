"""The paper's claims: by hand, against SciPy's tests, and what counts as a result."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from scipy.stats import t, ttest_ind, ttest_rel
from test_report import write_run

from ffrepro import claims, config, record, tables, targets
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import Claim, spread


def claim(*pairs, each=False):
    return Claim(claim="x", table="t", each=each, pairs=pairs)


def results(**values):
    return {name: spread([float(value) for value in row]) for name, row in values.items()}


def test_one_pair_is_welchs_test():
    rows = results(a=[83, 84, 85.5], b=[80, 81, 82, 82.5])
    outcome = claims.judge(claim(("a", "b")), rows)
    for key, alternative in {"p": "greater", "p_reversed": "less"}.items():
        values = rows["a"]["values"], rows["b"]["values"]
        assert outcome[key] == pytest.approx(ttest_ind(*values, equal_var=False, alternative=alternative).pvalue)
    assert outcome["difference"] == pytest.approx(84.1667 - 81.375, abs=1e-4)
    assert outcome["verdict"] == "supported"
    assert outcome["why"] == "difference +2.79 points"


def test_the_mean_over_pairs_by_hand():
    # a - b = 2, c - d = 0: mean 1. Every row has variance 1 and n = 3: 4 * (1/2)^2 * 1/3 = 1/3, standard error 0.57735.
    # Degrees: all four terms alike, 1 / (4 * (1/4)^2 / 2) = 8. t = 1.7321: p = 0.0608
    rows = results(a=[4, 5, 6], b=[2, 3, 4], c=[7, 8, 9], d=[7, 8, 9])
    outcome = claims.judge(claim(("a", "b"), ("c", "d")), rows)
    assert outcome["difference"] == 1
    assert outcome["p"] == pytest.approx(t.sf(math.sqrt(3), 8))
    assert outcome["p_reversed"] == pytest.approx(t.cdf(math.sqrt(3), 8))
    assert outcome["verdict"] == "inconclusive"
    assert outcome["why"] == "mean difference +1.00 points; single pairs +0.00 to +2.00"


def test_pairs_that_a_mean_hides_are_told():
    rows = results(a=[40, 41, 42], b=[2, 3, 4], c=[7, 8, 9], d=[8, 9, 10])
    outcome = claims.judge(claim(("a", "b"), ("c", "d"), ("c", "d")), rows)
    assert outcome["verdict"] == "supported"
    assert outcome["why"] == "mean difference +12.00 points; single pairs -1.00 to +38.00, 2 of 3 below 0"
    rows |= results(e=[4, 5, 6], f=[3.5, 4.5, 5.5])
    outcome = claims.judge(claim(("a", "b"), ("c", "d"), ("e", "e"), ("e", "f")), rows)
    assert outcome["why"].endswith("single pairs -1.00 to +38.00, 1 of 4 below 0")


def test_a_row_of_several_pairs_enters_with_its_whole_weight():
    # a over b and over c: a's weight is 1, b's and c's -1/2: variance 1 * 1/3 + 2 * 1/4 * 1/3 = 1/2; shares 2/3, 1/6,
    # 1/6: degrees 1 / ((4/9 + 1/36 + 1/36) / 2) = 4
    rows = results(a=[6, 7, 8], b=[4, 5, 6], c=[3, 4, 5])
    outcome = claims.judge(claim(("a", "b"), ("a", "c")), rows)
    assert outcome["difference"] == 2.5
    assert outcome["p"] == pytest.approx(t.sf(2.5 / math.sqrt(0.5), 4))
    # in a chain the middle row falls out
    chain = claims.judge(claim(("a", "b"), ("b", "c")), rows)
    assert chain["difference"] == 1.5
    alone = ttest_ind(np.array(rows["a"]["values"]) / 2, np.array(rows["c"]["values"]) / 2, equal_var=False)
    assert chain["p"] == pytest.approx(alone.pvalue / 2)


def test_the_error_rate_of_a_mean_over_pairs_is_the_level():
    generator = np.random.default_rng(5)
    pairs = [("a", "b"), ("a", "c"), ("d", "b")]
    count, wrong = 4000, 0
    for _ in range(count):
        rows = {name: spread(generator.normal(80, width, 3).tolist()) for name, width in zip("abcd", [1, 1, 2, 0.5])}  # noqa: B905
        wrong += claims.judge(claim(*pairs), rows)["verdict"] == "supported"
    assert abs(wrong / count - 0.05) < 0.02  # Welch and Satterthwaite's is an approximation


@pytest.mark.parametrize(("higher", "verdict"), [(9, "supported"), (5, "inconclusive"), (1, "contradicted")])
def test_outcomes(higher, verdict):
    rows = results(a=[higher - 1, higher, higher + 1], b=[4, 5, 6])
    assert claims.judge(claim(("a", "b")), rows)["verdict"] == verdict


def test_highest_of_all_needs_every_pair():
    rows = results(a=[8, 9, 10], b=[4, 5, 6], c=[5, 6, 7])
    both = claims.judge(claim(("a", "b"), ("a", "c"), each=True), rows)
    single = [claims.judge(claim(("a", other)), rows)["p"] for other in "bc"]
    assert both["verdict"] == "supported"
    assert both["p"] == max(single) == single[1]
    assert (both["difference"], both["why"]) == (3, "smallest difference +3.00 points")
    near = {**rows, "c": spread([7.0, 8.0, 9.0])}
    assert claims.judge(claim(("a", "b"), ("a", "c"), each=True), near)["verdict"] == "inconclusive"
    assert (
        claims.judge(claim(("a", "b"), ("a", "c")), near)["verdict"] == "supported"
    )  # the mean over pairs is well above


def test_highest_of_all_is_contradicted_by_one_pair_whose_p_counts_how_many_there_are():
    rows = results(a=[8, 9, 10], b=[4, 5, 6], c=[12, 13, 14])
    outcome = claims.judge(claim(("a", "b"), ("a", "c"), each=True), rows)
    reversed_p = claims.judge(claim(("c", "a")), rows)["p"]
    assert outcome["p_reversed"] == pytest.approx(2 * reversed_p)
    assert outcome["verdict"] == "contradicted"
    assert claims.judge(claim(("a", "b"), ("a", "b"), ("a", "b"), each=True), rows)["p_reversed"] == 1.0
    barely = {**rows, "c": spread([10.2, 11.2, 12.2])}
    assert claims.judge(claim(("a", "c")), barely)["verdict"] == "contradicted"
    assert claims.judge(claim(("a", "b"), ("a", "c"), each=True), barely)["verdict"] == "inconclusive"


def test_without_any_spread_the_difference_decides():
    rows = results(a=[5, 5], b=[4, 4])
    assert claims.judge(claim(("a", "b")), rows)["verdict"] == "supported"
    assert claims.judge(claim(("b", "a")), rows)["verdict"] == "contradicted"
    assert claims.judge(claim(("a", "b")), {**rows, "b": rows["a"]})["verdict"] == "inconclusive"


def test_missing_rows_and_single_seeds_are_named():
    rows = results(a=[5, 6], b=[4])
    outcome = claims.judge(claim(("a", "c"), ("d", "b"), ("d", "c")), rows)
    assert (outcome["verdict"], outcome["why"], outcome["p"]) == ("not run", "no results of c, d", None)
    outcome = claims.judge(claim(("a", "c"), ("d", "b")), rows, {"d": "1 of 5 seeds"})
    assert outcome["why"] == "no results of c, d (1 of 5 seeds)"
    outcome = claims.judge(claim(("a", "b")), rows)
    assert (outcome["verdict"], outcome["difference"]) == ("inconclusive", None)
    assert outcome["why"] == "1 seed does not tell the spread: b"
    outcome = claims.judge(claim(("a", "b"), ("a", "e")), {**rows, **results(e=[5])})
    assert outcome["why"] == "1 seed does not tell the spread: b, e"


def test_rows_that_go_up_and_down_by_seed_make_it_cautious():
    ours, theirs = [80.0, 84.0, 88.0], [79.0, 83.1, 86.8]
    found = claims.judge(claim(("a", "b")), results(a=ours, b=theirs))["p"]
    assert found > ttest_rel(ours, theirs, alternative="greater").pvalue


# The project's files


PAPER = """
sources: {someone: "Someone, Table 1"}
targets: {}
tables: {all: {title: All, rows: {a: {x: digits, y: other}, b: {x: third}}}}
claims:
  first: {claim: One beats | two, source: someone, each: false, tables: [all], pairs: [[a.x, a.y]]}
  second: {claim: Two, source: someone, each: true, tables: [all], pairs: [[a.x, a.y], [a.x, b.x]]}
"""


@pytest.fixture
def small(root, tmp_path):
    text = (root / "params.yaml").read_text()
    digits = text[text.index("  digits:") : text.index("  cifar10-quick:")]
    digits = digits.replace("reference_seeds: [3, 4, 5, 6, 7]", "reference_seeds: [3, 4]")
    text = text[: text.index("  digits:")] + digits + digits.replace("  digits:", "  other:")
    text += digits.replace("  digits:", "  third:")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "paper.yaml").write_text(PAPER)
    shutil.copy(root / "deviations.yaml", tmp_path)
    project = Layout(tmp_path)
    for name, values in {"digits": [95.0, 96.0, 97.0], "other": [85.0, 86.0, 87.0]}.items():
        row = config.load(project.params).experiments[name]
        summary = {"row": record.text_hash(config.canonical(row)), "accuracy": spread(values), "seeds": [0, 1, 2]}
        summary |= {"seconds": 30.0, "device": "cpu"}
        record.write_json(summary, project.summary(name))
        for seed, value in enumerate(values):
            write_run(project, row, seed, value, name)
    return project


def test_claims_are_judged_by_the_rows_results(small):
    first, second = claims.read(small)
    assert (first["id"], first["verdict"], first["difference"]) == ("first.all", "supported", 10)
    assert (second["verdict"], second["why"]) == ("not run", "no results of third")


@pytest.mark.parametrize(("old", "new"), [("lr: 0.002", "lr: 0.003"), ("seeds: [0, 1, 2]", "seeds: [0, 1]")])
def test_a_result_from_before_an_edit_is_none(small, old, new):
    text = small.params.read_text()
    assert old in text
    small.params.write_text(text.replace(old, new))
    assert claims.read(small)[0]["why"] == "no results of digits, other"


def test_claims_are_written_with_the_same_cells_and_stand_under_the_table(small):
    printed = tables.write_all(small)
    written = small.claims("md").read_text()
    assert f"## The paper's claims\n\n{written}\n" in printed
    assert printed.index("| experiment | data set |") < printed.index(written)
    assert "| first.all | One beats \\| two | 1 | supported | 0.0001 | difference +10.00 points | here |\n" in written
    assert "| second.all | Two | each of 2 | not run |  | no results of third | here |\n" in written
    with small.claims("csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["supported", "not run"]
    assert rows[0]["in words"] == "One beats | two"
    assert json.loads(small.claims("json").read_text()) == claims.read(small)


def test_rows_of_different_data_sets_are_not_compared(small):
    text = small.params.read_text()
    at = text.index("  other:")
    end = text.index("  third:")
    changed = text[at:end].replace("name: digits", "name: mnist")
    small.params.write_text(text[:at] + changed + text[end:])
    with pytest.raises(UserError) as caught:
        claims.read(small)
    given = "paper.yaml: claims.first.all.pairs: given ['digits', 'other'], rows of digits and mnist"
    assert str(caught.value) == f"{given}; allowed: rows of one data set"


@pytest.mark.parametrize("table", ["ablation", "ablation-digits", "ablation-fashion"])
def test_the_papers_claims_compare_rows_that_differ_as_they_say(root, params, table):
    known = {name: one for name, one in targets.read_claims(root / "paper.yaml").items() if one.table == table}
    claims.check(known, params.experiments)
    changed = {
        "symba-above-threshold": {"training.loss": ("symba", "threshold")},
        "batch-above-layer": {"network.norm": ("batch", "layer")},
        "overlapping-above-layerwise": {"training.update": ("overlapping", "layer-wise")},
    }
    for claim_id, expected in changed.items():
        pairs = known[f"{claim_id}.{table}"].pairs
        assert len(set(pairs)) == 4
        for higher, lower in pairs:
            assert difference_of(params.experiments[higher], params.experiments[lower]) == expected
    best = f"{table}-symba-batch-overlapping"
    highest = known[f"all-three-highest.{table}"]
    assert {higher for higher, _ in highest.pairs} == {best}
    assert len({lower for _, lower in highest.pairs} - {best}) == 7
    assert highest.each
    ((deep, shallow),) = known[f"deep-above-shallow.{table}"].pairs
    assert shallow == best
    assert len(params.experiments[deep].network.parsed()) == 2 * len(params.experiments[shallow].network.parsed()) == 12


def difference_of(one, other):
    """The parameters in which two rows differ, with both values."""
    both = [json.loads(config.training_parameters(row)) for row in (one, other)]
    return {
        f"{section}.{key}": (value, both[1][section][key])
        for section, values in both[0].items()
        for key, value in values.items()
        if value != both[1][section][key]
    }


def test_committed_results_answer_where_nothing_was_run_here(small):
    """The reference counts for a row without runs of its own, and one of other parameters does not."""
    reference = {"seeds": [3, 4], "seconds": 1.0, "command": "c", "machine": "m", "ffrepro": "0"}
    rows = config.load(small.params).experiments
    for name, values in {"third": [80.0, 82.0], "other": [1.0, 2.0]}.items():
        its = spread(values)
        entry = {**reference, "values": values, "mean": its["mean"], "std": its["std"]}
        known = record.read_json(small.reference) if small.reference.exists() else {}
        record.write_json({**known, name: {**entry, "row": targets.measured(rows[name])}}, small.reference)
    first, second = claims.read(small)
    assert first["difference"] == 10  # `other` has runs here, which come first
    assert first["sources"] == ["here"]
    assert second["sources"] == ["committed", "here"]
    assert (second["verdict"], second["difference"]) == ("supported", 10)
    content = record.read_json(small.reference)
    content["third"]["row"] = "other parameters"
    record.write_json(content, small.reference)
    assert claims.read(small)[1]["why"] == "no results of third"


def test_released_runs_of_some_seeds_are_told_and_not_counted(root, tmp_path):
    for name in ("params.yaml", "paper.yaml", "deviations.yaml"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "results" / "cifar10").mkdir(parents=True)
    (tmp_path / "results" / "cifar10" / "0").symlink_to(root / "results" / "cifar10" / "0")
    outcome = next(one for one in claims.read(Layout(tmp_path)) if one["id"] == "deep-above-shallow.ablation")
    assert outcome["why"] == "no results of cifar10 (1 of 5 seeds), ablation-symba-batch-overlapping"
    assert (outcome["verdict"], outcome["sources"]) == ("not run", [])
