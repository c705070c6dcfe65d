"""The ladder: what holds is told so, and whatever was changed is found, with the link that broke."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import save

from ffrepro import (
    audit,
    checkpoint,
    config,
    crate,
    devices,
    evaluation,
    evidence,
    layout,
    negatives,
    proof,
    record,
    training,
)
from ffrepro.engine import Engine
from ffrepro.errors import UserError
from ffrepro.pipeline import prepared
from ffrepro.step import optimizers
from ffrepro.targets import Reference, Target, spread

CPU = torch.device("cpu")
NO_REFERENCE = "no reference for this key (seed, parameters, data, code, environment)"
FILES = ("record.json", "metrics.json", "history.csv", "weights.safetensors", "goodness.safetensors")
NO_TIME = "broken link: no record: {}: Value error, not as `checkpoint.now` writes it"


@pytest.fixture(scope="module")
def home(project_in, tmp_path_factory):
    """A project with two seeds of a small row, trained by the stages, every epoch's state kept."""
    project = project_in(tmp_path_factory.mktemp("trained"))
    project.shrink("4 4P 4", epochs=3)
    project.stages(["check", "digits"], ["prepare", "digits"])
    for seed in ("0", "1"):
        project.stages(["train", "digits", seed], ["evaluate", "digits", seed], FFREPRO_KEEP="1")
    return project


