"""A large run, published with its weights in float16."""

import json
import re

import pytest
import torch

from ffrepro import checkpoint, devices, evidence, layout, proof, record, targets, training
from ffrepro.errors import UserError


@pytest.fixture
def trained(project):
    project.shrink("8 16P 16 16", epochs=2)
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])
    return project


def release(project, seed="0"):
    return project.call("python", "-m", "pipelines.release", "digits", seed)


def test_a_released_run_is_the_run_with_its_weights_rounded(trained):
    done = release(trained)
    assert done.returncode == 0, done.stderr
    runs, results = trained.root / "runs" / "digits", trained.root / "results" / "digits"
    for name in ("record.json", "metrics.json", "history.csv", "goodness.safetensors"):
        assert (results / "0" / name).read_bytes() == (runs / "0" / name).read_bytes()
    own = record.read_tensors(runs / "0" / "weights.safetensors")
    rounded = record.read_tensors(results / "0" / "released.safetensors")
    for name, value in own.items():
        wanted = value.half() if value.is_floating_point() else value
        assert rounded[name].dtype == wanted.dtype
        assert torch.equal(rounded[name], wanted)
    assert evidence.read(results / "0").weights is None
    exported = trained.call("ffrepro", "export", "results/digits", "--to", "crate")
    assert exported.returncode == 0, exported.stderr
    copied = trained.root / "crate" / "digits" / "0" / "released.safetensors"
    assert copied.read_bytes() == (results / "0" / "released.safetensors").read_bytes()
    copied.write_bytes(b"no weights")
    refused = trained.call("ffrepro", "export", "crate/digits", "--to", "again")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "released.safetensors: " in refused.stderr
    assert not (trained.root / "again").exists()

    printed = trained.call("ffrepro", "evaluate", "digits", "--weights", "released")
    assert printed.returncode == 0, printed.stderr
    first, second = printed.stdout.splitlines()
    accuracy = float(first.removeprefix("digits-0: ").partition(" %")[0])
    metrics = json.loads((runs / "0" / "metrics.json").read_text())
    assert abs(accuracy - metrics["accuracy"]) < 1.5  # of 360 images, rounding moves a few at most
    assert re.fullmatch(
        r"digits-0: [01] of 360 predictions differ from the run's own, in goodness.safetensors; goodness within .* %",
        second,
    )
    restated = trained.call("ffrepro", "evaluate", "digits", "--weights", "released", "--restated")
    assert restated.returncode == 0, restated.stderr
    assert restated.stdout.count("\n") == 1  # another network's predictions are not the run's
    assert " in float32, statistics anew; " in restated.stdout


def test_what_half_precision_does_to_trained_weights_own_and_released(trained):
    assert release(trained).returncode == 0
    tables = []
    for weights in ("own", "released"):
        done = trained.call("python", "-m", "pipelines.precision", "digits", "0", "--weights", weights)
        assert done.returncode == 0, done.stderr
        title, _, *table = done.stdout.splitlines()
        assert title == f"digits-0, {weights} weights, a batch of 32"
        tables.append(table)
    assert len(tables[0]) == 9
    assert tables[0] != tables[1]


