"""What was tried is told as it was: the committed table is that of the committed files, and edited ones are refused."""

import csv
import json
import shutil

import pytest
from test_report import cells

from ffrepro import config, record
from ffrepro.errors import UserError
from pipelines import tries


@pytest.fixture
def copied(root, tmp_path):
    """The committed tries, to be damaged."""
    return shutil.copytree(root / "results" / "tries", tmp_path / "results" / "tries")


@pytest.fixture
def rows(root):
    return config.load(root / "params.yaml").experiments


def test_the_committed_table_is_what_the_command_makes_of_the_committed_files(root, copied, call_in):
    (copied / "table.md").unlink()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, copied.parents[1])
    done = call_in(copied.parents[1], "python", "-m", "pipelines.tries")
    assert (done.returncode, done.stderr) == (0, "")
    committed = (root / "results" / "tries" / "table.md").read_text()
    assert (copied / "table.md").read_text() == done.stdout == committed


def test_a_line_says_what_its_files_say(root):
    lines = cells((root / "results" / "tries" / "table.md").read_text())
    folders = sorted(path.parent for path in root.glob("results/tries/*/try.json"))
    assert [line["try"] for line in lines] == [folder.name for folder in folders]
    mean = "last block alone, mean of the last 10 epochs (%)"
    for line, folder in zip(lines, folders, strict=True):
        its = json.loads((folder / "try.json").read_text())
        with (folder / "history.csv").open() as file:
            history = list(csv.DictReader(file))
        blocks = len(its["held_out"]["blocks"])
        last = [float(epoch[f"held_out_{blocks}"]) for epoch in history]
        assert (line["row"], line["seed"], line["epochs"]) == (its["experiment"], str(its["seed"]), str(len(history)))
        assert line["held out (%)"] == f"{its['held_out']['accuracy']:.2f}"
        assert bool(line[mean]) == (len(last) > 10)
        assert not line[mean] or float(line[mean]) == pytest.approx(sum(last[-10:]) / 10, abs=0.01)
        assert config.experiment(config.load(root / "params.yaml"), its["experiment"])  # a row that is there


def test_what_was_edited_or_is_of_two_tries_is_a_line(copied, rows):
    folder = min(path.parent for path in copied.glob("*/try.json"))
    path, history = folder / "try.json", folder / "history.csv"
    content, epochs = path.read_text(), history.read_text()
    path.write_text(content.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(UserError, match=r"try.json: broken link"):
        tries.table(copied, rows)
    changed = {key: value for key, value in json.loads(content).items() if key not in ("seal", "held_out")}
    record.write_sealed(changed, path)
    with pytest.raises(UserError, match=r"try.json: not what `python -m pipelines.away try` writes; copy"):
        tries.table(copied, rows)
    path.write_text(content)
    history.write_text(epochs.replace("\n1,", "\n1,9", 1))
    with pytest.raises(UserError, match=r"history.csv: not the one that try.json names; copy both"):
        tries.table(copied, rows)
    history.write_text("epoch\n")
    record.write_sealed({**json.loads(content), "history": record.file_hash(history)}, path)
    with pytest.raises(UserError, match=r"try.json: not what "):
        tries.table(copied, rows)
    history.unlink()
    with pytest.raises(UserError, match=r"history.csv: not the one"):
        tries.table(copied, rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda its: {"set": {"training.hardness": 3}}, "its row does not have what was set in it"),
        (lambda its: {"set": {"training.hardnes": 3}}, "its row is none, or not the one that its parameters are of"),
        (lambda its: {"parameters": "0" * 64}, "its row is none, or not the one that its parameters are of"),
        (
            lambda its: {"row": {**its["row"], "training": {**its["row"]["training"], "epochs": 7}}},
            "its row is none, or not the one that its parameters are of",
        ),
        (lambda its: {"row": {"data": None}}, "its row is none, or not the one that its parameters are of"),
        (lambda its: {"seed": its["seed"] + 1}, "not what "),  # whose chain begins elsewhere
        (lambda its: {"seed": -3}, "not what "),
        (lambda its: {"chain": its["chain"][:-1]}, "not what "),
        (lambda its: {"seconds": 1.0}, "not what "),
        (lambda its: {"held_out": {**its["held_out"], "images": 5}}, "its accuracies are not of the history's last"),
        (lambda its: {"trained_on": {**its["trained_on"], "images": 5}}, "its accuracies are not of the history's"),
        (lambda its: {"trained_on": {**its["trained_on"], "accuracy": 5.0}}, "its accuracies are not of the history's"),
        (lambda its: {"held_out": {**its["held_out"], "accuracy": 99.9}}, "its accuracies are not of the history's"),
        (
            lambda its: {"held_out": {**its["held_out"], "blocks": {**its["held_out"]["blocks"], "4": 99.9}}},
            "its accuracies are not of the history's last epoch",
        ),
    ],
)
def test_what_contradicts_itself_is_a_line_though_it_was_sealed_again(copied, rows, change, says):
    path = copied / "hinton-narrow-hardness-1000-seed-1" / "try.json"
    its = record.read_json(path)
    record.write_sealed({**its, **change(its)}, path)
    with pytest.raises(UserError) as error:
        tries.table(copied, rows)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_row_that_is_another_now_is_told_of(copied, rows):
    """Nor does a try become one of the row as it is by saying nothing of what was set."""
    name = "hinton-narrow-hardness-1000-seed-1"

    def row_of(rows):
        return next(line["row"] for line in cells(tries.table(copied, rows)) if line["try"] == name)

    assert row_of(rows) == "hinton-narrow"
    changed = config.changed(rows["hinton-narrow"], {"training.lr": 0.5})
    assert row_of({**rows, "hinton-narrow": changed}) == "hinton-narrow, as it was then"
    assert row_of({other: its for other, its in rows.items() if other != "hinton-narrow"}).endswith(", as it was then")
    path = copied / name / "try.json"
    record.write_sealed({**record.read_json(path), "set": {}}, path)
    assert row_of(rows) == "hinton-narrow, as it was then"


def test_without_tries_there_is_a_table_without_lines(tmp_path, rows):
    assert cells(tries.table(tmp_path / "none", rows)) == []
