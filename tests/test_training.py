"""A training repeats and resumes bit for bit."""

import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from ffrepro import __version__, checkpoint, negatives, record, training
from ffrepro.backprop import Classifier
from ffrepro.checkpoint import chained, hashes, read, snapshot
from ffrepro.config import training_parameters
from ffrepro.data import Split
from ffrepro.engine import Engine
from ffrepro.errors import UserError
from ffrepro.evaluation import block_accuracies, goodness_table
from ffrepro.hinton import FullyConnected
from ffrepro.layout import Layout
from ffrepro.network import Convolutional
from ffrepro.step import optimizers
from ffrepro.training import build, first_link, train


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing


BLOCKS = [(4, False), (8, True)]
BUILT = {
    "Trifecta": (
        {"blocks": "4 8P", "norm": "batch", "label_patch": 2},
        lambda: Convolutional((1, 8, 8), 10, BLOCKS, "batch", 5, label_patch=2),
        2,
    ),
    "its backprop twin": (
        {"blocks": "4 8P", "norm": "batch", "update": "backprop", "loss": "cross-entropy"},
        lambda: Classifier((1, 8, 8), 10, BLOCKS, "batch", 5),
        1,  # the first reads one channel, whose order is the same either way
    ),
    "Hinton's": (
        {"blocks": "4 8", "norm": "length", "update": "layer-wise", "loss": "threshold"},
        lambda: FullyConnected((1, 8, 8), 10, [4, 8], 5),
        0,
    ),
}


@pytest.mark.parametrize("kind", BUILT)
def test_the_network_is_the_rows_with_the_seeds_weights(row, kind):
    values, network, convolutions = BUILT[kind]
    built, expected = build(row(**values), 5, torch.device("cpu")), network()
    assert (repr(built), built.classes) == (repr(expected), expected.classes)
    assert_same_weights(built, expected)
    read = [value for value in built.parameters() if value.ndim == 4 and value.shape[1] > 1]
    assert [value.is_contiguous(memory_format=torch.channels_last) for value in read] == [True] * convolutions


def test_training_repeats_bit_for_bit_and_depends_on_the_seed(row, digits):
    chosen = row(epochs=1, blocks="8 16P 16")
    data = digits[0][torch.arange(200)]
    first, history, *_ = train(chosen, 0, data)
    assert_same_weights(first, train(chosen, 0, data)[0])
    other, *_ = train(chosen, 1, data)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert [entry["epoch"] for entry in history] == [1]
    assert {"loss_1", "loss_3", "separation_1", "images_per_second", "seconds"} <= history[0].keys()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_keeps_float32_weights(row, digits, precision):
    chosen = row(epochs=1, blocks="4 8P", precision=precision)
    network, history, *_ = train(chosen, 0, digits[0][torch.arange(128)])
    assert {t.dtype for t in network.parameters()} == {torch.float32}
    assert history[0]["loss_2"] < 0.75


@pytest.mark.parametrize("hardness", [0, 2])
def test_resumed_training_equals_the_undisturbed_one(row, digits, tmp_path, hardness):
    chosen, data = row(epochs=4, blocks="8 16P 16", hardness=hardness), digits[0][torch.arange(200)]
    undisturbed, *_ = train(chosen, 0, data)

    class PowerCutError(Exception):
        pass

    def cut(epoch, step):
        if (epoch, step) == (2, 1):  # in the middle of an epoch
            raise PowerCutError

    lines = []
    with pytest.raises(PowerCutError):
        train(chosen, 0, data, checkpoint=tmp_path / "c.pt", progress=cut)
    resumed, history, *_ = train(chosen, 0, data, checkpoint=tmp_path / "c.pt", say=lines.append)
    assert lines == ["c.pt: going on after epoch 2"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert_same_weights(resumed, undisturbed)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("parameters", {"lr": 0.5}),
        ("seed", None),
        ("data", None),
        ("code", None),
        ("environment", None),
        ("torn", None),
    ],
)
def test_a_checkpoint_of_something_else_is_not_resumed(row, digits, tmp_path, monkeypatch, what, change):
    chosen, data, seed = row(epochs=1, blocks="4 4P"), digits[0][torch.arange(100)], 0
    path = tmp_path / "c.pt"
    train(chosen, seed, data, checkpoint=path)
    lines = []
    if what == "parameters":
        chosen = row(epochs=1, blocks="4 4P", **change)
    elif what == "seed":
        seed = 1
    elif what == "data":
        data = Split(data.images ^ 1, data.labels)
    elif what == "code":
        monkeypatch.setattr(record, "code_hash", lambda: "of another version")
    elif what == "environment":
        torch.set_num_threads(2)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    resumed, *_ = train(chosen, seed, data, checkpoint=path, say=lines.append)
    (line,) = lines
    if what == "torn":
        assert re.fullmatch(r".*c\.pt: not a whole checkpoint.*: not resumed, training starts anew", line)
    else:
        assert line == f"c.pt: of other {what}: not resumed, training starts anew"
    assert_same_weights(resumed, train(chosen, seed, data)[0])