@pytest.fixture(scope="module")
def trained(home):
    return layout.Layout(home.root)


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the row's runs, for a test to change: (folder of seed 0, its kept states)."""
    shutil.copytree(trained.root / "runs", tmp_path / "runs")
    shutil.copytree(trained.root / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "runs" / "digits" / "0", tmp_path / "checkpoints" / "digits-0"


def splits(trained):
    return prepared(trained, config.read_experiment(trained.experiment("digits")), {})


def climb(folder, trained, references=()):
    return {rung.what: rung for rung in proof.ladder(evidence.read(folder), splits(trained), list(references), CPU)}


def broken(folder, trained):
    with pytest.raises(UserError) as error:
        climb(folder, trained)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def reseal(path, **changes):
    """What a forger does who knows how records are sealed."""
    record.write_sealed({**record.read_json(path), **changes}, path)


def test_an_honest_run_holds_on_every_rung(runs, trained):
    facts = record.read_json(runs[0] / "record.json")
    rungs = climb(runs[0], trained)
    accuracy = rungs["metrics"].accuracy
    assert list(rungs.values()) == [
        proof.Rung("record", f"sealed, of digits, seed 0, ffrepro {facts['ffrepro']}"),
        proof.Rung("chain", f"3 epochs, unbroken from the parameters to the weights {facts['weights'][:12]}"),
        proof.Rung("code", "this version's"),
        proof.Rung("data", "digits, training and test split: the same bytes as here"),
        proof.Rung("initial weights", f"{facts['initial_weights'][:12]}, made again from the seed"),
        proof.Rung("precision", "evaluated in float32"),
        proof.Rung("goodness", "10800 values from the weights: the same bits"),
        proof.Rung("metrics", f"{accuracy:.2f} % of 360 test images, from weights and labels", accuracy=accuracy),
        proof.Rung("bitwise", NO_REFERENCE, None),
    ]


def test_a_run_of_another_version_is_told_of(runs, trained):
    mine = record.code_hash()[:12]
    rechain(runs[0], {}, code="0" * 64)
    rungs = climb(runs[0], trained)
    assert rungs["code"] == proof.Rung("code", f"another version's ({'0' * 12}, here {mine})", None)
    assert rungs["initial weights"].holds
    rechain(runs[0], {}, initial_weights="0" * 64)
    says = "other ones from the same seed, by this version's code"
    assert climb(runs[0], trained)["initial weights"] == proof.Rung("initial weights", says, None)


def test_a_run_without_deterministic_kernels_is_compared_with_none(runs, trained):
    known = record.read_json(runs[0] / "record.json")["environment"]
    reseal(runs[0] / "record.json", environment={**known, "kernels": "fast"})
    path = runs[0] / "another.json"
    shutil.copy(runs[0] / "record.json", path)
    reseal(path, history="0" * 64, started="2020-01-01T00:00:00+00:00")
    says = "trained with --fast, which promises no bits"
    assert climb(runs[0], trained, [path])["bitwise"] == proof.Rung("bitwise", says, None)


def test_metrics_of_fewer_images_sealed_anew(runs, trained):
    table = record.read_tensors(runs[0] / "goodness.safetensors")["goodness"][:100]
    record.write_tensors({"goodness": table}, runs[0] / "goodness.safetensors")
    reseal(runs[0] / "metrics.json", images=100, goodness_table=record.tensors_hash({"goodness": table}))
    assert broken(runs[0], trained).endswith("metrics.json: broken link: of 100 images, not 360")


def test_pairs_that_float32_did_not_decide(runs, trained, row, digits, tmp_path):
    reseal(runs[0] / "metrics.json", decided_in_float32=777)
    assert broken(runs[0], trained).endswith("metrics.json: broken link: pairs decided in float32, as all is")
    chosen = row(precision="bfloat16", blocks="4 4P 4", epochs=1)
    network = training.train(chosen, 0, digits[0]).network
    table, metrics = evaluation.evaluate(network, digits[1], chosen)
    run = evidence.Run(tmp_path, chosen, {"seed": 0}, metrics, network.state_dict(), table)
    precision, goodness, _ = proof._metrics(run, digits, CPU)
    pairs = metrics["decided_in_float32"]
    assert pairs > 0
    assert f"with {100 * pairs / 3600:.1f} % of all pairs decided in float32, 0 are not float32's" in precision.found
    assert goodness.found.endswith("the same bits")
    with pytest.raises(UserError, match=f"broken link: {pairs + 1} pairs decided in float32, not {pairs}$"):
        list(proof._metrics(run._replace(metrics={**metrics, "decided_in_float32": pairs + 1}), digits, CPU))


def test_what_half_precision_would_decide_is_counted():
    def table(*images):  # goodness of two blocks, of which the last votes; the first says label 2 of every image
        last = torch.tensor(images)
        return torch.stack((torch.tensor([[0.0, 0.0, 9.0]]).expand_as(last), last), 2)

    full = table([1.0, 3.0, 2.0], [5.0, 6.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    half = table([4.0, 3.0, 2.0], [6.0, 5.7, 0.0], [1.0, 0.0, 0.9], [0.0, 1.0, 0.0])
    decided = torch.cat((full[:1], half[1:]))
    rung = proof._precision(decided, half, full, "last", 3)
    assert rung == proof.Rung(
        "precision",
        "half precision alone would change 2 of 4 predictions, with a lead of 25 % at most; "
        "with 25.0 % of all pairs decided in float32, 1 are not float32's",
        None,
    )
    assert proof._precision(full, half, full, "last", 6).holds is True
    nothing = "half precision alone would change 0 of 4 predictions; with 0.0 % of all pairs decided in float32, 0 are"
    rung = proof._precision(half, full, full, "all", 0)  # by all blocks, label 2 wins of every image
    assert (rung.found, rung.holds) == (f"{nothing} not float32's", True)


def test_the_twins_goodness_is_float32s_and_so_is_the_rounding_allowed_it(row, digits, tmp_path):
    chosen = row(precision="bfloat16", blocks="4 4P", epochs=1, update="backprop", loss="cross-entropy")
    network = training.train(chosen, 0, digits[0]).network
    table, metrics = evaluation.evaluate(network, digits[1], chosen)
    metrics["environment"] = {}  # another machine's
    run = evidence.Run(tmp_path, chosen, {"seed": 0}, metrics, network.state_dict(), table)
    assert "within" not in [rung.found for rung in proof._metrics(run, digits, CPU)][1]
    with pytest.raises(UserError, match=r"rounding \(0.1 %"):
        list(proof._metrics(run._replace(goodness=table * 1.01), digits, CPU))


def test_without_data_the_rungs_that_need_it_cannot_be_told(runs):
    rungs = list(proof.ladder(evidence.read(runs[0]), None, [], CPU))
    assert [rung for rung in rungs if rung.holds is None] == [
        proof.Rung("data", "not at hand: `ffrepro fetch` brings them", None),
        proof.Rung("metrics", "cannot be told without the test labels", None),
        proof.Rung("bitwise", NO_REFERENCE, None),
    ]


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_found(runs, trained, name):
    path, data = runs[0] / name, splits(trained)
    content = path.read_bytes()
    places = [*range(0, len(content), max(1, len(content) // 2500))]  # every byte, or one in a few
    if name == "goodness.safetensors":  # its header, and of the large table, of which there is one hash, one in 100
        places = [*range(400), *range(400, len(content), 100)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            run = evidence.read(runs[0])
            list(proof._metrics(run, data, CPU))
        except UserError:
            continue
        pytest.fail(f"{name}: byte {place} of {len(content)} changed, and nothing noticed")


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_longer_file_is_found(runs, name):
    content = (runs[0] / name).read_bytes()
    for changed in (b"", content[:-1], content + b"\n", content + content):
        (runs[0] / name).write_bytes(changed)
        with pytest.raises(UserError):
            evidence.read(runs[0])


def test_an_accuracy_that_goodness_does_not_give(runs, trained):
    reseal(runs[0] / "metrics.json", accuracy=99.9)
    assert "metrics.json: broken link: accuracy is not what goodness and labels give" in broken(runs[0], trained)


def test_goodness_that_the_weights_do_not_give(runs, trained):
    _, test = splits(trained)
    table = torch.rand(len(test.labels), 10, 3)
    table[torch.arange(len(test.labels)), test.labels, 2] = 2.0  # every image right
    digest = record.write_tensors({"goodness": table}, runs[0] / "goodness.safetensors")
    from ffrepro.evaluation import metrics

    reseal(runs[0] / "metrics.json", **metrics(table, test.labels, "last"), goodness_table=digest)
    assert evidence.read(runs[0]).metrics["accuracy"] == 100
    assert "goodness.safetensors: broken link: not the goodness of these weights" in broken(runs[0], trained)
    reseal(runs[0] / "metrics.json", environment={"device": "another"})  # where bits may differ, and not by so much
    assert "more than another machine's rounding" in broken(runs[0], trained)


def elsewhere(runs, trained, change):
    """Goodness changed, and metrics made of it and said to be another machine's, where bits may differ."""
    from ffrepro.evaluation import metrics

    _, test = splits(trained)
    table = evidence.read(runs[0]).goodness.clone()
    change(table, test.labels)
    digest = record.write_tensors({"goodness": table}, runs[0] / "goodness.safetensors")
    values = metrics(table, test.labels, "last")
    reseal(runs[0] / "metrics.json", **values, goodness_table=digest, environment={"device": "another"})
    return values["accuracy"]


def test_rounding_of_another_machine_passes_and_what_counts_is_computed_here(runs, trained):
    honest = evidence.read(runs[0]).metrics["accuracy"]
    elsewhere(runs, trained, lambda table, _: table.mul_(1.0005))
    rungs = climb(runs[0], trained)
    assert rungs["goodness"].found.startswith("from the weights within 0.05 % (by another version, or not")
    assert rungs["metrics"].accuracy == honest


def test_an_accuracy_made_of_allowed_rounding_is_found(runs, trained):
    """Every value within the allowance, and yet every close image right."""

    def nudge(table, labels):
        true = torch.nn.functional.one_hot(labels, 10).bool()
        table[..., 2] *= torch.where(true, 1.0009, 0.9991)

    honest = evidence.read(runs[0]).metrics["accuracy"]
    forged = elsewhere(runs, trained, nudge)
    if forged > honest + 0.5:
        assert "predictions differ: more than another machine's rounding" in broken(runs[0], trained)
    else:  # few images are that close: it passes, and counts for nothing
        assert climb(runs[0], trained)["metrics"].accuracy == honest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_goodness_that_is_no_number_is_refused(runs, trained, value):
    def no_number(table, labels):
        table[torch.arange(len(labels)), labels, 2] = value

    elsewhere(runs, trained, no_number)
    assert "finite float32 values" in broken(runs[0], trained)


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(360, 10, 3)},
        {"goodness": torch.zeros(360, 10)},
        {"goodness": torch.zeros(360, 10, 3).double()},
    ],
)
def test_a_goodness_file_of_another_shape(runs, trained, tensors):
    digest = record.write_tensors(tensors, path := runs[0] / "goodness.safetensors")
    reseal(runs[0] / "metrics.json", goodness_table=digest)
    assert broken(runs[0], trained) == f"{path}: broken link: no table of (360, 10, 3) finite float32 values"


def test_without_the_goodness_file_the_weights_tell(runs, trained):
    (runs[0] / "goodness.safetensors").unlink()
    rungs = climb(runs[0], trained)
    assert rungs["goodness"].holds
    assert rungs["metrics"].accuracy == evidence.read(runs[0]).metrics["accuracy"]
    reseal(runs[0] / "metrics.json", goodness_table="0" * 64)
    assert broken(runs[0], trained).endswith("metrics.json: broken link: goodness_table is not of these weights")


@pytest.mark.parametrize(
    "changed",
    [{"device": None}, {"gpu": 3}, {"model": "a\x1b[2J"}, {"threads": 0}, {"threads": "2"}, {"threads": 5000}],
)
def test_an_environment_that_tables_could_not_print_is_refused(runs, changed):
    facts = record.read_json(runs[0] / "record.json")
    reseal(runs[0] / "record.json", environment={**facts["environment"], **changed})
    with pytest.raises(UserError, match=r"record\.json: .*environment"):
        evidence.read(runs[0])


@pytest.mark.parametrize(
    "where",
    [{"environment": {"device": "another"}}, {"environment": "of a record without a processor"}, {"code": "0" * 64}],
)
def test_without_the_goodness_file_another_machines_metrics_must_be_near_what_the_weights_give(runs, trained, where):
    if where == {"environment": "of a record without a processor"}:
        known = record.read_json(runs[0] / "metrics.json")["environment"]
        where = {"environment": {name: value for name, value in known.items() if name != "processor"}}
    (runs[0] / "goodness.safetensors").unlink()
    reseal(runs[0] / "metrics.json", **where, goodness_table="0" * 64)
    honest = evidence.read(runs[0]).metrics
    rungs = climb(runs[0], trained)
    assert rungs["goodness"].holds is None
    assert rungs["goodness"].found.endswith("its accuracies are within 0.00 points")
    assert rungs["metrics"].accuracy == honest["accuracy"]
    image = 100 / 360
    for changed, says in (
        ({"accuracy": honest["accuracy"] + 2 * image}, "accuracy is 0.56 points off what the weights give: more than"),
        ({"accuracy": 99.9}, "accuracy is "),
        ({"blocks": {**honest["blocks"], "2": 0.0}}, "blocks 2 is "),
        ({"votes": {**honest["votes"], "all": 101.0}}, "votes all is "),
        ({"blocks": {"1": honest["blocks"]["1"]}}, "of another vote, other blocks or other images than the row's"),
        ({"vote": "all"}, "of another vote, other blocks or other images than the row's"),
    ):
        reseal(runs[0] / "metrics.json", **{**honest, **changed})
        assert f"metrics.json: broken link: {says}" in broken(runs[0], trained)
    reseal(runs[0] / "metrics.json", **{**honest, "accuracy": honest["accuracy"] - image})
    assert climb(runs[0], trained)["goodness"].found.endswith("within 0.28 points")


def test_goodness_of_other_images_gives_no_accuracy(tmp_path):
    table, labels = torch.ones(3, 10, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match=r"m\.json: broken link: goodness of 3 images, not 4$"):
        evidence.require_accuracies(tmp_path / "m.json", {}, table, labels, "last")


def test_a_cpu_evaluates_a_row_of_float16_in_float32(row, digits, tmp_path):
    """And holds nothing of it to bits, wherever it was evaluated."""
    chosen, test = row(precision="float16", blocks="4 4P"), digits[1][torch.arange(20)]
    network = training.build(chosen, 0, CPU)
    facts = {"seed": 0, "experiment": "mine"}
    here = {"code": record.code_hash(evaluation.CODE), "environment": record.environment(CPU)}
    run = evidence.Run(tmp_path, chosen, facts, {**here, "decided_in_float32": 7}, network.state_dict(), None)
    own, exact, rung = proof._evaluated(run, test, CPU)
    assert torch.equal(own, evaluation.goodness_table(network, test.images, evaluation.in_float32(chosen)))
    says = "this machine evaluates in float32; float16 takes a GPU"
    assert (exact, rung) == (False, proof.Rung("precision", says, None))


def test_how_far_goodness_is_off_is_told_in_percent(row, tmp_path):
    """Of 200 images one prediction may be another."""
    run = evidence.Run(tmp_path, row(blocks="4 4P"), {}, {}, None, None)
    table = torch.ones(200, 10, 2)
    table[:, 3] = 4.0

    def tables(moved, share):
        again = table.clone()
        table[:moved, 5] = 4 * (1 - share)
        again[:moved, 5], again[:moved, 3] = 4.0, 4 * (1 - share)
        return again, table

    def compared(moved, share):
        return proof._compared(run, *tables(moved, share), False)

    assert compared(1, 0.0008) == proof.Rung(
        "goodness",
        "from the weights within 0.08 % (by another version, or not certainly in this environment); "
        "1 predictions differ",
    )
    for moved, share, off in ((2, 0.0008, "0.0801"), (1, 0.002, "0.2")):
        with pytest.raises(UserError) as error:
            compared(moved, share)
        assert str(error.value) == (
            f"{tmp_path}/goodness.safetensors: broken link: up to {off} % off the goodness of these weights, {moved} "
            "predictions differ: more than another machine's rounding (0.1 %, 0.5 % of predictions)"
        )

    def released(moved, share):
        again, own = tables(moved, share)
        return proof.released(run._replace(goodness=own), again)

    near = "1 of 200 predictions differ from the run's own, in goodness.safetensors; goodness within 8.7 %"
    assert released(1, 0.08) == near
    with pytest.raises(UserError) as error:
        released(2, 0.08)
    assert str(error.value) == (
        f"{tmp_path}/{layout.RELEASED}: broken link: 2 of 200 predictions differ from the run's goodness: more than "
        "rounding (0.5 %)"
    )


def test_the_accuracy_that_counts_is_allowed_less_than_a_block(row, tmp_path):
    """In half precision a block by itself can be as good as chance."""
    table = torch.eye(10).repeat(20, 1).unsqueeze(2).repeat(1, 1, 2)
    labels = torch.arange(10).repeat(20)
    chosen, own = row(precision="bfloat16", blocks="4 4P"), evaluation.metrics(table, labels, "last")
    assert (own["accuracy"], chosen.evaluated_in) == (100, "bfloat16")

    def told(**changed):
        return proof._told(evidence.Run(tmp_path, chosen, {}, {**own, **changed}, {}, None), table, labels, False)

    rung = told(accuracy=99.5, blocks={**own["blocks"], "1": 98.0})
    assert rung == proof.Rung(
        "goodness",
        "goodness.safetensors not published, and other bits here than metrics.json names; "
        "its accuracies are within 2.00 points",
        None,
    )
    with pytest.raises(UserError, match=r"accuracy is 1\.00 points off .* rounding \(0\.5 points\)$"):
        told(accuracy=99.0)
    with pytest.raises(UserError, match=r"blocks 1 is 2\.01 points off .* rounding \(2 points\)$"):
        told(blocks={**own["blocks"], "1": 97.99})


def test_a_run_evaluated_by_other_code_is_not_held_to_bits(runs, trained):
    """Evaluation changed and training did not: the goodness of an honest run is rounded in another way now."""
    table = evidence.read(runs[0]).goodness * 1.0005
    digest = record.write_tensors({"goodness": table}, runs[0] / "goodness.safetensors")
    values = evaluation.metrics(table, splits(trained)[1].labels, "last")
    path = runs[0] / "metrics.json"
    reseal(path, **values, goodness_table=digest)
    assert "goodness.safetensors: broken link: not the goodness of these weights" in broken(runs[0], trained)
    reseal(path, code="0" * 64)
    assert climb(runs[0], trained)["goodness"].found.startswith("from the weights within 0.05 %")
    older = {name: value for name, value in record.read_json(path).items() if name != "code"}
    record.write_sealed(older, path)  # as long as the training's code is this one, so is the evaluation's
    assert "goodness.safetensors: broken link: not the goodness of these weights" in broken(runs[0], trained)
    rechain(runs[0], {}, code="0" * 64)
    assert climb(runs[0], trained)["goodness"].found.startswith("from the weights within 0.05 %")


def test_without_weights_nothing_is_more_than_told(runs, trained):
    (runs[0] / "weights.safetensors").unlink()
    rungs = climb(runs[0], trained)
    says = "weights not published: taken from goodness.safetensors"
    assert rungs["goodness"] == proof.Rung("goodness", says, None)
    path, run = runs[0] / "weights.safetensors", evidence.read(runs[0])
    with pytest.raises(UserError, match=rf"^{path}: not published$"):
        evidence.network(run, CPU)
    released = runs[0] / layout.RELEASED
    record.write_tensors({"a": torch.ones(1)}, released)
    with pytest.raises(UserError, match=rf"^{path}: not published; --weights released are$"):
        evidence.network(run, CPU)
    with pytest.raises(UserError, match=rf"^{released}: cannot be compared: no goodness\.safetensors beside it$"):
        evidence.network(run._replace(goodness=None), CPU, released=True)
    beside = f"{says}; `ffrepro evaluate digits --weights released` compares it with those"
    assert climb(runs[0], trained)["goodness"] == proof.Rung("goodness", beside, None)
    accuracy = record.read_json(runs[0] / "metrics.json")["accuracy"]
    says = f"{accuracy:.2f} % of 360 test images, from goodness and labels alone"
    assert rungs["metrics"] == proof.Rung("metrics", says, None, accuracy)
    (runs[0] / "goodness.safetensors").unlink()
    assert "nothing to check it by" in broken(runs[0], trained)


def judged(runs, params, accuracies, target, reference=None, holds=(True, True), declared=True, table=True, **rule):
    """The statistics of the two runs as if they were of a row with that rule, its own seeds 0 and 1 or others."""
    row = params.experiments["digits"]
    changed = {"seeds": rule.pop("seeds", (0, 1)), "verdict": row.verdict.model_copy(update=rule)}
    both = [evidence.read(folder) for folder in evidence.runs_of(runs[0].parent)]
    its = {"row": row.model_copy(update=changed), **({} if table else {"goodness": None})}
    both = [run._replace(facts={**run.facts, "seconds": 0.5 + run.facts["seed"]}, **its) for run in both]
    metrics = [proof.Rung("metrics", "", its, value) for its, value in zip(holds, accuracies, strict=True)]
    told = list(proof.statistics(both, metrics, target, reference, declared))
    assert {rung.what for rung, _ in told} == {"statistics"}
    return [(rung.found, rung.holds, code) for rung, code in told]


PUBLISHED = Target(kind="published", mean=90.0, std=None, n=None, values=None, source="a paper", row=None)
REFERENCE = Reference(
    seeds=(0, 1),
    values=(89.5, 90.5),
    mean=90.0,
    std=0.5**0.5,
    seconds=1.0,
    row="r",
    command="c",
    machine="m",
    ffrepro="0",
)
SAME = "these runs are the reference itself: 90.00 ± 0.71 (n = 2), as committed"


def test_the_verdict_is_made_of_what_was_computed_here(runs, params):
    ((text, holds, code),) = judged(runs, params, [90.1, 89.9], PUBLISHED)
    assert (holds, code) == (True, 0)
    assert text.startswith("90.00 ± 0.14 (n = 2) against 90.00: reproduced: the interval is [")
    ((_, holds, code),) = judged(runs, params, [50.1, 49.9], PUBLISHED)
    assert (holds, code) == (False, 3)
    none = "90.00 ± 0.14 (n = 2) against no target: inconclusive: no published or reference value to compare with"
    assert judged(runs, params, [90.1, 89.9], None) == [(none, None, 4)]


def test_a_verdict_from_goodness_alone_is_told_and_not_shown(runs, params):
    ((text, holds, code),) = judged(runs, params, [90.1, 89.9], PUBLISHED, holds=(None, None))
    assert (holds, code) == (None, 4)
    assert text.startswith("90.00 ± 0.14 (n = 2) against 90.00: reproduced: the interval is [")
    assert text.endswith("]; told by goodness alone, not shown: no weights of seed 0, 1 here")
    missing = [("cannot be told without the test labels", None, 4)]
    assert judged(runs, params, [90.1, None], PUBLISHED, holds=(True, None)) == missing


def test_a_verdict_by_a_rule_that_params_yaml_does_not_have_is_told(runs, params):
    ((text, holds, code),) = judged(runs, params, [90.1, 89.9], PUBLISHED, declared=False)
    assert (holds, code) == (None, 4)
    assert text.endswith("]; by a rule that is told: the row is not in params.yaml")


def test_every_declared_seed_counts_and_a_missing_one_leaves_no_verdict(runs, params):
    text = "90.00 ± 0.14 (n = 2) so far against 90.00: inconclusive: 2 of 3 declared seeds, without 3"
    assert judged(runs, params, [90.1, 89.9], PUBLISHED, seeds=(3, 1, 0)) == [(text, None, 4)]


def test_a_seed_that_the_row_does_not_declare_is_named_and_not_counted(runs, params):
    foreign, own = judged(runs, params, [90.1, 50.0], PUBLISHED, holds=(True, None), seeds=(0, 3))
    assert foreign == ("without seed 1, which the row does not declare", None, 0)
    assert own == ("90.10 (n = 1) so far against 90.00: inconclusive: 1 of 2 declared seeds, without 3", None, 4)
    _, nothing = judged(runs, params, [90.1, 50.0], PUBLISHED, seeds=(3,))
    assert nothing == ("inconclusive: 0 of 1 declared seeds, without 3", None, 4)
    foreign, _ = judged(runs, params, [90.1, 50.0], PUBLISHED, seeds=(3, 4))
    assert foreign == ("without seed 0, 1, which the row does not declare", None, 0)


@pytest.mark.parametrize("target", [PUBLISHED, None])
def test_runs_of_the_reference_are_compared_with_what_is_committed(runs, params, target):
    mine = {"reference_seeds": (0, 1), "seeds": (2,)}
    assert judged(runs, params, [89.5, 90.5], target, REFERENCE, **mine) == [(SAME, True, 0)]
    ((text, holds, code),) = judged(runs, params, [90.0, 91.0], target, REFERENCE, **mine)
    assert (text.endswith(", not what results/reference.json says"), holds, code) == (True, False, 3)
    told = [record.read_json(runs[0].parent / seed / "metrics.json")["accuracy"] for seed in ("0", "1")]
    known = spread(told)
    elsewhere = REFERENCE.model_copy(update={"values": tuple(told), "mean": known["mean"], "std": known["std"]})
    ((text, holds, code),) = judged(runs, params, [told[0], told[1] + 0.1], target, elsewhere, **mine)
    assert (text.endswith(" but for another machine's rounding"), holds, code) == (True, True, 0)
    # without the goodness there is nothing by which rounding can be told from numbers that were moved a little
    ((text, holds, code),) = judged(runs, params, [told[0], told[1] + 0.1], target, elsewhere, table=False, **mine)
    assert (text.endswith("if it is that: goodness.safetensors not published"), holds, code) == (True, None, 4)
    ((text, holds, code),) = judged(runs, params, told, target, elsewhere, table=False, **mine)
    assert (text.endswith(", as committed"), holds, code) == (True, True, 0)
    swapped = REFERENCE.model_copy(update={"values": (90.5, 89.5)})  # of the same mean and spread
    ((text, holds, code),) = judged(runs, params, [89.5, 90.5], target, swapped, **mine)
    assert (text.endswith(", not what results/reference.json says"), holds, code) == (True, False, 3)
    slow = REFERENCE.model_copy(update={"seconds": 2.0})
    text = f"{SAME}, but for the seconds in results/reference.json"
    assert judged(runs, params, [89.5, 90.5], target, slow, **mine) == [(text, False, 3)]
    ((text, holds, code),) = judged(runs, params, [89.5, 90.5], target, REFERENCE, (True, None), **mine)
    assert (holds, code) == (None, 4)
    assert text.endswith(", as committed; told by goodness alone, not shown: no weights of seed 1 here")
    text = "90.00 ± 0.71 (n = 2) of the reference seeds, of which results/reference.json says nothing"
    assert judged(runs, params, [89.5, 90.5], target, None, **mine) == [(text, None, 4)]
    text = "90.00 ± 0.71 (n = 2) so far: 2 of 3 reference seeds, without 7"
    assert judged(runs, params, [89.5, 90.5], target, REFERENCE, reference_seeds=(1, 0, 7), seeds=(2,)) == [
        (text, None, 4)
    ]


def test_a_reference_and_the_rows_own_runs_beside_it_are_told_of_each_by_itself(runs, params):
    alone = {"seeds": (1,), "values": (91.0,), "mean": 91.0, "std": None, "seconds": 1.5}
    single = REFERENCE.model_copy(update=alone)
    mine = {"reference_seeds": (1,), "seeds": (0,)}
    reference, own = judged(runs, params, [90.0, 91.0], PUBLISHED, single, (None, True), **mine)
    assert reference == ("these runs are the reference itself: 91.00 (n = 1), as committed", True, 0)
    assert own[0].startswith("90.00 (n = 1) against 90.00: inconclusive: 1 seed does not tell the spread")
    assert own[0].endswith("; told by goodness alone, not shown: no weights of seed 0 here")


def test_a_link_to_weights_that_are_elsewhere_is_not_taken_for_weights_that_were_not_published(runs):
    path = runs[0] / "weights.safetensors"
    path.unlink()
    path.symlink_to(runs[0] / "annexed")
    with pytest.raises(UserError, match=r"weights\.safetensors: cannot be read: "):
        evidence.read(runs[0])


@pytest.mark.parametrize("name", [*FILES, "../experiment.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(runs, name):
    path = (runs[0] / name).resolve()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{path.name}: cannot be read: a pipe or a device, not a file"):
        evidence.read(runs[0])


def test_a_tensor_file_that_is_none_or_empty_is_to_be_got_anew(runs):
    path = runs[0] / "goodness.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(UserError, match=r"goodness\.safetensors: not a whole safetensors file .*; get it anew, from "):
        evidence.read(runs[0])
    record.write_tensors({}, path)
    with pytest.raises(UserError, match=r"goodness\.safetensors: broken link: holds no tensors$"):
        evidence.read(runs[0])


@pytest.mark.parametrize(("name", "by"), [("weights", "record"), ("goodness", "metrics")])
def test_another_runs_tensors(runs, trained, name, by):
    path = runs[0] / f"{name}.safetensors"
    shutil.copy(runs[0].parent / "1" / path.name, path)
    says = f"{path}: broken link: not the tensors that {by}.json names; another run's file"
    assert broken(runs[0], trained) == says


def test_a_record_under_another_seed(runs, trained):
    shutil.rmtree(runs[0].parent / "1")
    there = runs[0].rename(runs[0].parent / "1")
    says = f"{there / 'record.json'}: broken link: the record of digits-0, not of this folder"
    assert broken(there, trained) == says


def test_a_record_of_other_parameters(runs, trained):
    path = runs[0].parent / "experiment.json"
    row = config.changed(config.read_experiment(path), {"training.alpha": 5.0})
    path.write_text(config.canonical(row))
    says = f"{runs[0] / 'record.json'}: broken link: a record of other parameters than experiment.json's"
    assert broken(runs[0], trained) == says


def test_metrics_of_another_seed(runs, trained):
    for name in ("metrics.json", "goodness.safetensors"):
        shutil.copy(runs[0].parent / "1" / name, runs[0])
    assert "metrics.json: broken link: of other weights than record.json's" in broken(runs[0], trained)


def test_initial_weights_that_the_seed_does_not_make(runs, trained):
    """A training that began elsewhere (from trained weights, say), chained from its beginning."""
    rechain(runs[0], {}, initial_weights="0" * 64)
    assert "record.json: broken link: initial weights that its seed does not make" in broken(runs[0], trained)


def test_other_data(runs, trained):
    train, test = splits(trained)
    with pytest.raises(UserError, match="test data other than this project's digits"):
        list(proof.ladder(evidence.read(runs[0]), (train, test[torch.arange(1, 360)]), [], CPU))
    with pytest.raises(UserError, match="training data other than"):
        list(proof.ladder(evidence.read(runs[0]), (train[torch.arange(1, 1437)], test), [], CPU))


def test_a_link_changed_and_sealed_anew(runs, trained):
    chain = record.read_json(runs[0] / "record.json")["chain"]
    chain[1]["weights"] = "0" * 64
    reseal(runs[0] / "record.json", chain=chain)
    assert "the chain does not hold at epoch 2" in broken(runs[0], trained)
    reseal(runs[0] / "record.json", chain=chain[:1])
    assert "a chain of 1 epochs, of 3 in order" in broken(runs[0], trained)


def test_a_chain_that_ends_in_other_weights_than_the_records(runs, trained):
    reseal(path := runs[0] / "record.json", weights="0" * 64)
    says = f"{path}: broken link: the chain does not end in the weights that the record names"
    assert broken(runs[0], trained) == says


def test_the_same_tensors_in_other_bytes(runs, trained):
    path = runs[0] / "weights.safetensors"
    tensors = record.read_tensors(path)
    path.write_bytes(save(tensors, {"sha256": record.tensors_hash(tensors), "more": "words"}))
    assert broken(runs[0], trained) == f"{path}: broken link: changed after it was written"


def test_bitwise_against_a_reference_of_the_same_key(runs, trained, tmp_path):
    reference = tmp_path / "results" / "digits" / "0"
    shutil.copytree(runs[0].parent, reference.parent)
    path = reference / "record.json"
    found = climb(runs[0], trained, [path])["bitwise"]
    assert (found.found.partition(",")[0], found.holds) == ("the committed record itself", None)
    reseal(path, history="0" * 64)
    assert climb(runs[0], trained, [path])["bitwise"].holds is None  # a loss changed in its history, and no time
    shutil.copy(runs[0] / "record.json", path)
    reseal(path, started="2020-01-01T00:00:00+00:00")
    assert climb(runs[0], trained, [path])["bitwise"].holds is None  # nor does another clock make another training
    copy = reference.parent / "copy.json"
    shutil.copy(path, copy)
    reseal(path, history="0" * 64)  # a training of its own took its own time
    found = climb(runs[0], trained, [copy, path])["bitwise"]
    assert (found.found, found.holds) == ("all 3 epochs equal to the committed record's", True)
    damaged = reference.parent / "damaged.json"
    damaged.write_text("{")
    for other in (damaged, runs[0] / "record.json"):  # what cannot be read is none, and no run is its own reference
        assert climb(runs[0], trained, [other, path])["bitwise"] == found
    own = climb(runs[0], trained, [runs[0] / "record.json"])["bitwise"]
    assert own == proof.Rung("bitwise", NO_REFERENCE, None)
    rechain(reference, {2: ("0" * 64, "0" * 64)})
    found = climb(runs[0], trained, [path])["bitwise"]
    assert (found.found, found.holds) == ("differs from the committed record from epoch 2 on", False)
    known = record.read_json(path)["environment"]
    reseal(path, environment={name: value for name, value in known.items() if name != "processor"})  # an older record
    found = climb(runs[0], trained, [path])["bitwise"]
    says = "differs from the committed record from epoch 2 on; one of the two does not tell its processor"
    assert (found.found, found.holds) == (says, None)
    honest = reference.parent / "1" / "record.json"
    shutil.copytree(runs[0], honest.parent, dirs_exist_ok=True)
    reseal(honest, history="0" * 64, started="2020-01-01T00:00:00+00:00")
    for mine in ([path, honest], [honest, path]):  # one that tells decides
        found = climb(runs[0], trained, mine)["bitwise"]
        assert (found.found, found.holds) == ("all 3 epochs equal to the committed record's", True)
    reseal(path, environment={"device": "another"})
    found = climb(runs[0], trained, [path])["bitwise"]
    assert (found.found.partition(" (")[0], found.holds) == ("no reference for this key", None)
    elsewhere = honest.with_name("elsewhere.json")  # equal bits say as much of two machines as of one
    shutil.copy(honest, elsewhere)
    reseal(elsewhere, environment={**known, "cpu": "Z80", "threads": 99})
    found = climb(runs[0], trained, [elsewhere, path])["bitwise"]
    equal = "all 3 epochs equal to the committed record's, of another environment (cpu, threads)"
    assert (found.found, found.holds) == (equal, True)
    reseal(path, environment=known)  # but what was made in this environment decides
    for mine in ([path, elsewhere], [elsewhere, path]):
        found = climb(runs[0], trained, mine)["bitwise"]
        assert (found.found, found.holds) == ("differs from the committed record from epoch 2 on", False)
    reseal(elsewhere, history=record.read_json(runs[0] / "record.json")["history"])
    found = climb(runs[0], trained, [elsewhere])["bitwise"]  # nor does another's name make another training
    assert (found.found.partition(",")[0], found.holds) == ("the committed record itself", None)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("record.json", {"chain": None}, "no record: chain: "),
        ("record.json", {"chain": []}, "no record: chain: "),
        ("record.json", {"seed": "0"}, "no record: seed: Input should be a valid integer"),
        ("record.json", {"more": 1}, "no record: more: Extra inputs are not permitted"),
        ("record.json", {"started": "yesterday"}, "no record: started: "),
        ("record.json", {"started": "2020-01-01T00:00:00+01:00"}, NO_TIME.format("started")),
        ("record.json", {"ended": "2020-01-01 00:00:00+00:00"}, NO_TIME.format("ended")),
        ("record.json", {"experiment": "di**gits"}, "no record: experiment: String should match pattern"),
        ("record.json", {"experiment": "digits\n  ok bitwise: all"}, "no record: experiment: String should match"),
        ("record.json", {"experiment": "\x1b[2Jdigits"}, "no record: experiment: String should match pattern"),
        ("record.json", {"seed": -1}, "no record: seed: "),
        ("record.json", {"seconds": -1.0}, "no record: seconds: "),
        ("record.json", {"joules": -1.0}, "no record: joules: "),
        (
            "record.json",
            {"environment": {"device": "cpu", "python": "\ud800"}},
            "no record: environment: Value error",
        ),
        (
            "record.json",
            {"environment": {"device": "cpu", "\x1b[2J": 1}},
            "no record: environment: Value error",
        ),
        ("record.json", {"driver": "\x1b[2J"}, "no record: driver: "),
        ("metrics.json", {"code": "none"}, "no metrics: code: "),
        ("metrics.json", {"images": 10**400}, "no metrics: images: "),
        ("metrics.json", {"accuracy": None}, "no metrics: accuracy: "),
        ("metrics.json", {"blocks": {"1": "much"}}, "no metrics: blocks.1: "),
    ],
)
def test_a_record_of_another_shape_sealed_anew(runs, trained, name, change, says):
    reseal(runs[0] / name, **change)
    assert says in broken(runs[0], trained)


@pytest.mark.parametrize("name", ["0/record.json", "0/metrics.json", "experiment.json"])
def test_other_line_ends_are_found(runs, trained, name):
    path = runs[0].parent / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert f"{path.name}: broken link: " in broken(runs[0], trained)


def test_a_history_that_is_not_of_the_record(runs, trained):
    path, honest = runs[0] / "history.csv", (runs[0] / "history.csv").read_text()
    lines = honest.splitlines(keepends=True)
    epoch, seconds = lines[2].split(",")[:2]
    for content, says in (
        ("".join(lines[:-1]), "history.csv: broken link: 2 epochs, the chain has 3"),
        ("".join([*lines[:2], *lines[3:]]), "history.csv: not a history (no epochs in order, from 1 on)"),
        ("nonsense", "history.csv: not a history ("),
        (honest.replace(f"\n{epoch},{seconds},", f"\n{epoch},{float(seconds) + 1},"), "seconds that do not add up to"),
        (honest.replace(f"\n{epoch},{seconds},", f"\n{epoch},nan,"), "seconds that do not add up to"),
        (honest.replace("\n", ",7.0\n").replace(",7.0\n", ",joules\n", 1), "joules that do not add up to"),
    ):
        path.write_text(content)
        reseal(runs[0] / "record.json", history=record.file_hash(path))
        assert says in broken(runs[0], trained)
        path.write_text(honest)


def test_a_file_that_is_no_record(runs, trained):
    for content in ("[]", "null", '{"seal": 1}', "{", ""):
        (runs[0] / "record.json").write_text(content)
        assert "record.json" in broken(runs[0], trained)


# The command


def verify(home, *arguments):
    return home.call("ffrepro", "verify", *arguments)


def test_a_cpu_repeats_few_images_of_a_row_that_needs_a_gpu(row):
    chosen = row("cifar10", blocks="4P 4P", precision="float16")
    rung = proof._self_repeat(chosen, torch.device("cpu"))
    assert rung.holds
    stands_in = devices.stand_in(chosen, CPU)  # bfloat16, where this CPU has it
    assert stands_in != "float16"
    assert rung.found.startswith(f"4 steps of the row with a batch of 16 in {stands_in}, twice on this machine: ")


def test_the_command_climbs_all_seeds_of_a_row(home):
    done = home.call("ffrepro", "verify", "runs/digits/1/record.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "digits, seed 1\n  ok row: digits, as in params.yaml\n  ok record: sealed, of digits, seed 1"
    )
    assert "  -- statistics: told of a row's folder with all its declared seeds (0, 1, 2)\n" in done.stdout
    done = verify(home, "runs/digits")
    assert done.returncode == 4
    assert "digits, seed 0\n" in done.stdout
    assert ": inconclusive: 2 of 3 declared seeds, without 2\n" in done.stdout


def test_the_committed_reference_is_what_is_said_of_it(root, trained, params, capsys):
    reference = root / "results" / "digits"
    code = proof.report(reference, layout.Layout(root), params, lambda row: prepared(trained, row, {}), CPU)
    told = capsys.readouterr().out
    assert (code, told.count("  ok goodness: "), told.count(f"  -- bitwise: {NO_REFERENCE}\n")) == (0, 5, 5)
    assert re.search(r"\n  ok statistics: these runs are the reference itself: \d.* \(n = 5\), as committed", told)
    assert told.endswith("\n  -- claims: none of paper.yaml is about digits\n")


@pytest.fixture
def copied(home, tmp_path, call_in):
    """A copy of the project with its runs: (its folder, `ffrepro verify` there)."""
    root = tmp_path / "project"
    shutil.copytree(home.root, root, symlinks=True)
    return root, lambda *arguments: call_in(root, "ffrepro", "verify", *arguments)


def test_a_rows_own_seeds_are_held_against_what_was_published(copied):
    root, verify = copied
    path = root / "paper.yaml"
    value = "  digits: {mean: 90.0, std: null, source: review}\n"
    path.write_text(path.read_text().replace("\ntargets:\n", f"\ntargets:\n{value}"))
    done = verify("runs/digits")
    assert (done.returncode, done.stderr) == (4, "")
    assert " so far against 90.00: inconclusive: 2 of 3 declared seeds, without 2\n" in done.stdout


def test_the_exit_code_tells_of_other_bits(copied):
    root, verify = copied
    path = root / "results" / "digits" / "0" / "record.json"
    shutil.copytree(root / "runs" / "digits", path.parent.parent)
    rechain(path.parent, {2: ("0" * 64, "0" * 64)}, history="0" * 64)
    done = verify("runs/digits/0")
    assert "  NO bitwise: differs from the committed record from epoch 2 on\n" in done.stdout
    assert (done.returncode, "digits, 1 seed\n" in done.stdout) == (3, True)
    assert "digits, 2 seeds\n" in verify("runs/digits").stdout
    content = path.read_bytes()
    path.write_bytes(b"{" + content)  # no fault of the run's
    done = verify("runs/digits/0")
    text = f"-- bitwise: a committed record cannot be compared with: {path}: not JSON"
    assert (done.returncode, text in done.stdout) == (0, True)
    path.write_bytes(content)
    reseal(path, chain=record.read_json(path)["chain"][:1], history="0" * 64)
    done = verify("runs/digits/0")
    text = f"-- bitwise: a committed record cannot be compared with: {path}: broken link: a chain of 1 epochs, of 3"
    assert (done.returncode, text in done.stdout) == (0, True)


def test_a_machine_that_does_not_repeat_itself_is_told_by_the_exit_code(copied, monkeypatch):
    _, verify = copied
    monkeypatch.setattr("ffrepro.doctor.twice", lambda row, device: (False, ["one", "another"]))
    done = verify("runs/digits/0")
    assert "  NO self-repeat: 4 steps of the row, twice on this machine: one and another\n" in done.stdout
    assert done.returncode == 3


def test_the_claims_that_a_row_is_part_of_are_told(trained, monkeypatch):
    def read(project):
        about = {"verdict": "supported", "why": "because"}
        return [
            {"id": "a.one", "pairs": [("mine", "other"), ("third", "other")], **about},
            {"id": "b.two", "pairs": [("third", "other")], **about},
        ]

    monkeypatch.setattr("ffrepro.claims.read", read)
    told = proof.Rung("claim a.one", "by the results here supported: because", None)
    assert list(proof._claims(trained, "mine")) == [told]
    none = proof.Rung("claims", "none of paper.yaml is about fourth", None)
    assert list(proof._claims(trained, "fourth")) == [none]

    def damaged(project):
        raise UserError("a file: damaged")

    monkeypatch.setattr("ffrepro.claims.read", damaged)
    cannot = proof.Rung("claims", "cannot be told: a file: damaged", None)
    assert list(proof._claims(trained, "mine")) == [cannot]


def test_equal_bits_without_weights_are_told(copied):
    root, verify = copied
    shutil.copytree(root / "runs" / "digits", root / "results" / "digits")
    reseal(root / "results" / "digits" / "0" / "record.json", history="0" * 64, started="2020-01-01T00:00:00+00:00")
    equal = "bitwise: all 3 epochs equal to the committed record's"
    assert f"ok {equal}\n" in verify("runs/digits/0").stdout
    (root / "runs" / "digits" / "0" / "weights.safetensors").unlink()
    assert f"-- {equal}; told, not shown: no weights here\n" in verify("runs/digits/0").stdout


def test_one_training_is_not_two_seeds(copied):
    """Nor is the committed reference anybody's own run."""
    root, verify = copied
    ours, other = (root / "runs" / "digits" / seed for seed in ("1", "0"))
    weights = record.read_json(other / "record.json")["weights"]
    for name in ("weights.safetensors", "goodness.safetensors", "metrics.json"):
        shutil.copy(other / name, ours)
    rechain(ours, {3: (weights, "0" * 64)}, weights=weights)
    done = verify("runs/digits")
    says = "1/record.json: broken link: ends in the weights of seed 0\n"
    assert (done.returncode, done.stderr.endswith(says)) == (2, True)
    assert verify("runs/digits/1").returncode == 0
    (root / "results" / "digits").mkdir()
    shutil.move(other, root / "results" / "digits" / "0")
    done = verify("runs/digits/1")
    assert (done.returncode, done.stderr.endswith(says)) == (2, True)


@pytest.mark.parametrize("name", ["metrics.json", "record.json"])
def test_a_seed_that_is_not_complete_counts_as_missing(copied, name):
    root, verify = copied
    (root / "runs" / "digits" / "0" / name).unlink()
    done = verify("runs/digits")
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.startswith(f"digits, seed 0\n  -- run: not complete: no {name}\ndigits, seed 1\n")
    assert ": inconclusive: 1 of 3 declared seeds, without 0, 2\n" in done.stdout
    shutil.rmtree(root / "runs" / "digits" / "1")
    done = verify("runs/digits")
    assert (done.returncode, f"{name}: no such file" in done.stderr) == (2, True)


def test_data_that_cannot_be_had_are_asked_for_once(trained):
    """Each time may wait for a network that does not answer."""
    asked = []
    params = config.load(trained.params)
    code = proof.report(trained.root / "runs" / "digits", trained, params, asked.append, CPU)
    assert (code, [row.data.name for row in asked]) == (4, ["digits"])


def test_a_row_that_params_yaml_does_not_have_is_told_of(home, tmp_path):
    shutil.copytree(home.root / "runs", tmp_path / "runs")
    for folder in (tmp_path / "runs" / "digits").glob("[01]"):
        reseal(folder / "record.json", experiment="mine")
    (tmp_path / "runs" / "digits").rename(tmp_path / "runs" / "mine")
    done = verify(home, str(tmp_path / "runs" / "mine" / "0"))
    assert done.returncode == 0, done.stderr
    assert (
        "  -- row: mine is not in params.yaml: parameters, seeds and rule are what experiment.json says\n"
        in done.stdout
    )


@pytest.mark.parametrize("command", ["verify", "audit"])
def test_a_run_of_other_parameters_under_a_declared_name_is_refused(project, home, tmp_path, command):
    """The project's row is another one: the run was made by one of fewer epochs that took its name."""
    shutil.copytree(home.root / "runs", tmp_path / "runs")
    shutil.copytree(home.root / "checkpoints", tmp_path / "checkpoints")
    given = ["--states", str(tmp_path / "checkpoints" / "digits-0")] if command == "audit" else []
    done = project.call("ffrepro", command, str(tmp_path / "runs" / "digits" / "0"), *given)
    assert done.returncode == 2
    assert "experiment.json: broken link: another row than digits in params.yaml" in done.stderr
    assert " epoch " not in done.stdout


def test_what_is_no_run_is_refused_in_one_line(home, tmp_path):
    alone = tmp_path / "records" / "digits-0.json"
    alone.parent.mkdir()
    shutil.copy(home.root / "runs" / "digits" / "0" / "record.json", alone)
    for command in ("verify", "audit"):
        done = home.call("ffrepro", command, str(alone))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "digits-0.json: not in a run's folder, no record.json beside it; give a run's folder" in done.stderr
    done = home.call("ffrepro", "audit", "runs/digits")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "digits: 2 runs there (0, 1); give the folder of one of them" in done.stderr
    for states in ("params.yaml", "nowhere"):
        done = home.call("ffrepro", "audit", "runs/digits/0", "--states", states)
        assert done.returncode == 2
        assert done.stderr == (
            f"ffrepro: --states: given {states}: no folder there; allowed: a folder of kept states\n"
        )


def test_goodness_so_large_that_its_mean_overflows_hides_nothing(runs, trained):
    def huge(table, labels):
        true = torch.nn.functional.one_hot(labels, 10).bool()
        table[..., :2] = torch.where(true, 3e38, 0.0).unsqueeze(2)

    elsewhere(runs, trained, huge)
    assert "off the goodness of these weights, 0 predictions differ: more than another" in broken(runs[0], trained)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex64, torch.bool])
def test_weights_of_another_type_are_refused(runs, trained, kind):
    path = runs[0] / "weights.safetensors"
    digest = record.write_tensors({name: value.to(kind) for name, value in record.read_tensors(path).items()}, path)
    link = record.read_json(runs[0] / "record.json")["chain"][-1]
    rechain(runs[0], {3: (digest, link["optimizer"])}, weights=digest)
    assert f"weights.safetensors: broken link: embedding.weight is {kind}, not torch.float32" in broken(
        runs[0], trained
    )


def test_a_title_is_no_part_of_what_was_trained(runs, trained):
    run = evidence.read(runs[0])
    params = config.Params(
        seeds=(0,), experiments={"digits": run.row.model_copy(update={"title": "The same in other words"})}
    )
    assert proof.declared(run, params).holds
    other = config.changed(run.row, {"verdict.margin": run.row.verdict.margin + 1})
    with pytest.raises(UserError) as error:
        proof.declared(run, config.Params(seeds=(0,), experiments={"digits": other}))
    assert str(error.value) == (
        f"{runs[0].parent}/experiment.json: broken link: another row than digits in params.yaml; a run of other "
        "parameters, or another rule"
    )


def test_a_rows_folder_may_be_a_link(runs, trained, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = runs[0].parent.rename(tmp_path / "elsewhere" / "job17")
    runs[0].parent.symlink_to(target)
    folders = evidence.runs_of(runs[0].parent)
    assert [evidence.read(folder).facts["seed"] for folder in folders] == [0, 1]


def test_a_name_that_cannot_be_printed_is_refused_in_one_line(runs, tmp_path):
    folder = (tmp_path / "x\nffrepro: ok all holds\n\x1b[2J").resolve()
    shutil.copytree(runs[0].parent, folder / "digits")
    with pytest.raises(UserError, match="cannot be printed; rename it") as error:
        evidence.runs_of(folder / "digits")
    assert str(error.value).isprintable()


def test_the_seeds_of_a_row_are_in_order(tmp_path):
    for seed in ("10", "2"):
        (tmp_path / seed).mkdir()
    assert [folder.name for folder in evidence.runs_of(tmp_path)] == ["2", "10"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("runs", "runs: no record.json and no folder of a seed there"),
        ("r\x1bs", r"r\x1bs: a name with characters that cannot be printed; rename it"),
    ],
)
def test_what_stands_for_no_run_is_named(tmp_path, name, says):
    give = "" if says.endswith("it") else "; give a run's folder, its record.json, or a row's folder with its seeds"
    with pytest.raises(UserError) as error:
        evidence.runs_of(tmp_path / name)
    assert str(error.value) == f"{tmp_path}/{says}{give}"


def test_too_long_a_name_cannot_be_read(tmp_path):
    with pytest.raises(UserError) as error:
        evidence.runs_of(tmp_path / ("r" * 300))
    assert str(error.value).startswith(f"{tmp_path}/rrr")
    assert "r...: cannot be read (File name too long); give a run's folder, " in str(error.value)


def test_a_stray_file_beside_the_seeds_is_no_run(runs):
    (runs[0].parent / "8").touch()
    assert [folder.name for folder in evidence.runs_of(runs[0].parent)] == ["0", "1"]


def test_a_strangers_damaged_file_is_not_to_be_run_again(runs, trained):
    (runs[0] / "record.json").write_text("{")
    assert broken(runs[0], trained).endswith(
        "; get it anew, from where the run was published or by running its stage again (`dvc repro`)"
    )


def test_the_command_refuses_what_is_broken_in_one_line(home, tmp_path):
    shutil.copytree(home.root / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "digits" / "0" / "history.csv").write_text("epoch\n")
    done = verify(home, str(tmp_path / "runs" / "digits" / "0"))
    assert done.returncode == 2
    assert done.stderr.startswith("ffrepro: ")
    assert "history.csv: broken link: not the history that record.json names" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert verify(home, str(tmp_path)).returncode == 2


# The audit


def rechain(folder, states, **changes):
    """Make the record's chain anew, with other (weights, optimizer) hashes for some epochs: a forger's chain."""
    facts = record.read_json(folder / "record.json") | changes
    row = config.read_experiment(folder.parent / "experiment.json")
    link = training.first_link(
        {
            "parameters": config.training_parameters(row),
            "seed": str(facts["seed"]),
            "data": facts["data"],
            "code": facts["code"],
            "initial weights": facts["initial_weights"],
        }
    )
    chain = []
    for old in facts["chain"]:
        chain.append(
            checkpoint.chained(link, old["epoch"], *states.get(old["epoch"], (old["weights"], old["optimizer"])))
        )
        link = chain[-1]["link"]
    reseal(folder / "record.json", **(changes | {"chain": chain}))
    reseal(folder / "metrics.json", link=link, weights=changes.get("weights", facts["weights"]))


def audited(runs, trained, epochs):
    run = evidence.read(runs[0])
    return {one.epoch: one for one in audit.audit(run, splits(trained)[0], runs[1], epochs, CPU)}


def test_every_epoch_of_an_honest_run_follows(runs, trained):
    found = audited(runs, trained, [1, 2, 3])
    assert [one.holds for one in found.values()] == [True] * 3
    assert found[3].found.startswith("the same bits")


def forge(runs, trained, change):
    """Alter the state after epoch 2, train epoch 3 from it, and chain, seal and publish it all as if it were honest."""
    run, (folder, states) = evidence.read(runs[0]), runs
    network, data = training.build(run.row, 0, CPU), splits(trained)[0]
    adams, memory = optimizers(network, run.row.training), negatives.memory(len(data.labels), 10, CPU)
    state = checkpoint.read(states / "2.pt", CPU)
    with torch.no_grad():
        change(state["network"])
    torch.save(state, states / "2.pt")
    checkpoint.restore(state, network, adams, memory)
    two = checkpoint.hashes(checkpoint.snapshot(network, adams, memory))
    Engine(network, adams, memory, data, run.row).epoch(0, 2)
    three = checkpoint.hashes(checkpoint.snapshot(network, adams, memory))
    torch.save(state | checkpoint.snapshot(network, adams, memory), states / "3.pt")
    record.write_tensors(network.state_dict(), folder / "weights.safetensors")
    rechain(folder, {2: two, 3: three}, weights=three[0])


def test_an_altered_epoch_is_caught_when_drawn(runs, trained):
    def one_bit(network):
        weight = network["blocks.0.conv.weight"]
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(1.0))

    forge(runs, trained, one_bit)
    found = audited(runs, trained, [1, 2, 3])
    assert {epoch: one.holds for epoch, one in found.items()} == {1: True, 2: False, 3: True}
    assert "other bits in the same environment" in found[2].found


def test_in_another_environment_rounding_passes_and_an_alteration_does_not(runs, trained):
    torch.set_num_threads(2)
    found = audited(runs, trained, [1, 2, 3])
    assert all(one.holds for one in found.values())
    torch.set_num_threads(1)

    def improved(network):
        for name in network:
            if name.endswith("conv.weight"):
                network[name] += 0.05 * torch.randn(network[name].shape, generator=torch.Generator().manual_seed(0))

    forge(runs, trained, improved)
    torch.set_num_threads(2)
    found = audited(runs, trained, [1, 2, 3])
    assert {epoch: one.holds for epoch, one in found.items()} == {1: True, 2: False, 3: True}
    state = (runs[1] / "2.pt").read_bytes()
    (runs[1] / "2.pt").unlink()
    found = audited(runs, trained, [2, 3])
    beside = "another environment than the record's, and the state after it was not shown"
    assert found[2] == audit.Finding(2, beside, None)
    assert found[3] == audit.Finding(3, "the state before it, digits-0/2.pt, was not shown", None)
    (runs[1] / "1.pt").unlink()
    torch.set_num_threads(1)
    (runs[1] / "2.pt").write_bytes(state)
    found = audited(runs, trained, [2, 3])  # one that cannot be told does not hide the next
    assert {epoch: one.holds for epoch, one in found.items()} == {2: None, 3: True}


def test_a_version_that_did_not_train_a_run_does_not_audit_it(runs, trained):
    rechain(runs[0], {}, code="0" * 64)
    with pytest.raises(UserError) as error:
        audited(runs, trained, [1])
    says = "trained by another version of the code than this one; audit with that version"
    assert str(error.value) == f"{runs[0]}: {says}"


def test_margins_that_were_never_learned_count_as_0():
    state = {"network": {}, "optimizers": [], "memory": {"images": torch.tensor([torch.nan, torch.inf, -torch.inf, 2])}}
    (margins,) = audit.learned(state).values()
    assert margins.tolist() == [0, torch.inf, -torch.inf, 2]


def test_a_state_that_is_not_the_chains_is_refused(runs, trained):
    shutil.copy(runs[1].parent / "digits-1" / "1.pt", runs[1] / "1.pt")
    with pytest.raises(UserError, match=r"1\.pt: not the state that the chain names after epoch 1"):
        audited(runs, trained, [2])
    (runs[1] / "1.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        audited(runs, trained, [2])
    torch.save(checkpoint.read(runs[1] / "2.pt", CPU) | {"network": {"a tensor": 1}}, runs[1] / "1.pt")
    with pytest.raises(UserError, match=r"^digits-0/1\.pt: not a whole checkpoint$"):
        audited(runs, trained, [2])


def test_a_draw_repeats_by_its_seed_and_is_bounded():
    assert audit.draw(4, 4, 0) == [1, 2, 3, 4]
    assert audit.draw(200, 3, 7) == audit.draw(200, 3, 7)
    assert {epoch for seed in range(100) for epoch in audit.draw(4, 1, seed)} == {1, 2, 3, 4}
    for k in (0, 5):
        with pytest.raises(UserError, match="allowed: 1 to 4"):
            audit.draw(4, k, 0)


def test_a_folder_of_states_is_one(tmp_path):
    assert audit.folder(tmp_path) == tmp_path
    for path, why in ((tmp_path / "none", "no folder there"), (tmp_path / ("a" * 300), "File name too long")):
        with pytest.raises(UserError, match=rf"^--states: given .*: {why}; allowed: a folder of kept states$"):
            audit.folder(path)


def test_detection_by_hand():
    assert audit.detection(10, 1, 2) == pytest.approx(0.2)
    assert audit.detection(200, 20, 2) == pytest.approx(1 - 180 * 179 / (200 * 199))
    assert audit.detection(200, 199, 2) == 1
    assert audit.detection(200, 0, 2) == 0


def test_distance_by_hand():
    start, theirs, mine = (
        {"w": torch.tensor(w), "mean": torch.tensor([mean]), "count": torch.tensor(count)}
        for w, mean, count in (([0.0, 0.0], 0.0, 1), ([3.0, 4.0], 2.0, 2), ([3.0, 3.0], 2.0, 3))
    )
    assert audit.distance(mine, theirs, start) == pytest.approx(1 / 18**0.5)
    theirs["mean"] += 1.0  # a small tensor is not lost among large ones
    assert audit.distance(mine, theirs, start) == pytest.approx(0.5)
    assert audit.distance(start, start, start) == 0
    assert audit.distance(start, theirs, start) == float("inf")


def test_what_may_lie_between_two_machines_by_hand():
    start = {"network.w": torch.zeros(2), "adam.m": torch.zeros(1)}
    ours = {"network.w": torch.tensor([0.0, 2.0]), "adam.m": torch.tensor([2.0])}
    theirs = {"network.w": torch.tensor([0.0, 3.0]), "adam.m": torch.tensor([6.0])}
    told = (
        "weights and statistics off by 50.0 % of their movement (50 % allowed), moments and margins by 200.0 % (200 %)"
    )
    assert audit._near(ours, theirs, start) == (True, told)  # as much as is allowed
    for name, more in (("network.w", torch.tensor([0.0, 3.01])), ("adam.m", torch.tensor([6.01]))):
        assert audit._near(ours, {**theirs, name: more}, start)[0] is False


def test_what_is_no_number_is_far_from_everything():
    start, honest = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    for value in ("nan", "inf", "-inf"):
        for place in (0, 1, 2):
            three = [honest, honest, start]
            three[place] = {"w": torch.tensor([1.0, float(value)])}
            assert audit.distance(*three) == float("inf")


def test_statistics_that_are_no_numbers_hide_nothing(runs, trained):
    """In training mode they are not read, and what is fitted to the test set in their place would pass for rounding."""

    def hidden(network):
        for name in network:
            if "running" in name:
                network[name].fill_(float("nan"))

    forge(runs, trained, hidden)
    torch.set_num_threads(2)  # as in another environment
    found = audited(runs, trained, [3, 2])  # one that cannot be trained does not hide the next
    assert [one.holds for one in found.values()] == [False, False]
    assert "weights and statistics off by inf % of their movement (50 % allowed)" in found[2].found
    assert found[3].found == (
        "cannot be trained again: network.blocks.0.norm.running_mean in the state before it is not finite"
    )


def test_margins_that_were_forgotten_are_found(row, digits, tmp_path):
    """Where one was never measured there is NaN, which must not stand for one that was."""
    chosen, states = row(hardness=3.0, epochs=2, blocks="4 4P"), tmp_path / "digits-0"
    its = training.train(chosen, 0, digits[0], checkpoint=states.with_suffix(".pt"), keep=True)
    facts = {"seed": 0, "code": record.code_hash(), "data": its.data, "chain": its.chain}
    run = evidence.Run(tmp_path, chosen, facts | {"environment": record.environment(CPU)}, {}, None, None)
    torch.set_num_threads(2)
    assert [one.holds for one in audit.audit(run, digits[0], states, [1, 2], CPU)] == [True, True]
    state = checkpoint.read(states / "2.pt", CPU)
    state["memory"]["images"].fill_(torch.nan)
    torch.save(state, states / "2.pt")
    facts["chain"][1] |= dict(zip(("weights", "optimizer"), checkpoint.hashes(state), strict=True))
    (found,) = audit.audit(run, digits[0], states, [2], CPU)
    trained_on = len(digits[0].labels) // 32 * 32  # of each image, under one wrong label
    assert (found.holds, found.found.rpartition("; ")[2]) == (False, f"{trained_on} margins are gone")


def test_an_optimizer_that_walks_to_other_weights_by_itself_is_found(runs, trained):
    """Moments that carry the next epoch anywhere: the auditor's own epoch then ends there too, and follows."""
    state = checkpoint.read(runs[1] / "2.pt", CPU)
    for adam in state["optimizers"]:
        for moments in adam["state"].values():
            moments["exp_avg"].mul_(1e6)
            moments["exp_avg_sq"].fill_(1e6)
    torch.save(state, runs[1] / "2.pt")
    rechain(runs[0], {2: checkpoint.hashes(state)})
    assert not audited(runs, trained, [2])[2].holds
    torch.set_num_threads(2)
    found = audited(runs, trained, [2])[2]
    assert not found.holds
    assert "weights and statistics off by 0." in found.found  # they are honest


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("exp_avg", torch.zeros(3, 7)),  # beyond which Adam would read and write
        ("exp_avg_sq", torch.zeros(())),
        ("exp_avg", torch.zeros(3).to(torch.complex64)),
        ("step", torch.zeros(5)),
        ("exp_avg", None),
        ("memory", torch.zeros(1)),
        ("memory", None),
        ("network", torch.tensor([0])),
        ("network", torch.bool),
        ("network", torch.float64),
        ("network", torch.complex64),
        ("network", torch.float8_e4m3fn),
    ],
)
def test_a_state_of_other_shapes_and_types_is_refused_before_it_is_used(runs, trained, what, value):
    state = checkpoint.read(runs[1] / "2.pt", CPU)
    if what == "memory":
        state["memory"]["images"] = value
    elif what == "network":
        network = state["network"]
        name = "blocks.1.conv.weight"
        state["network"] = value if isinstance(value, torch.Tensor) else {**network, name: network[name].to(value)}
    else:
        for adam in state["optimizers"]:
            for moments in adam["state"].values():
                moments[what] = value
    torch.save(state, runs[1] / "2.pt")
    rechain(runs[0], {2: checkpoint.hashes(state)})
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with pytest.raises(UserError, match=r"2\.pt: not a state of this row's network"):
            audited(runs, trained, [3])
    with pytest.raises(UserError, match=r"2\.pt: not a state of this row's network"):
        audited(runs, trained, [2])


