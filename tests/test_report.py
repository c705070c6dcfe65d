"""Runs, targets, summaries and tables; nothing here trains: a run is a folder with two small JSON files."""

import csv
import functools
import json
import shutil
import statistics
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from ffrepro import claims, config, figure_data, record, report, results, tables, targets
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.verdict import verdict

PAPER = """
sources:
  someone: Someone, Table 1
targets:
  one: {mean: 83.51, std: 0.78, source: someone}
tables:
  both: {title: Both & all, rows: {upper: {left: one}, lower: {left: two}}}
claims:
  first:
    claim: One beats two
    source: someone
    each: false
    tables: [both]
    pairs: [[upper.left, lower.left]]
"""
ACCURACIES = {0: 83.0, 1: 84.0, 2: 85.5}


@pytest.fixture(scope="module")
def params_text(root, tmp_path_factory):
    """A params.yaml of two rows: the project's defaults with the values that the tests rely on."""
    document = config.read_yaml(root / "params.yaml")
    document["seeds"] = [0, 1, 2]
    document["defaults"]["verdict"] = {"reference_seeds": [3, 4], "margin": 1.5, "alpha": 0.05}
    document["experiments"] = {
        "one": {"title": "One | first", "requires": "cuda", "data": {"name": "mnist"}},
        "two": {"title": "Two", "requires": "cpu", "data": {"name": "mnist"}, "network": {"blocks": "8 8P 8"}},
    }
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    YAML(typ="safe").dump(document, path)
    return path.read_text()