def seal_again(state):
    state["seal"] = checkpoint.seal(state)


def forged_link(state):
    state["chain"][0]["link"] = "0" * 64
    seal_again(state)


def shorter(state, epochs):
    """Told of its first epochs alone."""
    del state["history"][epochs:], state["chain"][epochs:]
    seal_again(state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["history"][0].update(loss=0.0),
        lambda state: state.update(started="2020-01-01T00:00:00+00:00"),
        lambda state: state["chain"].pop(),
        lambda state: state["network"]["blocks.0.conv.weight"].add_(1),
        lambda state: state["optimizers"][0]["state"][0]["exp_avg"].add_(1),
        lambda state: state["memory"]["images"].fill_(0),
        lambda state: state["optimizers"][1]["state"].update({99: {}}),
        forged_link,
        lambda state: shorter(state, 1),
        lambda state: shorter(state, 0),
    ],
)
def test_a_checkpoint_that_its_chain_does_not_name_changes_nothing(row, digits, tmp_path, damage):
    """The archive's own checksums hold."""
    chosen, data, path = row(epochs=2, blocks="4 4P", hardness=3.0), digits[0][torch.arange(100)], tmp_path / "c.pt"
    whole = train(chosen, 0, data, checkpoint=path)

    def resumed():
        network = build(chosen, 0, torch.device("cpu"))
        parts = network, optimizers(network, chosen.training), negatives.memory(100, 10, torch.device("cpu"))
        before = hashes(snapshot(*parts))
        key = training._key(chosen, 0, data)
        first = first_link(key | {"initial weights": whole.initial_weights})
        with checkpoint.Checkpoint(path, key, first, *parts) as saved:
            history, line = saved.resume()
        return len(history), line, hashes(snapshot(*parts)) == before, saved.chain

    assert resumed() == (2, "c.pt: going on after epoch 2", False, whole.chain)
    state = read(path, torch.device("cpu"))
    damage(state)
    torch.save(state, path)
    line = "c.pt: damaged, not what its own chain names: not resumed, training starts anew"
    assert resumed() == (0, line, True, [])


def kill_and_compare(project, kills, pause):
    """Kill the train stage at random moments, let it finish, and compare its files with an undisturbed run's."""
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"])
    folder, checkpoint = project.root / "runs" / "digits" / "0", project.root / "checkpoints" / "digits-0.pt"
    undisturbed = (folder / "weights.safetensors").read_bytes()
    chain = record.read_json(folder / "record.json")["chain"]
    shutil.rmtree(folder)
    checkpoint.unlink()
    command = [sys.executable, "-m", "pipelines.train", "digits", "0"]
    for how in kills:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command, cwd=project.root, stderr=subprocess.DEVNULL)
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(random.uniform(0, pause))
        process.send_signal(how)
        assert process.wait() != 0
        assert not (folder / "weights.safetensors").exists()
        state = read(checkpoint, torch.device("cpu"))  # whole, whenever the kill came
        assert state["chain"] == chain[: len(state["history"])]
    done = project.call("python", "-m", "pipelines.train", "digits", "0")
    assert done.returncode == 0
    assert "going on after epoch" in done.stderr
    assert (folder / "weights.safetensors").read_bytes() == undisturbed
    assert record.read_json(folder / "record.json")["chain"] == chain
    shutil.rmtree(folder)  # as DVC does, which was stopped before it noted that the training had ended
    again = project.call("python", "-m", "pipelines.train", "digits", "0")
    assert f"going on after epoch {len(chain)}" in again.stderr
    assert (folder / "weights.safetensors").read_bytes() == undisturbed
    assert record.read_json(folder / "record.json")["chain"] == chain
    project.stages(["evaluate", "digits", "0"])
    assert not checkpoint.exists()


