"""deviations.yaml: complete, strictly read, and printed with every table."""

import json
import re
import shutil

import pytest

from ffrepro import config, deviations, tables
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import read_paper


@pytest.fixture
def known(root):
    return deviations.read(root / "deviations.yaml")


def test_every_field_of_a_rows_numbers_is_a_deviation_or_a_choice(known, params):
    row = json.loads(config.canonical(params.experiments["digits"]))
    numbers = {f"{section}.{name}" for section in deviations.SECTIONS for name in row[section]}
    assert known.fields.keys() | known.choices.keys() == numbers
    assert not known.fields.keys() & known.choices.keys()
    hashed = json.loads(config.training_parameters(params.experiments["digits"]))
    assert {*hashed, "evaluation"} == set(deviations.SECTIONS)


def test_the_papers_row_departs_only_in_the_number_of_epochs(known, params):
    found = list(deviations.of(params.experiments["cifar10"], known))
    assert found == [("training.epochs", "200", "100", known.fields["training.epochs"].why)]


def test_a_row_departs_where_its_value_is_another(known, row):
    same = row("cifar10")
    other = row("cifar10", flip=True, lr=0.005, label_patch=8, precision="bfloat16", vote="all", held_out=10)
    new = [line[:3] for line in deviations.of(other, known) if line not in list(deviations.of(same, known))]
    assert new == [
        ("data.held_out", "10", "0"),
        ("augmentation.flip", "true", "false"),
        ("network.label_patch", "8", "1"),
        ("training.lr", "0.005", "0.001"),
        ("training.precision", "bfloat16", "float16"),
        ("evaluation.vote", "all", "last"),
    ]


def test_what_the_ablation_chooses_is_no_deviation(known, row):
    ablation = row("cifar10", norm="layer", update="layer-wise", loss="threshold", blocks="128P 128")
    assert list(deviations.of(ablation, known)) == list(deviations.of(row("cifar10"), known))


LR = "  training.lr:\n    theirs: 0.001\n"
DEVICE = "  device:\n    theirs: CUDA is hard-coded\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            LR,
            "  training.lrr:\n    theirs: 0.001\n",
            "fields: given 'training.lrr'; allowed: a field of a row's numbers: ",
        ),
        (LR, "  3:\n    theirs: 0.001\n", "fields: given 3; allowed: a field of a row's numbers: data.name, "),
        ("  data.name: the data set\n", "", "data.name: given nothing; allowed: an entry in fields or in choices, for"),
        (
            "  data.name: the data set\n",
            "  data.name: the data set\n  training.lr: twice\n",
            "choices: given 'training.lr'; allowed: what is not in fields",
        ),
        *(
            (LR, LR.replace("0.001", given), f"fields.training.lr.theirs: given {shown}; allowed: {deviations.VALUE}")
            for given, shown in {
                "-1": "-1",
                "fast": "'fast'",
                "[1]": "[1]",
                "true": "true",
                ".nan": "nan",
                "null": "nothing",
            }.items()
        ),
        (
            "theirs: float16",
            "theirs: float8",
            "fields.training.precision.theirs: given 'float8'; allowed: a value that",
        ),
        (LR, "  training.lr:\n", f"fields.training.lr.theirs: given nothing; allowed: {deviations.VALUE}"),
        (LR, LR + "    than: 1\n", "fields.training.lr.than: given an unknown key; allowed: theirs, why"),
        (LR, LR.replace("theirs", "their"), "fields.training.lr"),
        ("data.name: the data set", "data.name: 3", "choices.data.name: given 3; allowed: text of 1 to 300 characters"),
        (DEVICE, "  device:\n", "always.device.theirs: given nothing; allowed: text of 1 to 300 characters"),
        (DEVICE, DEVICE.replace("device", "Device"), "always.Device: given 'Device'; allowed: text like "),
        ("choices:", "choice:", "cho"),
    ],
)
def test_a_mistake_in_the_file_names_the_field_what_was_given_and_what_is_allowed(root, tmp_path, old, new, line):
    text = (root / "deviations.yaml").read_text()
    assert text.count(old) == 1
    path = tmp_path / "deviations.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        deviations.read(path)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"deviations.yaml: {line}")
    assert len(rest) == ("their:" in new or "choice:" in new)  # a misspelt key is an unknown and a missing one


def test_a_target_that_is_none_is_a_line(root, tmp_path):
    text, path = (root / "deviations.yaml").read_text(), tmp_path / "deviations.yaml"
    path.write_text(text.replace("\n  hinton:\n", "\n  hintn:\n"))
    with pytest.raises(UserError, match=r"^deviations\.yaml: targets\.hintn: no such target in paper\.yaml; did you "):
        deviations.check(deviations.read(path), read_paper(root / "paper.yaml"))
    deviations.check(deviations.read(root / "deviations.yaml"), read_paper(root / "paper.yaml"))


@pytest.mark.parametrize("content", ["", "[]", "always: 1\nfields: []\nchoices: {}\n", "fields: {training.lr: 1}\n"])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    path = tmp_path / "deviations.yaml"
    with pytest.raises(UserError, match=r"^deviations\.yaml: no such file; "):
        deviations.read(path)
    path.write_text(content)
    with pytest.raises(UserError, match=r"^deviations\.yaml: "):
        deviations.read(path)


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (0.0, "0"), (1e-05, "1e-05"), (128, "128"), ("last", "last")]
)
def test_values_are_written_as_in_params_yaml(value, text):
    assert deviations.shown(value) == text


def test_they_stand_under_the_table(root, tmp_path):
    for name in ("params.yaml", "paper.yaml", "deviations.yaml"):
        shutil.copy(root / name, tmp_path)
    printed = tables.write_all(Layout(tmp_path))
    _, of_all, by_row, of_targets = re.split(
        r"^## (?:Deviations|And row|From other).*\n\n", printed, flags=re.MULTILINE
    )
    assert "| random numbers | no seed is set | keyed CPU generators, a seed for every run | " in of_all
    assert len(of_all.strip().splitlines()) == 2 + 7
    assert [line.split(" | ")[0] for line in of_targets.strip().splitlines()[2:]] == [
        "| hinton",
        "| backprop-large-cifar10",
    ]
    rows = [line.split(" | ")[:4] for line in by_row.strip().splitlines()[2:]]
    assert ["| digits", "training.precision", "float32", "float16"] in rows
    assert [line for line in rows if line[0] == "| svhn"] == [["| svhn", "training.epochs", "200", "100"]]