@pytest.fixture(scope="module")
def row(params_text, tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(params_text)
    return config.load(path).experiments["one"]


@pytest.fixture
def small(params_text, tmp_path, root):
    """A project in an empty folder: the row `one` has a published value, `two` neither one nor a reference."""
    (tmp_path / "params.yaml").write_text(params_text)
    (tmp_path / "paper.yaml").write_text(PAPER)
    shutil.copy(root / "deviations.yaml", tmp_path)
    return Layout(tmp_path)


def write_run(project, row, seed, accuracy, name="one", **changes):
    """A run as train and evaluate leave it, with other values where a test asks for them."""
    environment = {"device": "cpu"} if seed % 2 else {"device": "cuda", "gpu": "A GPU"}
    facts = {
        "seed": seed,
        "ffrepro": "0.1.0",
        "code": "c0de" * 16,
        "started": "2026-01-02T03:04:05+00:00",
        "parameters": record.text_hash(config.training_parameters(row)),
        "weights": f"weights {seed}",
        "environment": environment,
        "seconds": 10.0 + seed,
    }
    blocks = {"1": accuracy / 2, "2": accuracy}
    metrics = {"accuracy": accuracy, "vote": row.evaluation.vote, "blocks": blocks, "weights": f"weights {seed}"}
    metrics["code"] = "c0de" * 16
    for content, file in ((facts, "record.json"), (metrics, "metrics.json")):
        mine = {key: value for (where, key), value in changes.get("changed", {}).items() if where == file}
        record.write_sealed(content | mine, project.run(name, seed) / file)


@pytest.fixture
def ran(small, row):
    for seed, accuracy in ACCURACIES.items():
        write_run(small, row, seed, accuracy)
    return small


def judge(project, name, row):
    """What the stages report and verdict do."""
    target = targets.target_of(targets.read_targets(project.paper, project.reference), name, row)
    summary = report.summarise(name, row, project, target)
    result = verdict(summary, row.verdict)
    record.write_json(summary, project.summary(name))
    record.write_json(result, project.verdict(name))
    return result


def one_line(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# collect


def test_runs_are_collected_in_the_order_of_the_seeds(ran, row):
    for seeds in ((0, 1, 2), (2, 0, 1)):
        runs = results.collect("one", row, seeds, ran)
        assert [run["record"]["seed"] for run in runs] == list(seeds)
        assert [run["metrics"]["accuracy"] for run in runs] == [ACCURACIES[seed] for seed in seeds]


AGAIN = "; every declared seed counts: run `dvc repro` for them again"


@pytest.mark.parametrize("file", ["record.json", "metrics.json"])
def test_a_missing_run_is_refused(ran, row, file):
    (ran.run("one", 1) / file).unlink()
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert line == f"runs/one: 1 of 3 declared seeds failed: seed 1: no {file}{AGAIN}"


@pytest.mark.parametrize("file", ["record.json", "metrics.json"])
def test_a_run_that_was_changed_after_it_was_written_is_refused(ran, row, file):
    path = ran.run("one", 1) / file
    path.write_text(path.read_text().replace("1", "2", 1))
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert f"seed 1: {file}: broken link: not what its seal was made of" in line


def test_all_failed_seeds_are_named_in_one_line(ran, row):
    (ran.run("one", 0) / "metrics.json").unlink()
    (ran.run("one", 1) / "metrics.json").write_text("{")
    write_run(ran, row, 2, 84.0, changed={("record.json", "weights"): "others"})
    line = one_line(results.collect, "one", row, row.seeds, ran)
    start = "runs/one: 3 of 3 declared seeds failed: seed 0: no metrics.json; seed 1: metrics.json: not JSON ("
    assert line.startswith(start)
    assert line.endswith(f"; seed 2: of other weights{AGAIN}")


def test_no_run_at_all_is_refused(small, row):
    both = "no metrics.json and no record.json"
    line = one_line(results.collect, "one", row, row.seeds, small)
    which = "; ".join(f"seed {seed}: {both}" for seed in (0, 1, 2))
    assert line == f"runs/one: 3 of 3 declared seeds failed: {which}{AGAIN}"


@pytest.mark.parametrize("foreign", ["3", "10", "00", "0.bak", "best"])
def test_a_run_of_no_declared_seed_is_refused_by_name(ran, row, foreign):
    (ran.root / "runs" / "one" / foreign).mkdir()
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert line.startswith(f"runs/one: run {foreign} is of no declared seed (0, 1, 2); remove that folder")


def test_files_beside_the_runs_are_none(ran, row):
    (ran.root / "runs" / "one" / "experiment.json").write_text("{}")
    assert len(results.collect("one", row, row.seeds, ran)) == 3


@pytest.mark.parametrize(
    ("file", "key", "value", "what"),
    [
        ("record.json", "seed", 0, "seed"),
        ("record.json", "seed", "1", "seed"),
        ("record.json", "parameters", "0" * 64, "training parameters"),
        ("record.json", "weights", "others", "weights"),
        ("metrics.json", "weights", "others", "weights"),
        ("metrics.json", "vote", "all", "vote"),
    ],
)
def test_a_run_of_something_else_is_refused(ran, row, file, key, value, what):
    write_run(ran, row, 1, 84.0, changed={(file, key): value})
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert line == f"runs/one: 1 of 3 declared seeds failed: seed 1: of other {what}{AGAIN}"


@pytest.mark.parametrize("file", ["record.json", "metrics.json"])
def test_runs_of_different_code_make_no_mean(ran, row, file):
    write_run(ran, row, 1, 84.0, changed={(file, "code"): "0" * 64})
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert line == f"runs/one: 1 of 3 declared seeds failed: seed 1: of other code than seed 0{AGAIN}"


def test_metrics_from_before_they_named_their_code_are_of_any(ran, row):
    path = ran.run("one", 0) / "metrics.json"
    metrics = record.read_json(path)
    metrics = {key: value for key, value in metrics.items() if key not in ("code", "seal")}
    record.write_sealed(metrics, path)
    assert len(results.collect("one", row, row.seeds, ran)) == 3
    write_run(ran, row, 2, 84.0, changed={("metrics.json", "code"): "0" * 64})
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert line == f"runs/one: 1 of 3 declared seeds failed: seed 2: of other code than seed 1{AGAIN}"


def test_runs_of_the_row_before_an_edit_are_refused(ran, row):
    training = row.training.model_copy(update={"epochs": row.training.epochs + 1})
    edited = row.model_copy(update={"training": training})
    line = one_line(results.collect, "one", edited, row.seeds, ran)
    which = "; ".join(f"seed {seed}: of other training parameters" for seed in (0, 1, 2))
    assert line == f"runs/one: 3 of 3 declared seeds failed: {which}{AGAIN}"
    retitled = row.model_copy(update={"title": "A better title"})
    assert len(results.collect("one", retitled, row.seeds, ran)) == 3


def test_a_damaged_run_is_one_line(ran, row):
    path = ran.run("one", 2) / "metrics.json"
    path.write_text('{"accuracy": ')
    line = one_line(results.collect, "one", row, row.seeds, ran)
    assert line.startswith("runs/one: 1 of 3 declared seeds failed: seed 2: metrics.json: not JSON (")
    assert line.endswith(f"delete it and run the stage that writes it again{AGAIN}")


# summarise


def test_a_summary_is_mean_spread_and_n_by_hand(ran, row):
    target = targets.read_targets(ran.paper, ran.reference)["one"]
    summary = report.summarise("one", row, ran, target)
    # (83 + 84 + 85.5) / 3 = 84.1667; deviations -1.1667 -0.1667 1.3333: sqrt((1.3611 + 0.0278 + 1.7778) / 2) = 1.2583
    assert summary["accuracy"]["mean"] == pytest.approx(84.1667, abs=1e-4)
    assert summary["accuracy"]["std"] == pytest.approx(1.2583, abs=1e-4)
    assert summary["accuracy"]["n"] == 3
    assert summary["accuracy"]["values"] == [83.0, 84.0, 85.5]
    assert summary["blocks"]["1"]["mean"] == pytest.approx(84.1667 / 2, abs=1e-4)
    assert summary["blocks"]["2"] == summary["accuracy"]
    assert summary["seconds"] == 10 + 11 + 12
    assert summary["test_images"] == 10_000
    assert summary["device"] == "A GPU, cpu"
    assert (summary["experiment"], summary["seeds"]) == ("one", [0, 1, 2])
    assert summary["target"] == {
        "kind": "published",
        "mean": 83.51,
        "std": 0.78,
        "n": None,
        "values": None,
        "source": "Someone, Table 1",
        "decimals": 2,
        "row": None,
        "seeds": None,
    }
    assert json.loads(json.dumps(summary)) == summary


def test_a_cpu_is_named_with_its_threads():
    cpu = {"device": "cpu", "model": "A CPU", "threads": 2}
    for environment, told in {
        **{("gpu", "model", "threads"): "A GPU", ("model", "threads"): "2 threads of A CPU"},
        **{("threads",): "2 threads of a CPU", ("model",): "A CPU", (): "cpu"},  # a portable one names no model
    }.items():
        facts = {"device": "cpu"} | {name: {**cpu, "gpu": "A GPU"}[name] for name in environment}
        assert results.devices([{"record": {"environment": facts}}] * 2) == told
    runs = [{"record": {"environment": one}} for one in (cpu, {**cpu, "threads": 1})]
    assert results.devices(runs) == "1 thread of A CPU, 2 threads of A CPU"


def test_one_seed_has_no_spread(ran, row):
    alone = row.model_copy(update={"seeds": (1,)})
    for seed in (0, 2):
        for path in ran.run("one", seed).iterdir():
            path.unlink()
        ran.run("one", seed).rmdir()
    summary = report.summarise("one", alone, ran, None)
    assert summary["accuracy"] == {"mean": 84.0, "std": None, "n": 1, "values": [84.0]}
    assert summary["target"] is None


# tables


@pytest.mark.parametrize(
    ("mean", "std", "n", "text"),
    [
        (83.51, 0.78, None, "83.51 ± 0.78"),
        (84.16666, 1.25831, 3, "84.17 ± 1.26 (n = 3)"),
        (84, None, 1, "84.00 (n = 1)"),
        (100, 0.0, 2, "100.00 ± 0.00 (n = 2)"),
    ],
)
def test_percent_prints_mean_spread_and_n_as_far_as_known(mean, std, n, text):
    assert report.percent({"mean": mean, "std": std, "n": n}) == text


def cells(markdown):
    """A Markdown table as rows of cells."""
    header, rule, *rows = (line.removeprefix("| ").removesuffix(" |").split(" | ") for line in markdown.splitlines())
    assert set(rule) == {"---"}
    assert {len(line) for line in (header, rule, *rows)} == {len(header)}
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_table_has_the_same_cells_in_markdown_and_csv(ran, row):
    judge(ran, "one", row)
    printed = tables.write_all(ran)
    assert ran.table("md").read_text() == printed
    printed = printed.split("\n\n")[0]
    with ran.table("csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == cells(printed) == report.table(ran)
    one, two = cells(printed)
    blocks = str(len(row.network.parsed()))
    assert one == {
        "experiment": "one",
        "data set": "mnist",
        "blocks": blocks,
        "accuracy (%)": "84.17 ± 1.26 (n = 3)",
        "target (%)": "83.51 ± 0.78 published",
        "difference": "+0.66",
        "verdict": "inconclusive",  # 2.9200 * 1.2583 / sqrt(3) = 2.12 around 0.66 is not within 1.5
        "not worse": "not worse",  # 0.66 - 2.12 = -1.46
        "device": "A GPU, cpu",
        "seconds a seed": "11",
        "results": "here",
    }
    assert (two["experiment"], two["accuracy (%)"], two["target (%)"], two["verdict"]) == (
        "two",
        "not run",
        "none",
        "not run",
    )
    assert two["difference"] == two["device"] == two["seconds a seed"] == ""


def test_without_any_run_every_row_says_not_run(small):
    for line in cells(tables.write_all(small).split("\n\n")[0]):
        assert (line["accuracy (%)"], line["verdict"]) == ("not run", "not run")


def test_a_row_without_a_target_has_no_difference(small):
    row = config.load(small.params).experiments["two"]
    for seed, accuracy in ACCURACIES.items():
        write_run(small, row, seed, accuracy, "two")
    judge(small, "two", row)
    line = report.table(small)[1]
    assert (line["target (%)"], line["difference"], line["verdict"]) == ("none", "", "inconclusive")
    assert line["accuracy (%)"] == "84.17 ± 1.26 (n = 3)"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("params.yaml", "seeds: [0, 1, 2]", "seeds: [0, 1]"),
        ("params.yaml", "margin: 1.5", "margin: 2.5"),
        ("params.yaml", "One | first", "First"),
        ("paper.yaml", "mean: 83.51", "mean: 84.51"),
        ("paper.yaml", "  one: {mean: 83.51, std: 0.78, source: someone}", "  {}"),
    ],
)
def test_a_verdict_from_before_an_edit_counts_as_not_run(ran, row, file, old, new):
    judge(ran, "one", row)
    assert report.table(ran)[0]["verdict"] == "inconclusive"
    text = (ran.root / file).read_text()
    assert old in text
    (ran.root / file).write_text(text.replace(old, new))
    line = report.table(ran)[0]
    measured = "not run" if file == "params.yaml" else "84.17 ± 1.26 (n = 3)"  # another target leaves it what it is
    assert (line["accuracy (%)"], line["difference"], line["verdict"]) == (measured, "", "not run")
    cell = tables.read(ran)[0].rows[0]
    assert (cell["experiment"], cell["ours (%)"], cell["verdict"]) == ("one", measured, "not run")


def test_a_cell_cannot_break_the_table():
    text = report.markdown(["a", "b"], [["x | y", "two\nlines"]])
    assert text == "| a | b |\n| --- | --- |\n| x \\| y | two lines |\n"


# What a person reads


def test_the_sentence_names_measured_target_rule_and_outcome(ran, row):
    assert report.sentence(judge(ran, "one", row)) == (
        "one: test accuracy in percent 84.17 ± 1.26 (n = 3), on A GPU, cpu, 33 s of training\n"
        "target:  83.51 ± 0.78, published: Someone, Table 1\n"
        "rule:    the 90 % interval of (measured - target) lies within ±1.5 points (TOST at 0.05)\n"
        "verdict: inconclusive: the interval is [-1.46, +2.78], p = 0.1828\n"
        "one-sided reading: not worse: the lower bound at 0.05, -1.46, lies above -1.5, p = 0.0486\n"
        "bootstrap interval over seeds: [-0.18, +1.49] (too narrow for few seeds; no say)\n"
        "sampling error: another test set of 10000 images would add ±0.37 points to a run (binomial standard error; "
        "not in the interval, since all runs share one test set)\n"
        'power: 52 % to say "reproduced" with n = 3 if the true mean is the target; 80 % takes 5 seeds '
        "(by the published spread, 0.78 points)"
    )


def test_the_sentence_of_a_row_without_a_target(ran, row):
    ran.paper.write_text("sources: {}\ntargets: {}\ntables: {}\nclaims: {}\n")
    text = report.sentence(judge(ran, "one", row))
    assert "\ntarget:  none\n" in text
    assert "\nverdict: inconclusive: no published or reference value to compare with\nsampling error: " in text
    assert "power" not in text
    assert "one-sided" not in text


@pytest.mark.parametrize(
    ("p", "text"), [(None, "so"), (0.04823, "so, p = 0.0482"), (1.0, "so, p = 1.0000"), (0.0, "so, p < 0.0001")]
)
def test_p_in_words(p, text):
    assert report.with_p("so", p) == text


def test_the_overview_names_what_a_row_is_needs_and_costs(small, row):
    for seed, accuracy in {3: 84.0, 4: 85.0}.items():
        write_run(Layout(small.root, "results"), row, seed, accuracy)
    report.write_reference("one", row, Layout(small.root, "results"), "2 cores, no GPU")
    text = report.overview(small)
    assert "One \\| first" in text
    one, two = cells(text.replace("\\|", "/"))
    assert one == {
        "experiment": "one",
        "what": "One / first",
        "data set": "mnist",
        "blocks": row.network.blocks,
        "needs": "CUDA",
        "seeds": "3",
        "cost a seed": "14 s on 2 cores, no GPU",
        "published (%)": "83.51 ± 0.78",
        "measured (%)": "84.50 ± 0.71 (n = 2)",
    }
    assert (two["needs"], two["cost a seed"], two["published (%)"], two["measured (%)"]) == (
        "CPU",
        "not run",
        "none",
        "not run",
    )
    assert two["blocks"] == "8 8P 8"


# The reference


def with_reference(small, name="two", accuracies=((3, 84.0), (4, 85.0))):
    project, row = Layout(small.root, "results"), config.load(small.params).experiments[name]
    for seed, accuracy in accuracies:
        write_run(project, row, seed, accuracy, name)
    return report.write_reference(name, row, project, "2 cores, no GPU")


def test_a_reference_written_is_the_target_read(small):
    assert "two" not in targets.read_targets(small.paper, small.reference)
    entry = with_reference(small)
    found = targets.read_targets(small.paper, small.reference)["two"]
    assert (found.kind, found.mean, found.n) == ("reference", 84.5, 2)
    assert found.std == statistics.stdev([84.0, 85.0])
    assert found.source == "results/reference.json: `ffrepro reference two` on 2 cores, no GPU, ffrepro 0.1.0"
    assert report.percent(entry) == "84.50 ± 0.71 (n = 2)"
    written = targets.read_references(small.reference)["two"]
    assert (written.seeds, written.values, written.seconds) == ((3, 4), (84.0, 85.0), 13.5)
    row = config.load(small.params).experiments["two"]
    assert written.row == targets.measured(row)


@pytest.mark.parametrize(("section", "field", "value"), [("training", "lr", 0.5), ("evaluation", "vote", "all")])
def test_a_reference_of_other_parameters_is_no_target(small, section, field, value):
    with_reference(small)
    known, row = targets.read_targets(small.paper, small.reference), config.load(small.params).experiments["two"]
    assert targets.target_of(known, "two", row) == known["two"]
    edited = row.model_copy(update={section: getattr(row, section).model_copy(update={field: value})})
    assert targets.target_of(known, "two", edited) is None


def test_a_reference_of_other_seeds_is_no_target(small):
    """Else a row could declare the reference's seeds for its own, and be compared with itself."""
    with_reference(small)
    row = config.load(small.params).experiments["two"]
    moved = row.model_copy(
        update={"seeds": (3, 4), "verdict": row.verdict.model_copy(update={"reference_seeds": (0, 1)})}
    )
    known, written = targets.read_targets(small.paper, small.reference), targets.read_references(small.reference)
    assert targets.target_of(known, "two", row)
    assert targets.reference_of(written, "two", row)
    assert targets.target_of(known, "two", moved) is None
    assert targets.reference_of(written, "two", moved) is None


def test_a_reference_of_one_seed_has_no_spread(small):
    text = small.params.read_text()
    assert "reference_seeds: [3, 4]" in text
    small.params.write_text(text.replace("reference_seeds: [3, 4]", "reference_seeds: [3]"))
    assert report.percent(with_reference(small, accuracies=[(3, 84.0)])) == "84.00 (n = 1)"
    found = targets.read_targets(small.paper, small.reference)["two"]
    assert (found.std, found.n) == (None, 1)
    assert "84.00 (n = 1)" in report.overview(small)


def test_a_reference_leaves_the_others_alone(small):
    with_reference(small)
    before = record.read_json(small.reference)
    with_reference(small, "one", [(3, 90.0), (4, 91.0)])
    assert record.read_json(small.reference)["two"] == before["two"]
    with_reference(small, "two", [(3, 70.0), (4, 71.0)])
    after = record.read_json(small.reference)
    assert after["one"]["values"] == [90.0, 91.0]
    assert after["two"]["values"] == [70.0, 71.0]


def test_a_published_value_goes_before_a_reference(small):
    with_reference(small, "one", [(3, 90.0), (4, 91.0)])
    assert targets.read_targets(small.paper, small.reference)["one"].kind == "published"


def test_a_reference_takes_exactly_its_declared_seeds(small):
    with_reference(small)
    write_run(Layout(small.root, "results"), config.load(small.params).experiments["two"], 5, 99.0, "two")
    assert one_line(with_reference, small).startswith("results/two: run 5 is of no declared seed (0, 1, 2, 3, 4)")
    assert targets.read_references(small.reference)["two"].values == (84.0, 85.0)


def test_a_reference_can_be_measured_beside_released_runs(small):
    release(small, "two", {0: 80.0})
    with_reference(small)
    assert targets.read_references(small.reference)["two"].values == (84.0, 85.0)


# Released runs


def release(small, name, accuracies):
    """Runs of a row's own seeds in results, as `pipelines.release` leaves them, as far as is read of them."""
    place, row = Layout(small.root, "results"), config.load(small.params).experiments[name]
    for seed, accuracy in accuracies.items():
        write_run(place, row, seed, accuracy, name)


ALL = {0: 76.0, 1: 77.0, 2: 78.0}


def test_released_runs_of_some_seeds_are_told_and_not_judged(small):
    release(small, "one", {0: 76.0, 2: 78.0})
    found = results.known(small)["one"]
    assert found == results.Result("released", targets.spread([76.0, 78.0]), [0, 2], 11.0, "A GPU", "2 of 3 seeds")
    one, two = cells(report.overview(small).replace("\\|", "/"))
    assert (one["cost a seed"], one["measured (%)"]) == ("11 s on A GPU", "77.00 ± 1.41 (2 of 3 seeds)")
    assert (two["cost a seed"], two["measured (%)"]) == ("not run", "not run")
    line, other = report.table(small)
    told = {"accuracy (%)": "77.00 ± 1.41 (n = 2)", "difference": "", "verdict": "2 of 3 seeds", "not worse": ""}
    assert line.items() >= (told | {"device": "A GPU", "seconds a seed": "11", "results": "released"}).items()
    assert (other["accuracy (%)"], other["verdict"], other["results"]) == ("not run", "not run", "")
    line = tables.read(small)[0].rows[0]
    assert [line[column] for column in ("ours (%)", "difference", "verdict", "results")] == [
        "77.00 ± 1.41 (n = 2)",
        "-6.51",
        "2 of 3 seeds",
        "released",
    ]
    assert "upper.left.mean" not in tables.numbers(small)
    assert "upper.left.paper" in tables.numbers(small)
    (claim,) = claims.read(small)
    told = ("not run", "no results of one (2 of 3 seeds), two", [])
    assert (claim["verdict"], claim["why"], claim["sources"]) == told
    told = tables.explain(small, "both.upper.left").splitlines()
    assert "ours: 77.00 ± 1.41 (2 of 3 seeds), results/one, 11 s of training a seed, A GPU" in told
    assert "runs are not committed" not in "".join(told)
    assert figure_data.found(small)["one"].seeds == (0, 2)
    assert len(figure_data.whole_runs(figure_data.found(small)["one"])) == 2


@pytest.mark.parametrize(("offset", "word"), [(0.0, "reproduced"), (-9.0, "not reproduced"), (-1.5, "inconclusive")])
def test_released_runs_of_all_seeds_are_judged_by_the_rule(small, offset, word):
    release(small, "one", {seed: 83.51 + offset + add for seed, add in ((0, -0.1), (1, 0.1), (2, 0.0))})
    assert results.known(small)["one"].gap == ""
    # what files alone tell, without weights, never counts as "reproduced"
    told = "inconclusive" if word == "reproduced" else word
    assert [tables.read(small)[0].rows[0]["verdict"], report.table(small)[0]["verdict"]] == [told] * 2
    for seed in ALL:
        (small.root / "results" / "one" / str(seed) / "weights.safetensors").touch()
    assert tables.read(small)[0].rows[0]["verdict"] == word
    line = report.table(small)[0]
    assert (line["verdict"], line["difference"], line["results"]) == (word, f"{offset:+.2f}", "released")
    assert line["not worse"] == ("not worse" if word == "reproduced" else "not shown")
    assert ".upper.left.mean" in tables.numbers(small)
    with_reference(small)
    (claim,) = claims.read(small)
    assert claim["sources"] == ["committed", "released"]


def test_a_summary_that_its_runs_do_not_bear_out_counts_as_none(ran, row):
    """Nor does the verdict's word count, which its rule gives anew."""
    judge(ran, "one", row)
    honest = record.read_json(ran.summary("one"))
    word = results.verdict_on(ran, "one", row, results.known(ran)["one"], None)
    assert word is None  # of another target
    target = targets.target_of(targets.read_targets(ran.paper, ran.reference), "one", row)
    content = record.read_json(ran.verdict("one"))
    assert content["verdict"] == "inconclusive"
    record.write_json(content | {"verdict": "reproduced", "accuracy": targets.spread([83.51] * 3)}, ran.verdict("one"))
    judged = results.verdict_on(ran, "one", row, results.known(ran)["one"], target)
    assert (judged["verdict"], judged["accuracy"]) == ("inconclusive", honest["accuracy"])
    for accuracy in (
        targets.spread([83.51, *honest["accuracy"]["values"][1:]]),
        {**honest["accuracy"], "mean": 83.51},
        {**honest["accuracy"], "std": 0.1},
    ):
        record.write_json(honest | {"accuracy": accuracy}, ran.summary("one"))
        assert "one" not in results.known(ran)
    record.write_json(honest, ran.summary("one"))
    assert results.known(ran)["one"].accuracy == honest["accuracy"]
    (ran.run("one", 0) / "metrics.json").write_text("{}")  # made again, or damaged, since
    assert "one" not in results.known(ran)


def test_runs_here_go_before_released_ones_and_these_before_a_reference_if_they_are_whole(ran, row):
    def sources():
        return [known(ran)["one"].source for known in (results.known, results.committed)]

    release(ran, "one", {0: 76.0})
    with_reference(ran, "one")
    assert sources() == ["committed", "committed"]
    assert "released beside it: 76.00 (1 of 3 seeds), results/one, A GPU" in tables.explain(ran, "one")
    release(ran, "one", ALL)
    assert sources() == ["released", "released"]
    judge(ran, "one", row)
    assert sources() == ["here", "released"]
    assert tables.read(ran)[0].rows[0]["ours (%)"] == "84.17 ± 1.26 (n = 3)"
    assert "released beside it: 77.00 ± 1.00 (n = 3), results/one, A GPU, cpu" in tables.explain(ran, "one")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"seeds": [0, 7]}, {"one": "1 of 2 seeds"}),
        ({"seeds": [0, 2]}, {"one": ""}),
        ({"seeds": [7, 8]}, {}),
        ({"defaults.training.lr": 0.5}, {}),
        ({"defaults.evaluation.vote": "all"}, {}),
    ],
)
def test_released_runs_of_other_seeds_or_parameters_are_none(small, given, found):
    release(small, "one", ALL)
    assert {name: its.gap for name, its in results.known(small).items()} == {"one": ""}
    document = config.read_yaml(small.params)
    for path, value in given.items():
        *sections, field = path.split(".")
        functools.reduce(dict.__getitem__, sections, document)[field] = value
    YAML(typ="safe").dump(document, small.params)
    assert {name: its.gap for name, its in results.known(small).items()} == found