def test_killed_training_ends_in_the_same_weights(project):
    project.edit("params.yaml", "blocks: 48 96P 96 96", "blocks: 8 16P 16 16")
    kill_and_compare(project, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT), pause=0.1)  # about an epoch


@pytest.mark.slow
def test_twenty_kills_end_in_the_same_weights_and_chain(project):
    project.shrink("32 64P 64 64", epochs=60)
    kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT] * 7
    kill_and_compare(project, kills[:20], pause=0.5)


@pytest.mark.parametrize("when", ["while writing", "before the rename"])
def test_a_power_cut_while_a_checkpoint_is_written_loses_one_epoch(row, digits, tmp_path, monkeypatch, when):
    """The machine stops where no handler runs any more: what lies on the disk then is all there is."""
    chosen, data, path = row(epochs=3, blocks="4 8P"), digits[0][torch.arange(200)], tmp_path / "c.pt"
    undisturbed = train(chosen, 0, data)
    writes = 0

    class PowerCutError(BaseException):
        pass

    def write(target, writer):
        nonlocal writes
        writes += 1
        part = target.with_name(target.name + ".part")
        writer(part)
        if writes == 2:
            if when == "while writing":
                part.write_bytes(part.read_bytes()[:1000])
            raise PowerCutError
        part.replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(record, "write", write)
        with pytest.raises(PowerCutError):
            train(chosen, 0, data, checkpoint=path)
    assert (tmp_path / "c.pt.part").exists()
    lines = []
    resumed = train(chosen, 0, data, checkpoint=path, say=lines.append)
    assert lines == ["c.pt: going on after epoch 1"]
    assert_same_weights(resumed.network, undisturbed.network)
    assert resumed.chain == undisturbed.chain


def test_the_chain_starts_from_what_is_trained_and_ends_in_the_weights(row, digits):
    data = digits[0][torch.arange(100)]
    one, other = (train(row(epochs=2, blocks="4 4P", lr=lr), 0, data) for lr in (0.001, 0.002))
    assert [link["epoch"] for link in one.chain] == [1, 2]
    assert one.chain[-1]["weights"] == record.tensors_hash(one.network.state_dict())
    assert not {link["link"] for link in one.chain} & {link["link"] for link in other.chain}
    assert first_link({"seed": "0", "environment": "here"}) == first_link({"seed": "0", "environment": "there"})
    assert first_link({"seed": "0"}) != first_link({"seed": "1"})


def test_the_first_link_by_hand(row, digits):
    chosen, data = row(epochs=1, blocks="4 4P"), digits[0][torch.arange(100)]
    trained = train(chosen, 3, data)
    facts = [
        ("code", record.code_hash()),
        ("data", record.tensors_hash(data._asdict())),
        ("initial weights", record.tensors_hash(build(chosen, 3, torch.device("cpu")).state_dict())),
        ("parameters", training_parameters(chosen)),
        ("seed", "3"),
    ]
    first = hashlib.sha256("".join(f"{name}: {value}\n" for name, value in facts).encode()).hexdigest()
    (link,) = trained.chain
    assert link == chained(first, 1, link["weights"], link["optimizer"])


def test_an_epochs_entry_by_a_clock_and_a_meter(row, digits, monkeypatch):
    """What a history says of an epoch, on a clock and a meter of the test's own."""
    chosen, data = row(epochs=2, blocks="4 4P", batch=30), digits[0][torch.arange(100)]  # 3 batches; 10 are left over
    held_out = digits[0][torch.arange(100, 150)]
    clock, meter, asked, ended = iter((100.0, 103.1234567, 200.0, 204.5)), iter((1000.0, 1002.26, 1010.0, None)), [], []
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=clock.__next__))
    monkeypatch.setattr(record, "joules", lambda device: (asked.append(device), next(meter))[1])
    monkeypatch.setattr(checkpoint, "now", lambda: "2026-01-01T00:00:00+00:00")
    trained = train(chosen, 0, data, held_out, finished=ended.append)
    first, second = trained.history
    assert ended == [first, second]
    assert asked == [torch.device("cpu")] * 4
    blocks = [f"{what}_{i}" for what in ("loss", "separation") for i in (1, 2)]
    counted = ["epoch", "seconds", "images_per_second", "joules"]
    assert set(first) == {*counted, "loss", *blocks, "held_out_1", "held_out_2"}
    assert [[entry[key] for key in counted] for entry in (first, second)] == [[1, 3.123, 28.8, 2.3], [2, 4.5, 20.0, 0]]
    for entry in (first, second):
        assert entry["loss"] == pytest.approx((entry["loss_1"] + entry["loss_2"]) / 2)
    table = goodness_table(trained.network, held_out.images, chosen)
    assert {key: value for key, value in second.items() if key.startswith("held_out_")} == {
        f"held_out_{block}": value for block, value in block_accuracies(table, held_out.labels).items()
    }
    assert trained.started == "2026-01-01T00:00:00+00:00"


