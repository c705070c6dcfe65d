"""Input that is broken on purpose: in the project's files, in what runs leave behind, and on the command line.

Each ends in a sound answer or in lines that a person can act on, never in a traceback, a hang or a changed file. The
suite draws the same examples each time; FFREPRO_FUZZ=10 draws ten times as many, and others each time.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import re
import resource
import struct

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from test_config import sound  # noqa: F401  # the small params.yaml

from ffrepro import (
    checkpoint,
    claims,
    cli,
    config,
    crate,
    deviations,
    evidence,
    figure_data,
    figures,
    negatives,
    pipeline,
    proof,
    record,
    report,
    tables,
    targets,
    training,
)
from ffrepro.data import DATASETS, Split
from ffrepro.engine import Engine
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.step import optimizers
from ffrepro.verdict import verdict

LONGEST = 600  # characters of a line that is printed
TIMES = int(os.environ.get("FFREPRO_FUZZ", "1"))


def fuzz(examples):
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


def lines_of(error, start, code=2):
    """A UserError's lines, each of them fit to be printed."""
    lines = str(error).split("\n")
    assert error.exit_code == code
    for line in lines:
        assert line.startswith(start), line
        assert line.isprintable(), ascii(line)
        assert len(line) <= LONGEST, line
    return lines


# YAML

CHARACTERS = st.characters(exclude_categories=["Cs"])  # surrogates cannot be written
ODD = st.sampled_from("\0\t\r\x0b\x1b\x7f\x85\xa0\u0661\u200b\u202e\u2028\u2029\u2066\ufeff\ufffe\U000e0001é漢🦊")
TEXT = st.text(CHARACTERS | ODD, max_size=20)
NUMBERS = (
    st.integers(-(2**70), 2**70).map(str)
    | st.sampled_from(["9" * 400, "-" + "9" * 5000, "0x" + "f" * 5000, "1e999", "-1e-999", ".nan", "-.inf", "1_0", "0"])
    | st.floats().map(repr)
)
VALUES = (
    NUMBERS
    | TEXT
    | st.sampled_from(
        ["", "~", "true", "yes", "[]", "{}", "[[[1]]]", "{a: {b: [c]}}", "'", '"', "|", ">", "&a", "*a", "&a [*a]"]
    )
    | st.sampled_from(
        ["2020-01-01", "2020-99-99", "1:30", "{? [a] : b}", "{? {a: b} : c}", "{<<: 3}", "{<<: [{a: 1}]}", "? a"]
    )
    | st.sampled_from(
        ["!!python/object/apply:os.system ['touch fuzzed']", "!!binary x", "!!int x", "!!set {a, b}", "!!omap [a: 1]"]
    )
    | st.sampled_from(
        ["[" * 300, "[" * 300 + "]" * 300, "x" * 3000, "[" + "1, " * 3000 + "]", "!x y", "!!timestamp x", "- a"]
    )
    | st.sampled_from(['"\\ud800"', "<<: *a", "%x", "@x", "`x", "..."])
)
LINE = re.compile(r"^( *(?:- )?)([^\s:]+)(: *)(.*)$")


@st.composite
def mutated(draw, text):
    """A file with one to three mistakes in it, as bytes; some are none, such as a line less that was not needed."""
    kind = draw(st.integers(0, 29))
    if kind == 0:
        return draw(st.binary(max_size=200))
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        if not lines:
            break
        place = draw(st.integers(0, len(lines) - 1))
        line = lines[place]
        found = LINE.match(line)
        match draw(st.sampled_from(["value", "value", "typo", "key", "less", "twice", "swap", "indent", "character"])):
            case "value" if found:
                lines[place] = f"{found[1]}{found[2]}: {draw(VALUES)}"
            case "typo" if found:
                at, key = draw(st.integers(0, len(found[2]) - 1)), found[2]
                typed = draw(st.just("") | st.just(2 * key[at]) | CHARACTERS)
                lines[place] = f"{found[1]}{key[:at]}{typed}{key[at + 1 :]}{found[3]}{found[4]}"
            case "key" if found:
                lines[place] = f"{found[1]}{draw(VALUES)}{found[3]}{found[4]}"
            case "less":
                del lines[place]
            case "twice":
                lines.insert(draw(st.integers(0, len(lines))), line)
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[place], lines[other] = lines[other], line
            case "indent":
                lines[place] = " " * draw(st.integers(0, 8)) + line.lstrip()
            case _:
                at = draw(st.integers(0, len(line)))
                lines[place] = line[:at] + draw(CHARACTERS | ODD) + line[at:]
    content = ("\n".join(lines) + "\n").encode()
    if kind == 1:
        return content[: draw(st.integers(0, len(content)))]
    if kind == 2:
        at = draw(st.integers(0, len(content)))
        return content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.integers(0, 4)) :]
    if kind == 3:
        return draw(st.sampled_from([b"\xef\xbb\xbf", b"%YAML 1.1\n---\n", b"---\n", b"...\n", b"\xff\xfe"])) + content
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def small(sound):  # noqa: F811
    """The small params.yaml as a person would write it, a key a line."""
    from io import StringIO

    yaml, text = YAML(typ="safe"), StringIO()
    yaml.default_flow_style = False
    yaml.dump(sound, text)
    return text.getvalue()


