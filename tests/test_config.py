"""params.yaml: what is refused, in which words and where a person must look; and the forms that rows are written in."""

import copy
import datetime
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML, YAMLError

from ffrepro import config
from ffrepro.errors import UserError

KNOWN = {  # what the tests rely on; the rest of the defaults is the project's own
    "requires": "cpu",
    "data": {"name": "digits", "held_out": 0},
    "augmentation": {"crop": 1, "rotation": 10, "flip": False},
    "network": {"blocks": "8 8P 8", "norm": "batch"},
    "training": {"update": "overlapping", "loss": "symba", "alpha": 4, "epochs": 2, "batch": 64, "lr": 0.001},
    "evaluation": {"vote": "last"},
    "verdict": {"reference_seeds": [3, 4], "margin": 1.5, "alpha": 0.05},
}
ABSENT = object()
SEEDS = "a list of whole numbers, at least 0, below 2147483648, each once"
BLOCKS = "text like '64 128P 128' (pattern "
NAME = "text like 'cifar10-quick' (pattern "


@pytest.fixture(scope="module")
def sound(root):
    """A params.yaml of two rows, as a mapping."""
    defaults = config.read_yaml(root / "params.yaml")["defaults"]
    for key, value in KNOWN.items():
        defaults[key] = {**defaults.get(key, {}), **value} if isinstance(value, dict) else value
    rows = {"small": {"title": "A small one"}, "wide": {"title": "A wide one", "network": {"blocks": "16 16P"}}}
    return {"seeds": [0, 1], "defaults": defaults, "experiments": rows}


@pytest.fixture(scope="module")
def schema():
    return json.loads(config.json_schema())


def put(document, place, value):
    """A copy of the document with another value at a dotted place, or without it."""
    document = copy.deepcopy(document)
    *folders, key = place.split(".")
    content = document
    for folder in folders:
        content = content.setdefault(folder, {})
    if value is ABSENT:
        del content[key]
    else:
        content[key] = value
    return document


def load(document, folder):
    path = folder / "params.yaml"
    if isinstance(document, bytes):
        path.write_bytes(document)
    else:
        YAML(typ="safe").dump(document, path)
    return config.load(path)


def refused(document, folder):
    """The one line that refuses a document."""
    with pytest.raises(UserError) as caught:
        load(document, folder)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    start, line = str(caught.value).split(": ", 1)
    assert start == "params.yaml"
    return line


def as_text(document, folder):
    YAML(typ="safe").dump(document, folder / "text.yaml")
    return (folder / "text.yaml").read_text()


def with_line(document, folder, key, text):
    """The document as bytes, with `key: text` in the defaults written by hand."""
    whole, count = re.subn(rf"(\b{key}): [^,}}\n]+", rf"\1: {text}", as_text(document, folder), count=1)
    assert count == 1
    return whole.encode()


def test_a_row_is_its_differences_laid_over_the_defaults(sound, tmp_path):
    changed = put(put(sound, "experiments.wide.seeds", [7]), "experiments.wide.training.lr", 1)
    small, wide = load(changed, tmp_path).experiments.values()
    assert (small.title, small.seeds, small.network.blocks, small.training.lr) == (
        "A small one",
        (0, 1),
        "8 8P 8",
        0.001,
    )
    assert (wide.title, wide.seeds, wide.network.blocks, wide.training.lr) == ("A wide one", (7,), "16 16P", 1.0)
    assert wide.network.norm == "batch"
    assert small.training.epochs == wide.training.epochs == 2


def test_an_empty_row_is_the_defaults(sound, tmp_path):
    changed = put(put(sound, "defaults.title", "All alike"), "experiments.empty", None)
    rows = load(changed, tmp_path).experiments
    assert rows["empty"].title == "All alike"
    assert rows["empty"].model_dump(exclude={"title"}) == rows["small"].model_dump(exclude={"title"})


def test_a_network_is_parsed_into_channels_and_pools():
    network = config.NetworkParams.model_construct(blocks="32 64P 9999")
    assert network.parsed() == [(32, False), (64, True), (9999, False)]


def test_steps_drop_the_last_partial_batch(sound, tmp_path):
    row = load(put(sound, "defaults.data.held_out", 37), tmp_path).experiments["small"]
    assert (row.shape, row.classes) == ((1, 8, 8), 10)
    assert row.steps == 21  # 1437 - 37 = 1400 images, in batches of 64: 21.9