def test_moments_laid_out_in_another_way_are_used_as_what_they_are(runs, trained):
    """One number under the strides of many, of which Adam would read and write the rest, wherever that lies."""

    def changed(layout):
        state = checkpoint.read(runs[1] / "2.pt", CPU)
        for adam in state["optimizers"]:
            for moments in adam["state"].values():
                moments["exp_avg"] = layout(moments["exp_avg"])
        torch.save(state, runs[1] / "2.pt")
        rechain(runs[0], {2: checkpoint.hashes(state)})
        return audited(runs, trained, [3])[3]

    # the same in another order, and others
    assert changed(lambda values: values.transpose(0, -1).contiguous().transpose(0, -1)).holds
    assert not changed(lambda values: values.flatten()[:1].clone().expand(values.shape)).holds


def test_what_differs_in_the_same_environment_is_named(runs, trained):
    link = record.read_json(runs[0] / "record.json")["chain"][1]
    rechain(runs[0], {2: (link["weights"], "0" * 64)})
    found = audited(runs, trained, [2])[2]
    assert found.found == f"other bits in the same environment: optimizer {link['optimizer'][:12]}, not 000000000000"
    known = record.read_json(runs[0] / "record.json")["environment"]
    reseal(runs[0] / "record.json", environment={name: known[name] for name in known if name != "processor"})
    (runs[1] / "2.pt").unlink()
    found = audited(runs, trained, [2])[2]
    assert found.found == "perhaps another environment than the record's, and the state after it was not shown"
    assert found.holds is None