def read_mutated(read, path, content):
    """What a file is read as, None for one that is refused in good order."""
    path.write_bytes(content)
    try:
        return read(path)
    except UserError as error:
        lines_of(error, f"{path.name}: ")
        return None


@fuzz(2000)
@given(st.data())
def test_params_that_were_mistyped_are_sound_or_refused_line_by_line(small, folder, data):
    found = read_mutated(config.load, folder / "params.yaml", data.draw(mutated(small)))
    assert found is None or all(isinstance(row, config.Experiment) for row in found.experiments.values())


@fuzz(300)
@given(st.data())
def test_a_paper_that_was_mistyped_is_sound_or_refused_line_by_line(root, folder, data):
    content = data.draw(mutated((root / "paper.yaml").read_text(encoding="utf-8")))
    read_mutated(targets.read_claims, folder / "paper.yaml", content)  # checks all of it, as the others do


@fuzz(300)
@given(st.data())
def test_deviations_that_were_mistyped_are_sound_or_refused_line_by_line(root, folder, params, data):
    content = data.draw(mutated((root / "deviations.yaml").read_text(encoding="utf-8")))
    if found := read_mutated(deviations.read, folder / "deviations.yaml", content):
        assert [list(deviations.of(row, found)) for row in params.experiments.values()]


@fuzz(300)
@given(st.data())
def test_a_graph_that_was_mistyped_fits_or_is_refused(small, folder, data):
    project = Layout(folder)
    project.params.write_text(small, encoding="utf-8")
    params = config.load(project.params)
    pipeline.write_graph(params, project)
    project.graph.write_bytes(data.draw(mutated(project.graph.read_text(encoding="utf-8"))))
    try:
        pipeline.check_graph(params, project)
    except UserError as error:
        lines_of(error, "graph.yaml")


BOMBS = {
    "billion laughs": "seeds: [0]\na: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "defaults: {training: {lr: *i}, title: *i}\nexperiments: {x: {seeds: *i}, y: *i}\n",
    "merged keys": "a: &a {x: 1, y: 2}\n"
    + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "itself": "seeds: &a [*a, *a]\ndefaults: &b {data: *b, title: *a}\nexperiments: {x: *b, y: &c {like: *c}}\n",
    "deep flow": "seeds: " + "[" * 600,
    "deep blocks": "- " * 5000,
    "as deep as can be read": "seeds: " + "[" * 200 + "]" * 200,
    "decimal": "seeds: [0]\ndefaults: " + "9" * 5000,
    "hexadecimal": "seeds: 0x" + "f" * 5000,
    "big float": "seeds: 1e99999999999",
    "tag": "seeds: !!python/object/apply:os.system [touch fuzzed]",
    "key": "? [[a], *x]\n: 1",
    "long key": "x" * 1000 + ": 1",
    "long words": "seeds: " + "word " * 20_000,
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.parametrize("read", [config.load, targets.read_claims, deviations.read])
def test_a_few_lines_that_mean_too_much_are_refused(tmp_path, monkeypatch, case, read):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.yaml"
    path.write_text(BOMBS[case])
    with pytest.raises(UserError) as caught:
        read(path)
    lines_of(caught.value, "some.yaml: ")
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("content", [b"a: [" * 13_000_000, b"\0" * 50_000_000, b"a: b\n" * 60_000])
def test_a_file_that_is_far_too_long_is_not_read(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value) == "params.yaml: given more than 256 KiB; allowed: at most that; restore the file"


def test_a_name_in_a_list_is_refused_by_its_place(root, tmp_path):
    text = (root / "paper.yaml").read_text(encoding="utf-8")
    (tmp_path / "paper.yaml").write_text(text.replace("tables: [ablation,", "tables: [null,", 1))
    with pytest.raises(UserError) as caught:
        targets.read_claims(tmp_path / "paper.yaml")
    assert str(caught.value).startswith("paper.yaml: claims.symba-above-threshold.tables.0: given nothing; allowed: ")


# JSON

CPU = torch.device("cpu")
PIECES = (
    st.sampled_from([None, True, 0, -1, 1.5, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), [], {}, [[]]])
    | st.sampled_from(["", "x", "\ud800", "\x1b[31m\u202e", "9" * 5000, "0" * 64, "2026-99-99T99:99:99+00:00", "a\nb"])
    | st.sampled_from([10, 40, 400]).map(lambda depth: json.loads("[" * depth + "]" * depth))
    | TEXT
    | st.integers()
    | st.floats()
)