OUTLINE = [
    ("seeds", ABSENT, f"seeds: given nothing; allowed: {SEEDS}"),
    ("seeds", None, f"seeds: given nothing; allowed: {SEEDS}"),
    ("seeds", 3, f"seeds: given 3; allowed: {SEEDS}"),
    ("seeds", "3", f"seeds: given '3'; allowed: {SEEDS}"),
    ("seeds", [], f"seeds: given []; allowed: {SEEDS}"),
    ("seeds", {0: 1}, "seeds: given {0: 1}; allowed: " + SEEDS),
    ("seeds", [0, "a"], f"seeds: given [0, 'a']; allowed: {SEEDS}"),
    ("seeds", [0, 1.0], f"seeds: given [0, 1.0]; allowed: {SEEDS}"),
    ("seeds", [True], f"seeds: given [True]; allowed: {SEEDS}"),
    ("seeds", [-1], f"seeds: given [-1]; allowed: {SEEDS}"),
    ("seeds", [2**31], f"seeds: given [2147483648]; allowed: {SEEDS}"),
    ("seeds", [5, 5], f"seeds: given [5, 5]; allowed: {SEEDS}"),
    ("defaults", ABSENT, "defaults: given nothing; allowed: a mapping"),
    ("defaults", None, "defaults: given nothing; allowed: a mapping"),
    ("defaults", 3, "defaults: given 3; allowed: a mapping"),
    ("defaults", [1], "defaults: given [1]; allowed: a mapping"),
    ("defaults", "x", "defaults: given 'x'; allowed: a mapping"),
    ("experiments", ABSENT, "experiments: given nothing; allowed: a mapping, not empty"),
    ("experiments", [1], "experiments: given [1]; allowed: a mapping, not empty"),
    ("experiments", {}, "experiments: given {}; allowed: a mapping, not empty"),
    ("experiments.small", 3, "experiments.small: given 3; allowed: a mapping or nothing"),
    ("experiments.small", ["x"], "experiments.small: given ['x']; allowed: a mapping or nothing"),
    ("experiments.Small", {}, f"experiments.Small: given 'Small'; allowed: {NAME}"),
    ("experiments.a b", {}, f"experiments.a b: given 'a b'; allowed: {NAME}"),
    ("experiments.a\nb", {}, f"experiments.'a\\nb': given 'a\\nb'; allowed: {NAME}"),
    ("experiments." + "a" * 51, {}, f"experiments.{'a' * 51}: given '{'a' * 51}'; allowed: {NAME}"),
    ("default", {}, "default: given an unknown key (did you mean defaults?); allowed: seeds, defaults, experiments"),
    ("more", 1, "more: given an unknown key; allowed: seeds, defaults, experiments"),
]
FIELDS = [
    # unknown keys
    ("defaults.training.momentum", 1, "defaults.training.momentum: given an unknown key; allowed: update, loss, "),
    (
        "defaults.verdit",
        {},
        "defaults.verdit: given an unknown key (did you mean verdict?); allowed: title, requires, ",
    ),
    ("defaults.seeds", [5], "defaults.seeds: given an unknown key; allowed: title, requires, data, "),
    ("experiments.wide.lr", 1, "experiments.wide.lr: given an unknown key; allowed: title, requires, data, "),
    (
        "experiments.wide.network.block",
        "8 8",
        "experiments.wide.network.block: given an unknown key (did you mean blocks?)",
    ),
    ("experiments.wide.network", {3: 1}, "experiments.wide.network.3: given an unknown key; allowed: blocks, norm"),
    (
        "experiments.wide.network",
        {None: 1},
        "experiments.wide.network.None: given an unknown key; allowed: blocks, norm",
    ),
    # wrong types
    ("defaults.training", 3, "defaults.training: given 3; allowed: a mapping of update, loss, "),
    ("experiments.wide.data", None, "experiments.wide.data: given nothing; allowed: a mapping of name, held_out"),
    ("defaults.training.lr", "fast", "defaults.training.lr: given 'fast'; allowed: a number, above 0, at most 10"),
    ("defaults.training.lr", "1e-3", "defaults.training.lr: given '1e-3'; allowed: a number, above 0, at most 10"),
    ("defaults.training.lr", math.inf, "defaults.training.lr: given inf; allowed: a number, above 0, at most 10"),
    ("defaults.training.lr", math.nan, "defaults.training.lr: given nan; allowed: a number, above 0, at most 10"),
    ("defaults.augmentation.flip", "yes", "defaults.augmentation.flip: given 'yes'; allowed: true or false"),
    ("defaults.augmentation.flip", 1, "defaults.augmentation.flip: given 1; allowed: true or false"),
    ("experiments.wide.network.blocks", 16, f"experiments.wide.network.blocks: given 16; allowed: {BLOCKS}"),
    (
        "experiments.wide.network.blocks",
        "16 16Q",
        f"experiments.wide.network.blocks: given '16 16Q'; allowed: {BLOCKS}",
    ),
    (
        "experiments.wide.network.blocks",
        "1\u0663",
        "experiments.wide.network.blocks: given '1\u0663'; allowed: text like",
    ),
    ("experiments.small.title", 3, "experiments.small.title: given 3; allowed: text of 1 to 120 characters"),
    ("experiments.small.title", "", "experiments.small.title: given ''; allowed: text of 1 to 120 characters"),
    ("experiments.small.seeds", [4, 4], f"experiments.small.seeds: given [4, 4]; allowed: {SEEDS}"),
    ("defaults.verdict.reference_seeds", [3, 3], f"defaults.verdict.reference_seeds: given [3, 3]; allowed: {SEEDS}"),
    (
        "defaults.data.name",
        "cifar",
        "defaults.data.name: given 'cifar'; allowed: digits, mnist, fashion-mnist, svhn, cifar10",
    ),
    ("defaults.evaluation.vote", "first", "defaults.evaluation.vote: given 'first'; allowed: text like 'last' or "),
    # out of range
    (
        "defaults.training.epochs",
        0,
        "defaults.training.epochs: given 0; allowed: a whole number, at least 1, at most 100000",
    ),
    (
        "experiments.wide.training.lr",
        -1,
        "experiments.wide.training.lr: given -1; allowed: a number, above 0, at most 10",
    ),
    ("defaults.verdict.alpha", 0.5, "defaults.verdict.alpha: given 0.5; allowed: a number, above 0, below 0.5"),
    # missing
    (
        "defaults.training.batch",
        ABSENT,
        "defaults.training.batch: given nothing; allowed: a whole number, at least 2, ",
    ),
    ("defaults.evaluation", ABSENT, "defaults.evaluation: given nothing; allowed: a mapping of vote"),
    (
        "experiments.small.title",
        ABSENT,
        "experiments.small.title: given nothing; allowed: text of 1 to 120 characters (here or in defaults)",
    ),
]