def test_a_state_that_no_training_goes_on_from_is_no_mistake_of_the_auditors(runs, trained):
    state = checkpoint.read(runs[1] / "2.pt", CPU)
    state["network"]["blocks.0.conv.weight"].fill_(3e38)
    torch.save(state, runs[1] / "2.pt")
    rechain(runs[0], {2: checkpoint.hashes(state)})
    found = audited(runs, trained, [3, 1])
    assert found[1].holds
    assert (found[3].holds, found[3].found) == (
        False,
        "cannot be trained again: a loss is no number",
    )


def test_an_audit_says_that_it_does_not_know_the_row(runs, trained, params, capsys):
    run, data = evidence.read(runs[0]), splits(trained)[0]
    unknown = params.model_copy(update={"experiments": {}})
    assert audit.report(run, unknown, data, runs[1], 1, 0, CPU) == 0
    assert "-- row: digits is not in params.yaml" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another row than digits in params\.yaml"):
        audit.report(run, params, data, runs[1], 1, 0, CPU)


def test_an_optimizer_with_other_rules_is_not_taken_over(runs, trained):
    """States that carry weight decay hash like any other; the audit trains by the row's rules all the same."""
    state = checkpoint.read(runs[1] / "2.pt", CPU)
    for adam in state["optimizers"]:
        adam["param_groups"][0]["weight_decay"] = 0.1
    torch.save(state, runs[1] / "2.pt")
    assert audited(runs, trained, [3])[3].holds