def test_what_is_not_a_whole_run_in_results_stops_no_command(small):
    release(small, "one", ALL)
    folder = Layout(small.root, "results").run("one", 1)
    (folder / "metrics.json").write_text("{")
    (folder.parent / ".ipynb_checkpoints").mkdir()
    Layout(small.root, "results").run("two", 0).mkdir(parents=True)
    assert {name: its.gap for name, its in results.known(small).items()} == {"one": "2 of 3 seeds"}


ENTRY = {
    "seeds": [3, 4],
    "values": [84.0, 85.0],
    "mean": 84.5,
    "std": statistics.stdev([84.0, 85.0]),
    "seconds": 1.0,
    "row": "0" * 64,
    "command": "ffrepro reference two",
    "machine": "2 cores",
    "ffrepro": "0.1.0",
}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"two": 3}',
        *(
            json.dumps({"two": {**ENTRY, **change}})
            for change in (
                {"mean": 84.6},
                {"std": 0.5},
                {"std": None},
                {"values": [84.0]},
                {"values": []},
                {"values": [84.0, "85.0"]},
                {"values": [84.0, 185.0]},
                {"seeds": [3, 3]},
                {"more": 1},
            )
        ),
    ],
)
def test_a_reference_that_does_not_add_up_is_refused(small, content):
    record.write_json({"two": ENTRY}, small.reference)
    assert targets.read_targets(small.paper, small.reference)["two"].mean == 84.5
    small.reference.write_text(content)
    line = "reference.json: not what `ffrepro reference` writes; restore the committed file"
    assert one_line(targets.read_targets, small.paper, small.reference) == line
    assert one_line(with_reference, small, "one") == line
    assert small.reference.read_text() == content