def test_released_weights_of_another_training_are_found(trained):
    assert release(trained).returncode == 0
    path = trained.root / "results" / "digits" / "0" / "released.safetensors"
    weights = record.read_tensors(path)
    weights["blocks.2.conv.weight"] *= 1 + 0.3 * torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    record.write_tensors(weights, path)
    done = trained.call("ffrepro", "evaluate", "digits", "--weights", "released")
    assert done.returncode == 2
    line = (
        r"released.safetensors: broken link: \d+ of 360 predictions differ from the run's goodness: more than rounding"
    )
    assert re.search(line, done.stderr)
    metrics = record.read_json(path.with_name("metrics.json"))
    table = {"goodness": record.read_tensors(path.with_name("goodness.safetensors"))["goodness"][:100]}
    digest = record.write_tensors(table, path.with_name("goodness.safetensors"))
    record.write_sealed({**metrics, "images": 100, "goodness_table": digest}, path.with_name("metrics.json"))
    done = trained.call("ffrepro", "evaluate", "digits", "--weights", "released")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "metrics.json: broken link: of 100 images, not 360" in done.stderr
    path.with_name("goodness.safetensors").unlink()
    done = trained.call("ffrepro", "evaluate", "digits", "--weights", "released")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "neither weights.safetensors nor goodness.safetensors: nothing to check it by" in done.stderr
    path.unlink()
    done = trained.call("ffrepro", "evaluate", "digits", "--weights", "released")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_released_weights_of_another_network_or_type_or_cut_off_are_told(trained):
    assert release(trained).returncode == 0
    path = trained.root / "results" / "digits" / "0" / "released.safetensors"
    run, weights, cpu = evidence.read(path.parent), record.read_tensors(path), torch.device("cpu")
    name = "blocks.2.conv.weight"
    record.write_tensors({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(UserError) as told:
        evidence.network(run, cpu, released=True)
    assert str(told.value) == f"{path}: weights of another network than the row's; train again"
    record.write_tensors({**weights, name: weights[name].float()}, path)
    with pytest.raises(UserError) as told:
        evidence.network(run, cpu, released=True)
    assert str(told.value) == f"{path}: broken link: {name} is torch.float32, not torch.float16"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as told:
        evidence.network(run, cpu, released=True)
    assert str(told.value).startswith(f"{path}: not a whole safetensors file (")
    assert str(told.value).endswith(f"; {evidence.ANEW}")


def test_own_weights_that_the_record_does_not_name_are_not_evaluated(trained):
    path = trained.root / "runs" / "digits" / "0" / "weights.safetensors"
    weights = record.read_tensors(path)
    weights["blocks.0.conv.weight"] *= 2
    record.write_tensors(weights, path)
    done = trained.call("ffrepro", "evaluate", "digits")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "weights.safetensors: broken link: not the tensors that record.json names" in done.stderr
    path.unlink()
    done = trained.call("ffrepro", "evaluate", "digits")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.endswith("weights.safetensors: not published\n")


@pytest.mark.parametrize("given", [["digits", "three"], ["digits", "-3"], ["digits"], []])
def test_a_mistake_of_the_release_is_told_without_a_traceback(project, given):
    done = project.call("python", "-m", "pipelines.release", *given)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_without_goodness_nothing_is_released(trained):
    (trained.root / "runs" / "digits" / "0" / "goodness.safetensors").unlink()
    done = release(trained)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not (trained.root / "results" / "digits").exists()


def test_weights_beyond_float16_are_not_released(trained):
    folder = trained.root / "runs" / "digits" / "0"
    weights = record.read_tensors(folder / "weights.safetensors")
    weights["blocks.0.conv.weight"][0, 0, 0, 0] = 1e6
    digest = record.write_tensors(weights, folder / "weights.safetensors")
    facts, metrics = (json.loads((folder / name).read_text()) for name in ("record.json", "metrics.json"))
    last, before = facts["chain"][-1], facts["chain"][-2]["link"]
    facts["chain"][-1] = checkpoint.chained(before, last["epoch"], digest, last["optimizer"])
    record.write_sealed({**facts, "weights": digest}, folder / "record.json")
    link = facts["chain"][-1]["link"]
    record.write_sealed({**metrics, "weights": digest, "link": link}, folder / "metrics.json")
    done = release(trained)
    assert done.returncode == 2
    assert "blocks.0.conv.weight does not fit into float16" in done.stderr
    assert not (trained.root / "results" / "digits").exists()


def test_what_is_not_there_is_told_in_a_line(trained):
    done = trained.call("ffrepro", "evaluate", "digits", "--weights", "released")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    done = release(trained, "7")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(("units", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_evaluates_float16_in_what_it_can(row, monkeypatch, units, precision):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: units)
    assert devices.stand_in(row(precision="float16"), torch.device("cpu")) == precision
    assert devices.stand_in(row(precision="float16"), torch.device("cuda")) == "float16"
    assert devices.stand_in(row(precision="float32"), torch.device("cpu")) == "float32"


# --- what is published ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(root):
    return layout.Layout(root, "results")


def test_the_published_weights_are_the_networks(published, params):
    row = params.experiments["cifar10"]
    released = record.read_tensors(published.released("cifar10", 0))
    network = training.build(row, 0, torch.device("cpu"))
    training.load_weights(network, released, published.released("cifar10", 0))
    assert published.released("cifar10", 0).stat().st_size < 18e6
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_the_published_run_was_trained_twice_to_the_same_bits(published):
    run = evidence.read(published.run("cifar10", 0))
    again = record.read_json(published.experiment("cifar10").parent / "again-0.json")
    assert len(again) == 145
    assert again == run.facts["chain"][:145]


def test_the_verdict_in_the_readme_is_what_verify_says(root, published, params):
    row = params.experiments["cifar10"]
    runs = [evidence.read(folder) for folder in evidence.runs_of(published.experiment("cifar10").parent)]
    # what each one's own rung says of goodness and labels, `verify` checks; here is no data set
    metrics = [
        proof.Rung("metrics", "", None if run.weights is None else True, run.metrics["accuracy"]) for run in runs
    ]
    target = targets.target_of(targets.read_targets(published.paper, published.reference), "cifar10", row)
    ((rung, _),) = proof.statistics(runs, metrics, target, None, True)
    for name in ("README.md", "docs/cifar10.md"):
        assert f"-- statistics: {rung.found}\n" in (root / name).read_text()