@pytest.mark.parametrize("what", ["network", "optimizers", "memory"])
def test_a_state_of_another_network_in_the_chain_is_refused_in_one_line(runs, trained, what):
    state = checkpoint.read(runs[1] / "2.pt", CPU)
    state[what] = {"network": {"x": torch.zeros(1)}, "optimizers": [], "memory": {}}[what]
    torch.save(state, runs[1] / "2.pt")
    rechain(runs[0], {2: checkpoint.hashes(state)})
    with pytest.raises(UserError, match=r"2\.pt: not a state of this row's network"):
        audited(runs, trained, [3])
    if what == "network":
        torch.set_num_threads(2)  # elsewhere it would be compared with
        with pytest.raises(UserError, match=r"2\.pt: not a state of this row's network"):
            audited(runs, trained, [2])


def test_an_audit_on_other_data_is_refused(runs, trained):
    data = splits(trained)[0]
    with pytest.raises(UserError, match="training data other than this project's digits"):
        list(audit.audit(evidence.read(runs[0]), data[torch.arange(1, 1437)], runs[1], [1], CPU))


def test_an_audit_is_told_in_whole(runs, trained, capsys):
    run, params, (data, _) = evidence.read(runs[0]), config.load(trained.params), splits(trained)

    def told(states, k, seed=3):
        code = audit.report(run, params, data, states, k, seed, CPU)
        return code, capsys.readouterr().out.splitlines()

    code, lines = told(runs[1], 3)
    hashes = [f"weights {link['weights'][:12]}, optimizer {link['optimizer'][:12]}" for link in run.facts["chain"]]
    chances = "100 % if 1 of 3, 100 % if 2 of 3"
    assert (code, lines) == (
        0,
        [
            "digits-0: drawn of 3 epochs: 1, 2, 3 (--draw 3)",
            *(f"ok epoch {epoch}: the same bits: {text}" for epoch, text in enumerate(hashes, 1)),
            f"a draw of 3 hits an altered epoch with a probability of {chances} were altered",
        ],
    )
    code, lines = told(runs[1], 1)
    assert (code, lines[0]) == (0, "digits-0: drawn of 3 epochs: 1 (--draw 3)")
    assert lines[2].endswith("a probability of 33 % if 1 of 3, 67 % if 2 of 3 were altered")
    checkpoint.kept_state(runs[1], 1).unlink()
    code, lines = told(runs[1], 3)
    assert (code, lines[2]) == (4, "-- epoch 2: the state before it, digits-0/1.pt, was not shown")
    seeds = {int(told(runs[1], 1, seed=None)[1][0].rpartition("--draw ")[2].removesuffix(")")) for _ in range(4)}
    assert len(seeds) > 1  # nobody knows beforehand what will be drawn
    assert max(seeds) > 1000  # nor tries all there are