# paper.yaml


def test_the_papers_values_are_read(root, small):
    assert targets.read_paper(small.paper) == {
        "one": targets.Target(
            kind="published", mean=83.51, std=0.78, n=None, values=None, source="Someone, Table 1", row=None
        )
    }
    assert targets.read_paper(root / "paper.yaml")["cifar10"].mean == 83.51


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("source: someone}", "source: nobody}", "targets.one.source: given 'nobody'; allowed: someone"),
        ("source: someone}", "source: 3}", "targets.one.source: given 3; allowed: text"),
        (
            "std: 0.78",
            "sd: 0.78, std: 1",
            "targets.one.sd: given an unknown key (did you mean std?); allowed: mean, std, decimals, source",
        ),
        ("mean: 83.51", "mean: 835.1", "targets.one.mean: given 835.1; allowed: a number, at least 0, at most 100"),
        ("mean: 83.51", "mean: '83.51'", "targets.one.mean: given '83.51'; allowed: a number, at least 0, at most 100"),
        ("mean: 83.51", "mean: .nan", "targets.one.mean: given nan; allowed: a number, at least 0, at most 100"),
        ("std: 0.78, ", "", "targets.one.std: given nothing; allowed: a number, at least 0, at most 100 or nothing"),
        (
            "sources:",
            "source: 1\nsources:",
            "source: given an unknown key (did you mean sources?); allowed: sources, targets, tables, claims",
        ),
        (
            "  one: {mean: 83.51, std: 0.78, source: someone}",
            "  one: 83.51",
            "targets.one: given 83.51; allowed: a mapping of",
        ),
        ("  one: {", "  One: {", "targets.One: given 'One'; allowed: text like 'cifar10-quick'"),
        ("    pairs: [[upper.left, lower.left]]", "", f"claims.first.pairs: given nothing; allowed: {targets.PAIRS}"),
        *(
            ("[[upper.left, lower.left]]", given, f"claims.first.pairs: given {shown}; allowed: {targets.PAIRS}")
            for given, shown in {
                "[]": "[]",
                "a.b": "'a.b'",
                "[a.b, c.d]": "['a.b', 'c.d']",
                "[[a.b, a.b]]": "[['a.b', 'a.b']]",
                "[[a.b, c.d], [a.b, c.d]]": "[['a.b', 'c.d'], ['a.b', 'c.d']]",
                "[[a.b, c.d, e.f]]": "[['a.b', 'c.d', 'e.f']]",
                "[[A.b, c.d]]": "[['A.b', 'c.d']]",
                "[[one, two]]": "[['one', 'two']]",
                "[[1, 2]]": "[[1, 2]]",
                "[{}]": "[{}]",
            }.items()
        ),
        ("[both]", "[]", "claims.first.tables: given []; allowed: "),
        ("[both]", "[none]", "claims.first.tables: given 'none'; allowed: both"),
        (
            "[[upper.left, lower.left]]",
            "[[upper.left, lower.right]]",
            "claims.first.pairs: given 'lower.right'; allowed: cells of both: upper.left, lower.left",
        ),
        ("title: Both & all, ", "", "tables.both.title: given nothing; allowed: text of 1 to 120 characters"),
        (
            "rows: {upper: {left: one}, lower: {left: two}}",
            "rows: {}",
            "tables.both.rows: given {}; allowed: a mapping",
        ),
        ("{left: two}", "{left: Two}", "tables.both.rows.lower.left: given 'Two'; allowed: text like 'cifar10-quick'"),
        ("each: false", "each: 1", "claims.first.each: given 1; allowed: true or false"),
        ("    each: false\n", "", "claims.first.each: given nothing; allowed: true or false"),
        ("claim: One beats two", "claim: ''", "claims.first.claim: given ''; allowed: text of 1 to 200 characters"),
        (
            "    each:",
            "    clam: 1\n    each:",
            "claims.first.clam: given an unknown key (did you mean claim?); allowed: ",
        ),
        ("  first:", "  First:", "claims.First: given 'First'; allowed: text like 'cifar10-quick'"),
        (PAPER, "", "given nothing; allowed: a mapping of sources, targets, tables, claims"),
        (PAPER, "a: [", "line 1: not valid YAML 1.2: "),
    ],
)
def test_a_mistake_in_paper_yaml_is_one_line(small, old, new, line):
    assert old in PAPER
    small.paper.write_text(PAPER.replace(old, new))
    assert one_line(targets.read_paper, small.paper).startswith(f"paper.yaml: {line}")