def test_every_epochs_state_stays_where_it_was_asked_for(row, digits, tmp_path):
    chosen, data = row(epochs=2, blocks="4 4P"), digits[0][torch.arange(100)]
    for name in ("kept", "not"):
        record.write_bytes(b"a longer training's", checkpoint.kept_state(tmp_path / name, 3))
    record.write_bytes(b"no state", tmp_path / "kept" / "notes.txt")
    for name, keep in (("kept", True), ("not", False)):
        train(chosen, 0, data, checkpoint=tmp_path / f"{name}.pt", keep=keep)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["1.pt", "2.pt", "notes.txt"]
    assert not (tmp_path / "not").exists()


def test_states_can_be_asked_for_after_an_interruption(row, digits, tmp_path):
    chosen, data = row(epochs=3, blocks="4 4P"), digits[0][torch.arange(100)]

    def stop(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chosen, 0, data, checkpoint=tmp_path / "a.pt", finished=stop)
    state = (tmp_path / "a.pt").read_bytes()
    train(chosen, 0, data, checkpoint=tmp_path / "a.pt", keep=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["2.pt", "3.pt"]
    assert (tmp_path / "a" / "2.pt").read_bytes() == state


def test_a_state_is_written_by_a_thread_as_it_is_on_cuda(row, digits, tmp_path):
    """What cannot be written is told at the latest when the training ends."""
    chosen, cpu = row(blocks="4 4P", hardness=3.0), torch.device("cpu")
    network = build(chosen, 0, cpu)
    parts = network, optimizers(network, chosen.training), negatives.memory(100, 10, cpu)
    entries = [{"epoch": 1}, {"epoch": 2}]

    def of(name, **key):
        return checkpoint.Checkpoint(tmp_path / name, key, "0" * 64, *parts)

    def saved(name, device):
        with of(name, seed="0") as written:
            assert written.resume() == ([], "")
            written.device = torch.device(device)
            for epoch in (1, 2):
                written.save(entries[:epoch])
        return written.chain

    chain = saved("thread.pt", "cuda")
    assert [link["epoch"] for link in chain] == [1, 2]
    assert saved("caller.pt", "cpu") == chain
    for name in ("thread", "caller"):
        assert of(f"{name}.pt", seed="0").resume() == (entries, f"{name}.pt: going on after epoch 2")
        assert not (tmp_path / name).exists()  # states stay where they are asked for, only
    others = "thread.pt: of other seed, data: not resumed, training starts anew"
    assert of("thread.pt", seed="1", data="d").resume() == ([], others)
    for device in ("cuda", "cpu"):
        with pytest.raises(UserError, match=r"c\.pt: cannot be written: "):
            saved("caller.pt/c.pt", device)


def test_a_link_by_hand():
    # printf 'a\n1\nb\nc\n' | sha256sum
    link = "5e44e5da038145bb19b3680c2e20d55d78f7b09680198f84bdb87da8b19001d8"
    assert chained("a", 1, "b", "c") == {"epoch": 1, "weights": "b", "optimizer": "c", "link": link}


def test_the_hash_of_the_optimizers_sees_each_moment_and_the_memory(row, digits):
    chosen = row(epochs=1, blocks="4 4P", hardness=1)
    network = build(chosen, 0, torch.device("cpu"))
    adams, memory = optimizers(network, chosen.training), negatives.memory(100, 10, torch.device("cpu"))
    Engine(network, adams, memory, digits[0][torch.arange(100)], chosen).epoch(0, 0)
    state = snapshot(network, adams, memory)
    seen = {hashes(state)}
    tensors = [value for adam in adams for one in adam.state.values() for value in one.values()] + list(memory)
    for tensor in tensors:
        tensor[(0,) * tensor.ndim] = 7.5
        seen.add(hashes(state))
    assert len(seen) == 1 + len(tensors)


def test_the_time_of_an_epoch_is_told_from_few_images_or_from_the_rows_own_batch(row, monkeypatch):
    """A step that is not quick, a large network's on a CPU say, is not tried with the whole batch."""
    chosen, clock, seen = row(blocks="4 8P", batch=16), [50.0], []

    def told(step_of):
        """Seconds of an epoch on a clock by which a step of so many images takes step_of(images)."""
        seen.clear()

        def epoch(engine, seed, epoch):
            batch = engine.experiment.training.batch
            seen.append((batch, engine.steps, str(engine.data.images.dtype), seed, epoch))
            clock[0] += engine.steps * step_of(batch)

        with monkeypatch.context() as patch:
            patch.setattr(training.time, "perf_counter", lambda: clock[0])
            patch.setattr(training.Engine, "epoch", epoch)
            return training.seconds_per_epoch(chosen, torch.device("cpu")) / chosen.steps

    few = [(batch, 2, "torch.uint8", 0, 0) for batch in (2, 2, 6)]
    own = [(16, 2, "torch.uint8", 0, 0)] * 2
    assert told(lambda batch: 0.5 + 0.25 * batch) == pytest.approx(4.5)
    assert seen == few
    assert told(lambda batch: 4.0 if batch == 2 else 3.0) == pytest.approx(4.0)  # more images are never quicker
    assert seen == few
    assert told(lambda batch: {2: 0.2, 6: 9.2}.get(batch, 1.0)) == pytest.approx(16 * 2.25)  # nothing is no less than 0
    assert told(lambda batch: {2: 0.5, 6: 0.75, 16: 1.0}[batch]) == pytest.approx(1.0)  # and not 1.375
    assert seen == few + own


def test_an_epoch_that_is_timed_trains(row):
    chosen = row(blocks="4 8P", batch=16, hardness=1)
    assert training.seconds_per_epoch(chosen, torch.device("cpu")) > 0


def test_a_record_says_what_was_trained_from_what_on_what(row, digits, tmp_path, monkeypatch):
    chosen, data = row(blocks="4 8P", epochs=3), digits[0].rows(slice(0, 64))
    trained = training.train(chosen, 7, data)
    timed = [entry | {"seconds": seconds} for entry, seconds in zip(trained.history, (1.26, 2, 3), strict=True)]
    trained = trained._replace(history=timed)
    project, history = Layout(tmp_path), tmp_path / "history.csv"
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "run.txt").write_text("torch==2\n")
    record.write_csv(trained.history, history)
    monkeypatch.setattr(training, "now", lambda: "2026-01-01T00:00:00+00:00")
    facts = training.run_record("digits", chosen, 7, trained, history, project)
    assert facts == {
        "experiment": "digits",
        "seed": 7,
        "ffrepro": __version__,
        "code": record.code_hash(),
        "source": record.code_hash(record.every_module()),
        "lock": record.lock_hash(tmp_path),
        "row": json.loads(training_parameters(chosen)),
        "parameters": record.text_hash(training_parameters(chosen)),
        "data": record.tensors_hash(data._asdict()),
        "initial_weights": record.tensors_hash(build(chosen, 7, torch.device("cpu")).state_dict()),
        "chain": trained.chain,
        "weights": record.tensors_hash(trained.network.state_dict()),
        "history": record.file_hash(history),
        "environment": record.environment(torch.device("cpu")),
        "driver": None,
        "started": trained.started,
        "ended": "2026-01-01T00:00:00+00:00",
        "seconds": 6.3,
        "joules": None,
    }
    measured = [entry | {"joules": joules} for entry, joules in zip(timed, (1.25, 2.5, 1), strict=True)]
    told = training.run_record("digits", chosen, 7, trained._replace(history=measured), history, project)
    assert told["joules"] == 4.8


def test_weights_of_another_network_are_refused_in_a_line(row, tmp_path):
    network, other = (build(row(blocks=blocks), 0, torch.device("cpu")) for blocks in ("4 8P", "4 4P"))
    with pytest.raises(UserError) as caught:
        training.load_weights(network, other.state_dict(), tmp_path / "w")
    assert str(caught.value) == f"{tmp_path / 'w'}: weights of another network than the row's; train again"
    changed = {name: value + 1 for name, value in network.state_dict().items()}
    training.load_weights(network, changed, tmp_path / "w")
    assert record.tensors_hash(network.state_dict()) == record.tensors_hash(changed)