@st.composite
def altered(draw, content):
    """JSON with another value somewhere, without it, or with one more."""
    content = copy.deepcopy(content)
    holder, place = None, None
    value = content
    while isinstance(value, dict | list) and value and (holder is None or draw(st.integers(0, 3))):
        holder, place = value, draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        value = holder[place]
    match draw(st.sampled_from(["other", "other", "other", "less", "more", "whole"])):
        case "other":
            holder[place] = draw(PIECES)
        case "less":
            del holder[place]
        case "more":
            piece = draw(PIECES)
            holder.insert(place, piece) if isinstance(holder, list) else holder.update({draw(TEXT): piece})
        case _:
            content = draw(PIECES)
    return content


@st.composite
def damaged(draw, content):
    """Bytes of which some are others, or missing, or more, or all."""
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    match draw(st.sampled_from(["flip", "flip", "flip", "cut", "write", "twice", "other"])):
        case "flip" if content:
            return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        case "cut":
            return content[:at]
        case "write":
            return content[:at] + draw(st.binary(max_size=9)) + content[at + draw(st.integers(0, 9)) :]
        case "twice":
            return content + content[at:]
    return draw(st.binary(max_size=50) | st.sampled_from([b"[" * 100_000, b'{"a":' * 5000, b"NaN", b"9" * 5000]))


@pytest.fixture(scope="module")
def ran(project_in, tmp_path_factory):
    """A project with a run of a tiny row, by the stages."""
    project = project_in(tmp_path_factory.mktemp("ran"))
    project.edit("params.yaml", "seeds: [0, 1, 2]", "seeds: [0]")
    project.shrink("2 2P", epochs=2)
    project.stages(["check", "digits"], ["prepare", "digits"], ["train", "digits", "0"], ["evaluate", "digits", "0"])
    return Layout(project.root)


@pytest.fixture(scope="module")
def splits(ran):
    return pipeline.prepared(ran, config.read_experiment(ran.experiment("digits")), {})