def test_every_unknown_source_has_its_line(small):
    two = "someone}\n  two: {mean: 1, std: 1, source: anybody}".replace("someone", "nobody")
    small.paper.write_text(PAPER.replace("someone}", two).replace("source: someone\n", "source: somebody\n"))
    with pytest.raises(UserError) as caught:
        targets.read_paper(small.paper)
    assert str(caught.value).splitlines() == [
        "paper.yaml: targets.one.source: given 'nobody'; allowed: someone",
        "paper.yaml: targets.two.source: given 'anybody'; allowed: someone",
        "paper.yaml: claims.first.source: given 'somebody'; allowed: someone",
    ]


def test_a_missing_paper_yaml_is_one_line_and_a_missing_reference_is_none(small):
    small.paper.unlink()
    assert one_line(targets.read_paper, small.paper).startswith("paper.yaml: no such file; ")
    assert targets.read_references(small.reference) == {}


def test_spread_by_hand():
    assert targets.spread([1.0, 2.0, 3.0, 6.0]) == {
        "mean": 3.0,
        "std": pytest.approx(2.1602, abs=1e-4),  # sqrt((4 + 1 + 0 + 9) / 3)
        "n": 4,
        "values": [1.0, 2.0, 3.0, 6.0],
    }


def test_report_and_verdict_need_no_torch():
    code = (
        "import sys, ffrepro.report, ffrepro.verdict; print(sorted({'torch', 'dvc', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