@pytest.mark.parametrize(("place", "value", "expected"), OUTLINE + FIELDS)
def test_one_line_says_where_what_was_given_and_what_is_allowed(sound, tmp_path, place, value, expected):
    assert refused(put(sound, place, value), tmp_path).startswith(expected)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (
            {"experiments.wide.network.blocks": "8P 8P 8P 8P"},
            "experiments.wide.network.blocks: given '8P 8P 8P 8P'; allowed: at most 3 poolings (P), "
            "or the 8x8 images of digits shrink to nothing",
        ),
        (
            {"defaults.network.blocks": "8P 8P 8P 8P"},
            "defaults.network.blocks: given '8P 8P 8P 8P'; allowed: at most 3 poolings (P), "
            "or the 8x8 images of digits shrink to nothing (row small)",
        ),
        (
            {"experiments.wide.network.blocks": "16"},
            "defaults.training.update: given 'overlapping'; allowed: layer-wise, for a network of 1 block (row wide)",
        ),
        (
            {"experiments.wide.network.blocks": "16", "experiments.wide.training.update": "overlapping"},
            "experiments.wide.training.update: given 'overlapping'; allowed: layer-wise, for a network of 1 block",
        ),
        (
            {"experiments.small.data.held_out": 1437},
            "experiments.small.data.held_out: given 1437; allowed: fewer than the 1437 training images of digits",
        ),
        (
            {"experiments.small.data.held_out": 1374},
            "defaults.training.batch: given 64; "
            "allowed: at most the 63 images left to train on (a partial batch is dropped) (row small)",
        ),
        (
            {"defaults.augmentation.crop": 8},
            "defaults.augmentation.crop: given 8; allowed: less than the image's 8 pixels (rows small, wide)",
        ),
        (
            {"experiments.small.network.label_patch": 3},
            "experiments.small.network.label_patch: given 3; allowed: 1, 2: what divides 8x8 into more than 10 patches",
        ),
        (
            {"experiments.wide.network.label_patch": 4},
            "experiments.wide.network.label_patch: given 4; allowed: 1, 2: what divides 8x8 into more than 10 patches",
        ),
        (
            {"experiments.wide.evaluation.vote": "last-3"},
            "experiments.wide.evaluation.vote: given 'last-3'; allowed: at most as many blocks as the network has, 2",
        ),
        (
            {"experiments.wide.seeds": [9, 4]},
            "defaults.verdict.reference_seeds: given [3, 4]; allowed: none of the row's own seeds, 9, 4 (row wide)",
        ),
        (
            {"experiments.wide.verdict.reference_seeds": [1, 2]},
            "experiments.wide.verdict.reference_seeds: given [1, 2]; allowed: none of the row's own seeds, 0, 1",
        ),
    ],
)
def test_impossible_combinations_are_refused(sound, tmp_path, places, expected):
    for place, value in places.items():
        sound = put(sound, place, value)
    assert refused(sound, tmp_path) == expected


@pytest.mark.parametrize(
    "places",
    [
        {"experiments.wide.network.blocks": "8P 8P 8P"},
        {"experiments.wide.network.blocks": "16", "experiments.wide.training.update": "layer-wise"},
        {"experiments.small.data.held_out": 1437 - 64},
        {"defaults.augmentation.crop": 7},
        {"experiments.wide.evaluation.vote": "last-2"},
        {"experiments.wide.seeds": [2, 5]},
    ],
)
def test_combinations_at_the_edge_of_the_possible_are_taken(sound, tmp_path, places):
    for place, value in places.items():
        sound = put(sound, place, value)
    load(sound, tmp_path)


def test_what_only_together_is_impossible_is_told_of_the_row_where_it_meets(sound, tmp_path):
    """A row that takes one half from the row it is like, where it was possible."""
    sound = put(sound, "experiments.wide.evaluation", {"vote": "last-2"})
    load(sound, tmp_path)
    with pytest.raises(UserError) as caught:
        load(put(sound, "experiments.one", {"like": "wide", "title": "One", "network": {"blocks": "16P"}}), tmp_path)
    assert str(caught.value).splitlines() == [
        "params.yaml: experiments.one.evaluation.vote: given 'last-2'; "
        "allowed: at most as many blocks as the network has, 1",
        "params.yaml: defaults.training.update: given 'overlapping'; "
        "allowed: layer-wise, for a network of 1 block (row one)",
    ]


def test_a_mistake_of_the_row_it_is_like_hides_none_of_a_rows_own(sound, tmp_path):
    sound = put(sound, "experiments.wide.data", {"held_out": -1})
    sound = put(sound, "experiments.other", {"like": "wide", "title": "Other", "training": {"lr": 0}})
    with pytest.raises(UserError) as caught:
        load(sound, tmp_path)
    assert [line.split(": given")[0] for line in str(caught.value).splitlines()] == [
        "params.yaml: experiments.other.training.lr",
        "params.yaml: experiments.wide.data.held_out",
    ]


def test_what_an_only_row_lacks_is_told_of_the_row(sound, tmp_path):
    sound = put(put(sound, "experiments.wide", ABSENT), "defaults.training.lr", ABSENT)
    with pytest.raises(UserError) as caught:
        load(sound, tmp_path)
    assert re.fullmatch(
        r"params\.yaml: experiments\.small\.training\.lr: given nothing; allowed: .* \(here or in defaults\)",
        str(caught.value),
    )


TWIN = {"update": "backprop", "loss": "cross-entropy"}
ORIGINAL = {"norm": "length", "update": "layer-wise", "loss": "threshold"}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"update": "backprop"}, "training.loss: given 'symba'; allowed: cross-entropy, with update: backprop"),
        (
            {"loss": "cross-entropy"},
            "training.loss: given 'cross-entropy'; allowed: symba, threshold, with update: overlapping",
        ),
        ({**TWIN, "hardness": 1.0}, "training.hardness: given 1.0; allowed: 0, with update: backprop"),
        ({**TWIN, "label_patch": 2}, "network.label_patch: given 2; allowed: 1, with update: backprop"),
        ({**TWIN, "vote": "all"}, "evaluation.vote: given 'all'; allowed: last, with update: backprop"),
        ({**TWIN, "norm": "length"}, "network.norm: given 'length'; allowed: batch, layer, with update: backprop"),
        (
            {**ORIGINAL, "blocks": "8 8P"},
            "network.blocks: given '8 8P'; allowed: no pooling (P), with norm: length",
        ),
        (
            {**ORIGINAL, "blocks": "8 8", "label_patch": 2},
            "network.label_patch: given 2; allowed: 1, with norm: length",
        ),
    ],
)
def test_what_the_other_kinds_of_network_do_not_have_is_refused(row_content, values, line):
    with pytest.raises(UserError) as caught:
        config.checked(config.Experiment, row_content(**values), "x")
    assert f"x: {line}" in str(caught.value).splitlines()