@contextlib.contextmanager
def in_place_of(path, content):
    """Another content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def as_bytes(content, *, sealed):
    """JSON as a forger would write it, sealed where it can be."""
    if sealed and isinstance(content, dict):
        with contextlib.suppress(ValueError, RecursionError):  # NaN, and what is too deep
            return record.sealed(content).encode()
    return json.dumps(content, indent=2).encode()


def verified(run, splits, to):
    """Everything that is done with a run: it holds, or a line says what is broken."""
    try:
        read = evidence.read(run)
        rungs = list(proof.ladder(read, splits, [run / "record.json"], CPU))
    except UserError as error:
        lines_of(error, str(run.parent))
        return
    assert all(rung.found.isprintable() for rung in rungs)
    assert crate.codecheck([read]).isascii()
    if not to.exists():  # once is enough for what is honest, and takes a while
        crate.export([read], to)


@fuzz(500)
@given(st.data())
def test_a_record_that_is_altered_and_sealed_anew_is_told_of(ran, splits, tmp_path_factory, data):
    run = ran.run("digits", 0)
    path = run / data.draw(st.sampled_from(["record.json", "metrics.json"]))
    content = data.draw(altered(record.read_json(path)))
    with in_place_of(path, as_bytes(content, sealed=data.draw(st.integers(0, 9)) > 0)):
        verified(run, splits, tmp_path_factory.getbasetemp() / "crate")


FILES = ["record.json", "metrics.json", "history.csv", "weights.safetensors", "goodness.safetensors"]


@fuzz(400)
@given(st.data())
def test_a_file_of_a_run_that_is_damaged_is_told_of(ran, splits, tmp_path_factory, data):
    run = ran.run("digits", 0)
    path = data.draw(st.sampled_from([*(run / name for name in FILES), run.parent / "experiment.json"]))
    with in_place_of(path, data.draw(damaged(path.read_bytes()))):
        verified(run, splits, tmp_path_factory.getbasetemp() / "crate")


@fuzz(200)
@given(st.data())
def test_a_row_that_is_altered_is_told_of(ran, splits, tmp_path_factory, data):
    run = ran.run("digits", 0)
    path = run.parent / "experiment.json"
    content = data.draw(altered(record.read_json(path)))
    with in_place_of(path, (json.dumps(content, indent=2, sort_keys=data.draw(st.booleans())) + "\n").encode()):
        verified(run, splits, tmp_path_factory.getbasetemp() / "crate")


# What the tables, the list and the claims are made of

ROWS = """
sources: {someone: Someone}
targets: {small: {mean: 80, std: 1, source: someone}}
tables: {both: {title: Both, rows: {a: {x: small, y: wide}}}}
claims: {one: {claim: One, source: someone, each: false, tables: [both], pairs: [[a.y, a.x]]}}
"""


@pytest.fixture(scope="module")
def told(small, root, tmp_path_factory):
    """A project where one row was judged here, with its runs, and another has a committed reference."""
    project = Layout(tmp_path_factory.mktemp("told"))
    project.params.write_text(small, encoding="utf-8")
    project.paper.write_text(ROWS, encoding="utf-8")
    project.deviations.write_bytes((root / "deviations.yaml").read_bytes())
    rows = config.load(project.params).experiments
    values = targets.spread([80.0, 81.0])
    entry = {"seeds": [3, 4], "values": values["values"], "mean": values["mean"], "std": values["std"], "seconds": 9.0}
    entry |= {"row": targets.measured(rows["wide"]), "command": "c", "machine": "m", "ffrepro": "0"}
    record.write_json({"wide": entry}, project.reference)
    row = rows["small"]
    for seed in row.seeds:
        facts = {"seed": seed, "parameters": record.text_hash(config.training_parameters(row)), "weights": "0" * 64}
        facts |= {"code": "1" * 64, "started": "2026-01-01", "seconds": 9.0, "ffrepro": "0"}
        environment = {"device": "cpu", "model": "A CPU", "threads": 2}
        record.write_sealed(facts | {"environment": environment}, project.run("small", seed) / "record.json")
        metrics = {"accuracy": 80.0 + seed, "vote": "last", "weights": "0" * 64, "blocks": {"1": 70.0, "2": 80.0}}
        record.write_sealed(metrics, project.run("small", seed) / "metrics.json")
        epochs = [{"epoch": i, "loss_1": 1.0 / i, "loss_2": "", "separation_1": 0.1 * i} for i in (1, 2)]
        record.write_csv(epochs, project.run("small", seed) / "history.csv")
    target = targets.target_of(targets.read_targets(project.paper, project.reference), "small", row)
    summary = report.summarise("small", row, project, target)
    record.write_json(summary, project.summary("small"))
    record.write_json(verdict(summary, row.verdict), project.verdict("small"))
    return project


def summarised(project):
    row = config.load(project.params).experiments["small"]
    target = targets.target_of(targets.read_targets(project.paper, project.reference), "small", row)
    return report.sentence(verdict(report.summarise("small", row, project, target), row.verdict))


def drawn(project):
    return [
        figure_data.depth(figure_data.whole_runs(row))
        for row in figure_data.found(project).values()
        if row.place.runs == "runs"
    ]


USES = {
    "runs/small/0/record.json": [summarised, drawn, lambda project: tables.explain(project, "both.a.x")],
    "runs/small/1/metrics.json": [summarised, drawn],
    "results/reference.json": [
        lambda project: report.overview(project, "all"),
        lambda project: tables.explain(project, "wide"),
        claims.read,
        report.table,
    ],
    "report/rows/small.json": [
        tables.read,
        tables.numbers,
        claims.read,
        lambda project: tables.explain(project, "small"),
        lambda project: [figure_data.found(project)],
    ],
    "report/verdicts/small.json": [report.table, tables.read],
}


@pytest.mark.parametrize("name", USES)
def test_what_is_read_for_the_tables_is_sound_here(told, name):
    """Or its damage would show nothing."""
    for use in USES[name]:
        assert use(told)


@fuzz(500)
@given(st.data())
def test_what_is_read_for_the_tables_is_used_or_refused(told, data):
    name = data.draw(st.sampled_from(list(USES)))
    use, path = data.draw(st.sampled_from(USES[name])), told.root / name
    content = as_bytes(data.draw(altered(record.read_json(path))), sealed=False)
    with in_place_of(path, data.draw(damaged(content)) if data.draw(st.integers(0, 4)) == 0 else content):
        try:
            found = use(told)
        except UserError as error:
            lines_of(error, "")
        else:
            assert not isinstance(found, str) or all(line.isprintable() for line in found.splitlines())


# Tensors


@fuzz(400)
@given(st.data())
def test_damaged_tensors_are_the_same_ones_or_refused(ran, folder, data):
    content = (ran.run("digits", 0) / "weights.safetensors").read_bytes()
    path = folder / "t.safetensors"
    path.write_bytes(content)
    honest = record.tensors_hash(record.read_tensors(path))
    path.write_bytes(data.draw(damaged(content[:2000]) | damaged(content)))
    try:
        assert record.tensors_hash(record.read_tensors(path)) == honest
    except UserError as error:
        lines_of(error, f"{path}: ")


def with_header(header, rest=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "empty": b"",
    "length alone": struct.pack("<Q", 8),
    "endless header": with_header({}, length=2**64 - 1),
    "long header": with_header({}, length=2**40),
    "no JSON": with_header(b"{" * 100),
    "deep": with_header(b'{"a":' + b"[" * 100_000),
    "a list": with_header([]),
    "NaN": with_header(b"NaN"),
    "overlapping": with_header({"a": tensor(), "b": tensor(offsets=(4, 12))}),
    "gap": with_header({"a": tensor(), "b": tensor(offsets=(16, 24))}),
    "reversed": with_header({"a": tensor(offsets=(8, 0))}),
    "beyond the end": with_header({"a": tensor(shape=(2**20,), offsets=(0, 2**22))}),
    "overflow": with_header({"a": tensor(shape=(2**33, 2**33), offsets=(0, 64))}),
    "overflow to nothing": with_header({"a": tensor(shape=(2**32, 2**32), offsets=(0, 0))}),
    "huge and empty": with_header({"a": tensor(shape=(2**63 - 1, 0), offsets=(0, 0))}, b""),
    "negative": with_header({"a": tensor(shape=(-2,))}),
    "other size": with_header({"a": tensor("F64")}),
    "unknown type": with_header({"a": tensor("X9")}),
    "half a byte": with_header({"a": tensor("F4", (128,), (0, 64))}),
    "eight bits": with_header({"a": tensor("F8_E4M3", (64,), (0, 64))}),
    "complex": with_header({"a": tensor("C64", (8,), (0, 64))}),
    "many dimensions": with_header({"a": tensor(shape=[1] * 100 + [16], offsets=(0, 64))}),
    "control characters": with_header({"a\x1b\n\u202e": tensor(shape=(16,), offsets=(0, 64))}),
    "metadata": with_header({"__metadata__": {"sha256": 3}, "a": tensor(shape=(16,), offsets=(0, 64))}),
    "said with control characters": with_header(
        {"__metadata__": {"sha256": "\x1b\n\u202e" * 1000}, "a": tensor(shape=(16,), offsets=(0, 64))}
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies_is_one_line(tmp_path, case):
    path = tmp_path / "t.safetensors"
    path.write_bytes(LIES[case])
    with pytest.raises(UserError) as caught:
        record.read_tensors(path)
    lines_of(caught.value, f"{path}: ")


# Checkpoints

KEY = {"parameters": "p", "seed": "0"}


class Saved:
    """A tiny training after two epochs and its checkpoint, and what resumes from one."""

    def __init__(self, row, path):
        self.row, self.path = row, path
        self.data = Split(torch.arange(80 * 64).view(80, 1, 8, 8).to(torch.uint8), torch.arange(80) % 10)
        history = []
        with self.fresh() as training:
            self.untrained = self.state_of(training)
            engine = Engine(training.network, training.adams, training.memory, self.data, row)
            for epoch in range(2):
                engine.epoch(0, epoch)
                history.append({"epoch": epoch + 1, "loss": 1 / 3})
                training.save(history)
            self.trained = self.state_of(training)
        self.content, self.history, self.chain = path.read_bytes(), history, training.chain

    def fresh(self):
        network = training.build(self.row, 0, CPU)
        adams, memory = optimizers(network, self.row.training), negatives.memory(80, 10, CPU)
        return checkpoint.Checkpoint(self.path, KEY, "first", network, adams, memory)

    @staticmethod
    def state_of(training):
        return checkpoint.hashes(checkpoint.snapshot(training.network, training.adams, training.memory))

    def resumed(self, content):
        """Whether it was gone on from, and then to the bit; else all is as it was, and a line says so."""
        self.path.write_bytes(content)
        with self.fresh() as training:
            history, line = training.resume()
            if history:
                assert line == f"{self.path.name}: going on after epoch 2"
                assert (history, training.chain, self.state_of(training)) == (self.history, self.chain, self.trained)
                return True
            assert line.startswith(f"{self.path.name}: ")
            assert line.endswith("not resumed, training starts anew")
            assert line.isprintable()
            assert len(line) <= LONGEST
            assert (training.chain, self.state_of(training)) == ([], self.untrained)
            return False

    def changed(self, change):
        """The checkpoint with a state that was changed in place, sealed by who knows how."""
        self.path.write_bytes(self.content)
        state = checkpoint.read(self.path, CPU)
        state = change(state)
        with contextlib.suppress(Exception):
            state["seal"] = checkpoint.seal(state)
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    content = params.experiments["digits"].model_dump(mode="json")
    content["network"]["blocks"], content["training"]["batch"] = "2 2P", 16
    row = config.Experiment.model_validate(content)
    return Saved(row, tmp_path_factory.mktemp("saved") / "digits-0.pt")


def test_an_honest_checkpoint_is_resumed(saved):
    assert saved.resumed(saved.content)
    assert saved.resumed(saved.changed(lambda state: state))


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_it(saved):
    """However far the writing came, by the limit of a file's size, which no root is needed to set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with saved.fresh() as training:
        saved.path.write_bytes(saved.content)
        history = training.resume()[0]
        for room in (*range(0, len(saved.content), 997), len(saved.content) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                with pytest.raises(UserError) as caught:
                    training.save(history)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert str(caught.value) == (
                "digits-0.pt: cannot be written: File too large; free some space or rights and run again"
            )
            assert [*saved.path.parent.iterdir()] == [saved.path]
    assert saved.path.read_bytes() == saved.content


@fuzz(400)
@given(st.data())
def test_a_damaged_checkpoint_is_resumed_to_the_bit_or_not_at_all(saved, data):
    saved.resumed(data.draw(damaged(saved.content)))


def test_no_flipped_bit_of_a_tensor_or_number_is_trained_on(saved):
    """Some eight bytes of each of the archive's members; its directory may hold some that say nothing."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(saved.content)) as archive:
        members = [(one.header_offset, one) for one in archive.infolist() if "/data/" in one.filename]
        for start, one in members:
            content = archive.read(one)
            if not content:
                continue
            at = saved.content.index(content, start)
            for place in range(at, at + len(content), max(1, len(content) // 8)):
                flipped = saved.content[:place] + bytes([saved.content[place] ^ 1]) + saved.content[place + 1 :]
                assert not saved.resumed(flipped), (one.filename, place)
    state = pickle.dumps(1 / 3, protocol=2)[3:11]  # a loss in the history, which no tensor's hash sees
    at = saved.content.index(state)
    assert not saved.resumed(saved.content[:at] + bytes([state[0] ^ 1]) + saved.content[at + 1 :])


def put(*place, value):
    def change(state):
        *folders, last = place
        inner = state
        for key in folders:
            inner = inner[key]
        inner[last] = value(inner[last]) if callable(value) else value
        return state

    return change


def put_weight(value):
    return lambda state: put("network", next(iter(state["network"])), value=value)(state)


CHANGES = {
    "not a mapping": lambda state: [state],
    "a number": lambda state: 3,
    "no links": put("chain", value=[]),
    "a link less": put("chain", value=lambda chain: chain[:1]),
    "a link more": put("chain", value=lambda chain: [*chain, chain[-1]]),
    "links the other way round": put("chain", value=lambda chain: chain[::-1]),
    "another link": put("chain", 0, "weights", value="0" * 64),
    "a chain of numbers": put("chain", value=[1, 2]),
    "a chain that is a tensor": put("chain", value=torch.zeros(2)),
    "an epoch less": put("history", value=lambda history: history[:1]),
    "no history": put("history", value=[]),
    "a history of tensors": put("history", value=[torch.zeros(1)] * 2),
    "a history that is a number": put("history", value=3),
    "a key that is a list": put("key", value=[1]),
    "a key of tensors": put("key", value={"parameters": torch.zeros(2), "seed": "0"}),
    "another seed": put("key", "seed", value="1"),
    "a start that is a list": put("started", value=[1]),
    "a network that is a list": put("network", value=[1]),
    "a network of numbers": put("network", value=lambda network: dict.fromkeys(network, 1)),
    "no network": put("network", value={}),
    "another weight": put_weight(lambda one: one + 1),
    "another type": put_weight(lambda one: one.double()),
    "another shape": put_weight(lambda one: one[None]),
    "a sparse one": put_weight(lambda one: one.to_sparse()),
    "one without memory": put_weight(lambda one: one.to("meta")),
    "no optimizers": put("optimizers", value=[]),
    "optimizers that are numbers": put("optimizers", value=lambda adams: [1] * len(adams)),
    "an optimizer more": put("optimizers", value=lambda adams: [*adams, adams[0]]),
    "no moments": put("optimizers", 0, "state", value={}),
    "moments of another shape": put("optimizers", 0, "state", 0, "exp_avg", value=torch.zeros(7)),
    "moments that are words": put("optimizers", 0, "state", 0, "exp_avg", value="x"),
    "another moment": put("optimizers", 0, "state", 0, "exp_avg_sq", value=lambda one: one + 1),
    "a step less": put("optimizers", 0, "state", 0, "step", value=lambda one: one - 1),
    "no memory": put("memory", value={}),
    "a memory of numbers": put("memory", "images", value=3),
    "a memory of one image": put("memory", "images", value=lambda one: one[:1]),
    "another memory": put("memory", "classes", value=lambda one: one + 1),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_state_that_is_not_its_chains_is_not_resumed(saved, case):
    assert not saved.resumed(saved.changed(CHANGES[case]))


@pytest.mark.parametrize("place", ["network", "history", "key", "whole"])
def test_code_in_a_checkpoint_is_not_run(saved, tmp_path, place):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    file = io.BytesIO()
    torch.save(Evil() if place == "whole" else {**dict.fromkeys(("network", "history", "key")), place: Evil()}, file)
    for content in (file.getvalue(), pickle.dumps(Evil()), pickle.dumps({place: Evil()}, protocol=0)):
        assert not saved.resumed(content)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_in_a_checkpoints_place_is_not_resumed(saved, tmp_path):
    saved = copy.copy(saved)
    saved.path = tmp_path / "digits-0.pt"
    saved.path.mkdir()
    with saved.fresh() as training:
        history, line = training.resume()
    assert (history, line.endswith("not resumed, training starts anew")) == ([], True)


# Histories


@st.composite
def retyped(draw, text):
    """A table with another cell, a line or a column less or more."""
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        line = draw(st.sampled_from(lines)) if lines else []
        at = draw(st.integers(0, max(len(line) - 1, 0)))
        match draw(st.sampled_from(["cell", "cell", "cell", "less", "line", "column", "twice"])):
            case "cell" if line:
                line[at] = draw(
                    NUMBERS | TEXT | st.sampled_from(["loss_" + "9" * 5000, "loss_²", "loss_٣", '"', "1e308"])
                )
            case "less" if line:
                del line[at]
            case "line" if lines:
                lines.remove(line)
            case "column":
                lines = [one[:at] + one[at + 1 :] for one in lines]
            case _:
                lines.insert(0, list(line))
    return "\n".join(",".join(line) for line in lines).encode()


@fuzz(500)
@given(st.data())
def test_a_history_that_was_mistyped_is_drawn_or_refused(told, data):
    path = told.run("small", 0) / "history.csv"
    content = path.read_bytes()
    content = data.draw(retyped(content.decode()) | damaged(content))
    path = path.with_name("mistyped.csv")
    path.write_bytes(content)
    try:
        history = figure_data.read_history(path)
    except UserError as error:
        lines_of(error, f"{path}: not a history")
        return
    for what in figures.CURVES:
        for points in figure_data.curves([history, history], what).values():
            assert all(1 <= int(epoch) <= len(history) and abs(value) < 1e39 for epoch, value in points)


# The command line

WORDS = st.sampled_from(
    [
        "",
        " ",
        "-",
        "--",
        "-1",
        "--help",
        "-x",
        "--no-such",
        "auto",
        "cpu",
        "~",
        "$HOME",
        "*",
        "a,b",
        "\udcff",
        "é",
        "🦊",
    ]
) | st.sampled_from(
    ["x" * 300, "x" * 5000, "a/" * 3000, "/", "..", ".", "/dev/null", "/proc", "/proc/self/mem", "runs"]
)
NAMED = st.sampled_from(
    ["params.yaml", "params.yaml/x", "../outside", "../outside/x", "file:///etc", "http://[", "a\nb"]
)
ARGUMENTS = (WORDS | NAMED | NUMBERS | TEXT).map(lambda text: text.replace("\0", ""))  # which no argument can hold
ALWAYS_WORK = [("report",), ("doctor",), ("params", "graph")]  # they write or compute, given nothing


def commands(command, *names):
    """Every command of the tree, by the words that call it."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, *names, name)
    else:
        yield names, command


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


def everything_below(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def bare(small, root, tmp_path_factory):
    """A project's files without runs, in a folder of its own; and all names that would start something."""
    folder = tmp_path_factory.mktemp("around")
    project = folder / "project"
    project.mkdir()
    (folder / "outside").write_text("no project of ours\n")
    (project / "params.yaml").write_text(small, encoding="utf-8")
    (project / "paper.yaml").write_text(ROWS, encoding="utf-8")
    for name in ("deviations.yaml", "dvc.yaml"):
        (project / name).write_bytes((root / name).read_bytes())
    pipeline.write_graph(config.load(project / "params.yaml"), Layout(project))
    names = {*config.load(project / "params.yaml").experiments, *targets.read_tables(project / "paper.yaml")}
    return project, names | set(DATASETS)


@st.composite
def calls(draw, words, command, names):
    """A call of a command with some of its options, each of them and of its arguments anything but a name."""
    anything = ARGUMENTS.filter(lambda text: text not in names)
    call = list(words)
    for option in command.params:
        if option.param_type_name == "option" and draw(st.integers(0, 2)) == 0:
            call.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
            call += [] if getattr(option, "is_flag", False) else [draw(anything)]
    call += [draw(anything) for option in command.params if option.param_type_name == "argument"]
    call += [draw(anything)] if draw(st.integers(0, 3)) == 0 else []
    return [*call, "more"] if words in ALWAYS_WORK else call


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_whatever_a_command_is_given_it_says_what_is_wrong_and_changes_nothing(bare, call_in, words):
    project, names = bare
    before = everything_below(project.parent)

    @fuzz(60)
    @given(st.data())
    def any_call(data):
        call = data.draw(calls(words, COMMANDS[words], names))
        done = call_in(project, "ffrepro", *call)
        assert done.returncode in (0, 2), call
        assert "Traceback" not in done.stderr
        assert bool(done.stderr) == (done.returncode == 2)
        assert done.returncode == 0 or not done.stdout
        if done.stderr.startswith("ffrepro: "):  # our own words, not Typer's
            assert done.stderr[:-1].isprintable(), call
        assert everything_below(project.parent) == before

    any_call()