def test_the_command_audits_a_run(home):
    done = home.run("ffrepro", "audit", "runs/digits/0", "--epochs", "2", "--draw", "3", FFREPRO_THREADS="1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "digits-0: drawn of 3 epochs: 1, 3 (--draw 3)"
    assert [line[:11] for line in lines[1:3]] == ["ok epoch 1:", "ok epoch 3:"]
    done = home.call("ffrepro", "audit", "runs/digits/0", "--epochs", "4")
    assert done.returncode == 2
    assert done.stderr == "ffrepro: --epochs: given 4; allowed: 1 to 3, the run's epochs\n"


# The crate


def test_a_row_as_a_process_run_crate(runs, tmp_path):
    from rocrate.rocrate import ROCrate
    from ruamel.yaml import YAML

    everything = [evidence.read(folder) for folder in evidence.runs_of(runs[0].parent)]
    crate.export(everything, tmp_path / "crate")
    for seed in ("0", "1"):
        for name in FILES:
            copied = tmp_path / "crate" / "digits" / seed / name
            assert copied.read_bytes() == (runs[0].parent / seed / name).read_bytes()
    read = ROCrate(tmp_path / "crate")
    assert read.root_dataset["conformsTo"].id == "https://w3id.org/ro/wfrun/process/0.5"
    actions = [one for one in read.get_entities() if one.type == "CreateAction"]
    assert [one["instrument"]["softwareVersion"] for one in actions] == ["0.1.0"] * 2
    facts = everything[0].facts
    assert (actions[0]["startTime"], actions[0]["endTime"]) == (facts["started"], facts["ended"])
    weights = read.dereference("digits/0/weights.safetensors")
    assert weights["sha256"] == record.file_hash(runs[0] / "weights.safetensors")
    assert weights in actions[0]["result"]
    entries = json.loads((tmp_path / "crate" / "ro-crate-metadata.json").read_text())["@graph"]
    assert len({entry["@id"] for entry in entries}) == len(entries)
    check = YAML(typ="safe").load(tmp_path / "crate" / "codecheck.yml")
    assert [one["file"] for one in check["manifest"]] == ["digits/0/metrics.json", "digits/1/metrics.json"]
    assert all((tmp_path / "crate" / one["file"]).exists() for one in check["manifest"])
    climb_again = evidence.read(tmp_path / "crate" / "digits" / "0")  # a crate can be verified as it is
    assert climb_again.facts == facts
    with pytest.raises(UserError, match="not an empty folder"):
        crate.export(everything, tmp_path / "crate")


def test_a_gpus_float16_is_not_trained_again_on_a_cpu(root, call_in):
    done = call_in(root, "ffrepro", "audit", str(root / "results" / "cifar10" / "0"))
    line = "ffrepro: audit: this run trained in float16, for which a CPU takes days; audit it on a GPU\n"
    assert (done.returncode, done.stderr) == (5, line)