def test_every_mistake_has_its_line_and_an_inherited_one_only_one(sound, tmp_path):
    for place, value in {
        "defaults.training.lr": 0,
        "experiments.small.data.held_out": -1,
        "experiments.wide.title": ABSENT,
        "experiments.wide.network.blocks": "8P 8P 8P 8P",
        "experiments.third": {"title": "Third", "augmentation": {"crop": 8}, "evaluation": {"vote": "last-9"}},
    }.items():
        sound = put(sound, place, value)
    with pytest.raises(UserError) as caught:
        load(sound, tmp_path)
    assert [line.split(": given")[0] for line in str(caught.value).splitlines()] == [
        "params.yaml: defaults.training.lr",
        "params.yaml: experiments.small.data.held_out",
        "params.yaml: experiments.wide.title",
    ]  # combinations are looked at in rows whose fields are right
    with pytest.raises(UserError) as caught:
        load(put(sound, "defaults.training.lr", 1), tmp_path)
    assert [line.split(": given")[0] for line in str(caught.value).splitlines()] == [
        "params.yaml: experiments.small.data.held_out",
        "params.yaml: experiments.third.augmentation.crop",
        "params.yaml: experiments.third.evaluation.vote",
        "params.yaml: experiments.wide.title",
    ]


@pytest.mark.parametrize(
    ("key", "value", "row"),
    [
        ("training.momentum", 1, {"lr": 1}),
        ("training.lr", "fast", {"lr": 1}),
        ("training", 3, None),
    ],
)
def test_defaults_are_checked_also_where_every_row_states_something_else(sound, tmp_path, key, value, row):
    training = {**sound["defaults"]["training"], **(row or {})}
    for name in sound["experiments"]:
        sound = put(sound, f"experiments.{name}.training", training)
    load(sound, tmp_path)
    assert refused(put(sound, f"defaults.{key}", value), tmp_path).startswith(f"defaults.{key}: given ")


# Every field, whatever it may be called: its limits, and values of other types.


def fields(model, prefix=""):
    """(dotted place, JSON Schema) of every leaf below a model."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", schema["properties"][name]


def wrong_values(schema):
    yield from ([], ["x"], {}, {"x": 1}, None)
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "exclusiveMinimum" in schema:
        yield schema["exclusiveMinimum"]
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "exclusiveMaximum" in schema:
        yield schema["exclusiveMaximum"]
    yield from {
        "integer": ("3", True, 3.0, 3.5, math.nan),
        "number": ("0.1", True, "yes", math.inf, math.nan),
        "boolean": ("true", "no", 1, 0, 0.0),
        "string": (3, 1.5, True, ""),
        "array": (3, "3", [True], ["3"], [1.0], [-1], [6, 6]),
    }[schema["type"]]
    if "enum" in schema:
        yield schema["enum"][0].upper()
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if "pattern" in schema:
        yield from (schema["examples"][0] + "\n", " " + schema["examples"][0])


@pytest.mark.parametrize(("place", "field"), list(fields(config.Experiment)))
def test_every_field_is_strict_and_closed(sound, tmp_path, schema, place, field):
    row = load(sound, tmp_path).experiments["small"].model_dump()
    config.Experiment.model_validate(row)
    for value in wrong_values(field):
        with pytest.raises(ValidationError):
            config.Experiment.model_validate(put(row, place, value))
        assert not valid(put(sound, f"experiments.small.{place}", value), schema, schema), (
            value
        )  # an editor says so too
    assert refused(put(sound, f"experiments.small.{place}", value), tmp_path).startswith(
        f"experiments.small.{place}: given "
    )
    if place != "seeds":
        assert refused(put(sound, f"defaults.{place}", value), tmp_path).startswith(f"defaults.{place}: given ")


# YAML


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lr", "1e-3", 0.001),
        ("lr", "1E-3", 0.001),
        ("lr", "2", 2.0),
        ("epochs", "010", 10),
        ("epochs", "0o10", 8),
        ("rotation", "-0.0", 0.0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(sound, tmp_path, key, text, value):
    row = load(with_line(sound, tmp_path, key, text), tmp_path).experiments["small"]
    found = {**row.training.model_dump(), **row.augmentation.model_dump()}[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "1:30"])
def test_words_are_those_of_yaml_1_2(sound, tmp_path, word):
    assert load(with_line(sound, tmp_path, "title", word), tmp_path).experiments["small"].title == word


SYNTAX = {
    "duplicate key": (
        b"seeds: [0]\nseeds: [1]\n",
        'line 2: not valid YAML 1.2: while constructing a mapping, found duplicate key "seeds"$',
    ),
    "unclosed bracket": (
        b"seeds: [0, 1\n",
        "line 2: not valid YAML 1.2: while parsing a flow sequence, expected ',' or '\\]'",
    ),
    "two colons": (b"seeds: 0\na: b: c\n", "line 2: not valid YAML 1.2: mapping values are not allowed here$"),
    "tab": (b"defaults:\n\tlr: 1\n", "line 2: not valid YAML 1.2: .*found character '\\\\t'"),
    "two documents": (b"a: 1\n---\nb: 1\n", "line 2: not valid YAML 1.2: .*but found another document$"),
    "unknown alias": (b"a: 1\nb: *c\n", "line 2: not valid YAML 1.2: .*undefined alias 'c'$"),
    "Python tag": (b"a: !!python/name:os.system x\n", "line 1: not valid YAML 1.2: could not determine a constructor"),
    "tag that lies": (b"a: !!int x\n", "not valid YAML 1.2: invalid literal for int"),
    "endless number": (b"\na: " + b"9" * 5000, "line 2: given a number of 1000 digits or more; allowed: fewer$"),
    "endless hexadecimal number": (b"seeds: 0x" + b"f" * 5000, "line 1: given a number of 1000 digits or more"),
    "too deep": (b"[" * 500, "not valid YAML 1.2: maximum recursion depth exceeded"),
    "NUL": (b"a: \x00\n", "not valid YAML 1.2: unacceptable character #x0000"),
    "not UTF-8": (b"seeds: \xff\n", "byte 7 is not UTF-8; save the file as UTF-8$"),
    "UTF-16": ("seeds: [0]\n".encode("utf-16"), "byte 0 is not UTF-8; save the file as UTF-8$"),
    "empty": (b"", "given nothing; allowed: a mapping of seeds, defaults, experiments$"),
    "comment": (b"# nothing\n", "given nothing; allowed: a mapping of seeds, defaults, experiments$"),
    "list": (b"- 1\n- 2\n", "given \\[1, 2\\]; allowed: a mapping of seeds, defaults, experiments$"),
    "word": (b"hello\n", "given 'hello'; allowed: a mapping of seeds, defaults, experiments$"),
    "itself": (b"&a [*a]\n", "given \\[\\[...\\]\\]; allowed: a mapping of seeds, defaults, experiments$"),
    "row that is a number": (b"seeds: [0]\ndefaults: {}\nexperiments:\n  a: 3\n", "experiments.a: given 3; allowed: "),
    "date": (b"seeds: 2020-01-01\ndefaults: {}\nexperiments: {a: }\n", "seeds: given 2020-01-01; allowed: a list"),
}


@pytest.mark.parametrize("case", SYNTAX)
def test_a_file_that_is_no_params_file_is_one_line(tmp_path, case):
    content, pattern = SYNTAX[case]
    line = refused(content, tmp_path)
    assert re.match(pattern, line), line


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"^params\.yaml: no such file; expected in the project's folder, [^\n]+$"):
        config.load(path)
    path.mkdir()
    with pytest.raises(UserError, match=r"^params\.yaml: cannot be read: Is a directory$"):
        config.load(path)


def test_a_section_that_holds_itself_is_refused(tmp_path):
    text = "seeds: [0]\ndefaults: &a {data: *a}\nexperiments:\n  x: &b {data: *b}\n"
    with pytest.raises(UserError) as caught:
        load(text.encode(), tmp_path)
    assert "params.yaml: defaults.data.data: given an unknown key" in str(caught.value).splitlines()[0]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
PLACES = ["seeds", "defaults", "experiments", "experiments.small", "experiments.new"]
PLACES += [f"{top}.{key}" for top in ("defaults", "experiments.wide") for key in config.Experiment.model_fields]


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_nothing_that_stands_anywhere_ends_in_a_traceback(sound, tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    lines = []
    try:
        YAML(typ="safe").dump(put(sound, place, value), path)
        config.load(path)
    except UserError as error:
        lines = str(error).splitlines()
    except YAMLError:  # of `dump`: what YAML cannot write, nobody can give
        pass
    assert all(re.match(r"params\.yaml: \S.*; ", line) for line in lines), lines


# Models and their written forms


def models(model=config.Params):
    yield model
    for field in model.model_fields.values():
        for annotation in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from models(annotation)


def test_every_model_is_closed_frozen_and_described():
    assert len(list(models())) >= 8
    for model in models():
        wanted = {"strict": True, "frozen": True, "extra": "forbid", "allow_inf_nan": False}
        assert {key: model.model_config.get(key) for key in wanted} == wanted, model
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert field.is_required(), f"{model.__name__}.{name} has a default value in the code"


def test_a_row_cannot_be_changed(params):
    row = next(iter(params.experiments.values()))
    with pytest.raises(ValidationError, match="frozen"):
        row.title = "Another"
    with pytest.raises(ValidationError, match="frozen"):
        row.training.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        params.seeds = (9,)
    assert type(row.seeds) is type(row.verdict.reference_seeds) is type(params.seeds) is tuple


@pytest.mark.parametrize("lr", [0.1 + 0.2, 1e-323, math.pi, 1 / 3, 10, 0.1])
def test_a_row_goes_through_its_file_bit_for_bit(sound, tmp_path, lr):
    title = 'Ümlaut, "quotes", \u2028 and \U0001f600'
    sound = put(put(sound, "experiments.small.training.lr", lr), "experiments.small.title", title)
    row = load(sound, tmp_path).experiments["small"]
    path = tmp_path / "experiment.json"
    path.write_text(config.canonical(row), encoding="utf-8")
    again = config.read_experiment(path)
    assert again == row
    assert again.training.lr.hex() == float(lr).hex()
    assert again.title == title
    assert config.canonical(again) == path.read_text(encoding="utf-8")


def test_every_row_of_the_project_goes_through_its_file(params, tmp_path):
    for name, row in params.experiments.items():
        path = tmp_path / f"{name}.json"
        path.write_text(config.canonical(row))
        assert config.read_experiment(path) == row
        assert config.canonical(config.read_experiment(path)) == path.read_text()


@pytest.mark.parametrize(
    ("place", "one", "other"),
    [("training.alpha", 4, 4.0), ("augmentation.rotation", 0.0, -0.0), ("training.hardness", 0, -0.0)],
)
def test_equal_rows_have_equal_text(sound, tmp_path, place, one, other):
    a = load(put(sound, f"defaults.{place}", one), tmp_path).experiments["small"]
    shuffled = put(sound, f"experiments.small.{place}", other)
    shuffled["defaults"] = dict(reversed(shuffled["defaults"].items()))
    b = load(shuffled, tmp_path).experiments["small"]
    assert a == b
    assert config.canonical(a) == config.canonical(b)
    assert config.training_parameters(a) == config.training_parameters(b)


def test_training_parameters_are_written_in_the_order_of_their_names(row):
    text = config.training_parameters(row())
    assert text == json.dumps(json.loads(text), sort_keys=True)
    assert list(json.loads(text)) == ["augmentation", "data", "network", "training"]


def test_training_parameters_are_what_a_training_depends_on_and_nothing_else(sound, tmp_path):
    def text(place, value):
        return config.training_parameters(load(put(sound, place, value), tmp_path).experiments["small"])

    as_is = text("seeds", [0, 1])
    others = {
        "seeds": [8],
        "experiments.small.title": "New",
        "defaults.requires": "cuda",
        "defaults.evaluation.vote": "all",
    }
    others |= {"defaults.verdict.margin": 3, "experiments.wide.training.lr": 3}
    assert {text(place, value) for place, value in others.items()} == {as_is}
    own = {"defaults.training.lr": 3, "experiments.small.network.blocks": "4 4", "defaults.data.held_out": 5}
    own |= {"defaults.augmentation.flip": True}
    assert len({as_is, *(text(place, value) for place, value in own.items())}) == 5


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"{", b"\xff", b'{"title": "x"}'])
def test_a_file_that_is_no_checked_row_is_one_line(tmp_path, content):
    path = tmp_path / "experiment.json"
    with pytest.raises(
        UserError, match=r"^[^\n]*experiment\.json: no such file; `python -m pipelines.check [a-z0-9_]+` writes it$"
    ):
        config.read_experiment(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*experiment\.json: not a row as the check stage writes it[^\n]*$"):
        config.read_experiment(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"^[^\n]*/experiment\.json: cannot be read: Is a directory$"):
        config.read_experiment(path)


def test_a_checked_row_with_an_unknown_or_impossible_value_is_refused(row, tmp_path):
    path = tmp_path / "experiment.json"
    content = json.loads(config.canonical(row()))
    for changed in (
        {**content, "more": 1},
        put(content, "network.blocks", "8P 8P 8P 8P"),
        put(content, "training.lr", "1"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match="not a row"):
            config.read_experiment(path)


@given(
    st.recursive(
        st.integers() | st.text("ab ", max_size=70),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("xy"), inner),
        max_leaves=30,
    ).filter(lambda value: isinstance(value, list | dict))
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_a_collection_is_shown_as_python_writes_it_and_cut(value):
    assert config._shown(value) == config._cut(repr(value))


def test_a_value_within_a_collection_is_shown_as_python_writes_it():
    assert config._shown([datetime.date(2020, 1, 1), 1.5]) == "[datetime.date(2020, 1, 1), 1.5]"
    assert config._shown(datetime.date(2020, 1, 1)) == "2020-01-01"


@pytest.mark.parametrize("value", [[1] * 20, [1] * 19 + [22], [1] * 21, ["a" * 56], ["a" * 57]])
def test_what_just_fits_is_not_cut(value):
    assert (len(repr(value)) == 60) == (config._shown(value) == repr(value))


def test_a_collection_that_holds_itself_is_shown_once():
    mapping, sequence = {}, []
    mapping["x"], sequence[:] = mapping, [1, sequence]
    assert (config._shown(mapping), config._shown(sequence)) == ("{'x': {...}}", "[1, [...]]")


def test_a_file_may_be_as_large_as_is_said_and_no_larger(tmp_path):
    path, text = tmp_path / "params.yaml", b"a: 1\n#"
    path.write_bytes(text + b"x" * ((256 << 10) - len(text)))
    assert config.read_yaml(path) == {"a": 1}
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError) as caught:
        config.read_yaml(path)
    assert str(caught.value) == "params.yaml: given more than 256 KiB; allowed: at most that; restore the file"
    path.write_bytes(b"\n\nb: 1\n" + b"9" * 1000 + b"\n\n\n")
    with pytest.raises(UserError, match="line 4: given a number of 1000 digits or more"):
        config.read_yaml(path)


def test_what_is_read_is_the_readers_to_change(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: [1]\n")
    config.read_yaml(path)["a"].append(2)
    assert config.read_yaml(path) == {"a": [1]}
    path.write_text("a: [3]\n")
    assert config.read_yaml(path) == {"a": [3]}


def test_what_is_allowed_ends_with_the_pattern_where_no_length_is_given():
    pattern = config._schema(config.Experiment, ("network", "blocks"))["pattern"]
    assert config.allowed("network", "blocks").endswith(f" (pattern {pattern})")


def test_like_is_a_rows_and_no_sections(sound, tmp_path):
    for place, hint in (("experiments.small", " (did you mean like?)"), ("experiments.small.training", "")):
        with pytest.raises(UserError) as caught:
            load(put(sound, f"{place}.lik", "wide"), tmp_path)
        assert f"{place}.lik: given an unknown key{hint}; allowed: " in str(caught.value)


def test_a_rows_name_may_have_50_characters(sound, tmp_path):
    assert "a" * 50 in load(put(sound, f"experiments.{'a' * 50}", {"title": "x"}), tmp_path).experiments
    with pytest.raises(UserError, match=r"allowed: text like 'cifar10-quick' \(pattern .*, at most 50 characters\)"):
        load(put(sound, f"experiments.{'a' * 51}", {"title": "x"}), tmp_path)


def test_a_changed_row_is_checked_like_one_of_the_file(sound, tmp_path):
    row = load(sound, tmp_path).experiments["small"]
    values = {"training.batch": 16, "network.blocks": "4 4P", "title": "Other", "training.lr": None}
    content = json.loads(config.canonical(row))
    for place, value in values.items():
        content = put(content, place, value) if value is not None else content
    assert json.loads(config.canonical(config.changed(row, values))) == content
    assert row == load(sound, tmp_path).experiments["small"]
    for where in ("given values", "bench"):
        with pytest.raises(UserError) as caught:
            config.changed(row, {"training.batch": 0}, *[where] * (where == "bench"))
        allowed = "a whole number, at least 2, at most 65536"
        assert str(caught.value) == f"{where}: training.batch: given 0; allowed: {allowed}"
    assert config.allowed("training", "batch") == allowed


def test_defaults_are_what_a_row_that_states_nothing_has(sound, tmp_path):
    path = tmp_path / "params.yaml"
    load(sound, tmp_path)
    assert config.defaults(path) == {"seeds": [0, 1], **sound["defaults"]}


@pytest.mark.parametrize(("vote", "number"), [("last", 1), ("last-2", 2), ("last-9", 9), ("all", 12)])
def test_voters_are_counted_from_the_last_block(vote, number):
    assert config.number_of_voters(vote, 12) == number


def test_a_row_is_found_by_name_or_the_nearest_is_named(sound, tmp_path):
    params = load(sound, tmp_path)
    assert config.experiment(params, "small") is params.experiments["small"]
    with pytest.raises(UserError) as caught:
        config.experiment(params, "smal")
    assert str(caught.value) == "no experiment 'smal' in params.yaml; did you mean small? there are: small, wide"
    with pytest.raises(UserError) as caught:
        config.experiment(params, "mnist")
    assert str(caught.value) == "no experiment 'mnist' in params.yaml; there are: small, wide"


# graph.yaml and params.schema.json, which are made from the models


def test_graph_yaml_is_the_rows_and_seeds_of_params_yaml(root, params):
    assert config.read_yaml(root / "graph.yaml") == config.graph(params)


def test_every_run_has_its_own_stage(sound, tmp_path):
    rows = {
        name: {"title": "x", "seeds": seeds} for name, seeds in {"a": [1, 10, 11], "a-1": [0, 1], "a-1-1": [0]}.items()
    }
    runs = config.graph(load({**sound, "experiments": rows}, tmp_path))["runs"]
    assert list(runs) == ["a-1", "a-10", "a-11", "a-1-0", "a-1-1", "a-1-1-0"]
    assert runs["a-1-1"] == {"experiment": "a-1", "seed": 1, "data": "digits"}


TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
TYPES["number"] = int | float
KEYWORDS = {"$ref", "$defs", "$schema", "title", "description", "examples", "type", "enum", "anyOf", "required"}
KEYWORDS |= {"properties", "additionalProperties", "patternProperties", "propertyNames", "minProperties"}
KEYWORDS |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern"}
KEYWORDS |= {"items", "minItems", "uniqueItems"}


def valid(value, schema, whole):
    """Whether a value is what a JSON Schema (of these keywords) allows."""
    assert schema.keys() <= KEYWORDS, schema.keys() - KEYWORDS
    if "$ref" in schema:
        return valid(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole)
    if "anyOf" in schema:
        return any(valid(value, choice, whole) for choice in schema["anyOf"])
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return False
    if isinstance(value, bool):
        return schema["type"] == "boolean"
    if isinstance(value, int | float):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        return math.isfinite(value) and low <= value <= high and above < value < below
    if isinstance(value, str):
        right = len(value) >= schema.get("minLength", 0) and len(value) <= schema.get("maxLength", math.inf)
        # `$` of Python would let a line end pass, that of JSON Schema does not
        matches = (
            re.fullmatch(schema["pattern"].removeprefix("^").removesuffix("$"), value) if "pattern" in schema else True
        )
        return bool(right and matches and value in schema.get("enum", [value]))
    if isinstance(value, list):
        unique = len(set(map(repr, value))) == len(value) or not schema.get("uniqueItems")
        return (
            unique and len(value) >= schema.get("minItems", 0) and all(valid(v, schema["items"], whole) for v in value)
        )
    if isinstance(value, dict):
        return len(value) >= schema.get("minProperties", 0) and members_valid(value, schema, whole)
    return value is None


def members_valid(mapping, schema, whole):
    if not set(schema.get("required", ())) <= mapping.keys():
        return False
    for key, value in mapping.items():
        name_is_right = valid(key, schema.get("propertyNames", {}), whole)
        patterns = [of for pattern, of in schema.get("patternProperties", {}).items() if re.match(pattern, str(key))]
        known = [*([schema["properties"][key]] if key in schema.get("properties", ()) else []), *patterns]
        if not name_is_right or not (known or schema.get("additionalProperties", True)):
            return False
        if not all(valid(value, of, whole) for of in known):
            return False
    return True


def test_the_committed_schema_is_the_models_and_knows_params_yaml(root, schema):
    assert (root / "params.schema.json").read_text() == config.json_schema(), (
        "run: ffrepro params schema > params.schema.json"
    )
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert valid(config.read_yaml(root / "params.yaml"), schema, schema)


def test_the_schema_is_closed_everywhere_and_its_references_lead_somewhere(schema):
    def objects(part):
        if isinstance(part, dict):
            if part.get("type") == "object":
                yield part
            for value in part.values():
                yield from objects(value)
        elif isinstance(part, list):
            for value in part:
                yield from objects(value)

    assert all(part["additionalProperties"] is False for part in objects(schema))
    references = set(re.findall(r'"\$ref": "(.*)"', config.json_schema()))
    assert {reference.removeprefix("#/$defs/") for reference in references} == schema["$defs"].keys()


@pytest.mark.parametrize(
    ("place", "value"),
    [(place, value) for place, value, _ in OUTLINE + FIELDS if value is not ABSENT or "." not in place],
)
def test_the_schema_refuses_what_the_models_refuse(sound, schema, place, value):
    assert valid(sound, schema, schema)
    assert not valid(put(sound, place, value), schema, schema)


# Rows that are like others


def loaded(document, tmp_path):
    path = tmp_path / "params.yaml"
    YAML(typ="safe").dump(document, path)
    return config.load(path).experiments


def test_a_row_takes_from_the_row_it_is_like_and_from_that_ones(sound, tmp_path):
    document = put(sound, "experiments.narrow", {"like": "wide", "title": "n", "training": {"epochs": 7}})
    document["experiments"]["narrower"] = {"like": "narrow", "title": "m", "network": {"norm": "layer"}}
    rows = loaded(document, tmp_path)
    assert rows["narrow"].network == rows["wide"].network
    assert rows["narrow"].training.epochs == rows["narrower"].training.epochs == 7
    assert rows["narrower"].network.blocks == rows["wide"].network.blocks
    assert (rows["narrower"].network.norm, rows["narrow"].network.norm) == ("layer", "batch")
    assert rows["narrow"].training.lr == rows["small"].training.lr
    assert config.original(tmp_path / "params.yaml") == ["small", "wide"]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"a": {"title": "a", "like": "wid"}}, "experiments.a.like: given 'wid'; allowed: the name of another row"),
        ({"a": {"title": "a", "like": "a"}}, "experiments.a.like: given 'a'; allowed: the name of another row"),
        ({"a": {"title": "a", "like": ["wide"]}}, "experiments.a.like: given ['wide']; allowed: "),
        (
            {"a": {"title": "a", "like": "b"}, "b": {"title": "b", "like": "a"}},
            "experiments.b.like: given 'a'; allowed: the name of another row, which is not itself like this one",
        ),
        (
            {"a": {"lik": "wide", "title": "a"}},
            "experiments.a.lik: given an unknown key (did you mean like?); allowed: ",
        ),
        (
            {"a": {"title": "a", "like": "wide", "network": {"blocks": "8 8P 8P 8P 8P"}}},
            "experiments.a.network.blocks: given '8 8P 8P 8P 8P'; allowed: at most 3 poolings",
        ),
        (  # what the other row states, and is impossible here alone
            {"a": {"title": "a", "like": "wide", "training": {"update": "backprop", "loss": "symba"}}},
            "experiments.a.training.loss: given 'symba'; allowed: cross-entropy, with update: backprop",
        ),
    ],
)
def test_a_row_that_is_like_nothing_sound_is_refused(sound, tmp_path, rows, line):
    with pytest.raises(UserError) as caught:
        loaded({**sound, "experiments": {**sound["experiments"], **rows}}, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"params.yaml: {line}")


def test_a_mistake_is_told_where_it_stands_and_once(sound, tmp_path):
    document = put(sound, "experiments.wide.training", {"lr": "fast"})
    document["experiments"]["narrow"] = {"like": "wide", "title": "n"}
    with pytest.raises(UserError) as caught:
        loaded(document, tmp_path)
    assert (
        str(caught.value)
        == "params.yaml: experiments.wide.training.lr: given 'fast'; allowed: a number, above 0, at most 10"
    )


def test_the_schema_knows_like(schema):
    assert schema["$defs"]["Experiment"]["properties"]["like"]["type"] == "string"


def test_the_canonical_text_of_a_row_is_sorted_and_indented(params):
    row = params.experiments["digits"]
    content = row.model_dump(mode="json")
    assert config.canonical(row) == json.dumps(content, indent=2, sort_keys=True) + "\n"
    assert list(json.loads(config.canonical(row))) == sorted(content)


def test_a_file_that_is_read_again_is_read_anew_where_it_changed(root, tmp_path):
    path = tmp_path / "params.yaml"
    text = (root / "params.yaml").read_text()
    path.write_text(text)
    first = config.load(path)
    assert config.load(path) is first
    path.write_text(text.replace("seeds: [0, 1, 2]", "seeds: [0, 1]"))
    assert config.load(path).seeds == (0, 1)
    path.unlink()
    with pytest.raises(UserError, match=r"^params.yaml: no such file"):
        config.load(path)


class Words(config.Section):
    many: list[str]
    one: str
    flag: int
    mapping: dict[config.Name, int]


def test_what_is_wrong_is_said_in_these_words():
    long = "x" * 61
    given = {"many": [1], "one": True, "flag": False, "mapping": {"a": long}}
    with pytest.raises(UserError) as error:
        config.checked(Words, given, "f.yaml")
    assert str(error.value).splitlines() == [
        "f.yaml: many.0: given 1; allowed: text",
        "f.yaml: one: given true; allowed: text",
        "f.yaml: flag: given false; allowed: a whole number",
        f"f.yaml: mapping.a: given '{long[:56]}...; allowed: a whole number",
    ]
    with pytest.raises(UserError) as error:
        config.checked(Words, {"many": None, "one": "", "flag": "x" * 58, "mapping": {"a": "x" * 59}}, "f.yaml")
    assert str(error.value).splitlines() == [
        "f.yaml: many: given nothing; allowed: a list, not empty, of text",
        f"f.yaml: flag: given '{'x' * 58}'; allowed: a whole number",
        f"f.yaml: mapping.a: given '{'x' * 56}...; allowed: a whole number",
    ]


def test_words_of_a_file_stand_on_one_line_of_at_most_300_characters():
    assert config.plain("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert config.plain("x" * 300) == "x" * 300
    assert config.plain("x" * 301) == "x" * 297 + "..."
