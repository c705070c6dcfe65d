"""What is computed to be drawn, by hand; and the files of a small project, of runs that are files written here."""

import os
import shutil
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from ffrepro import config, data, figure_data, figures, record, targets
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.targets import measured, spread

PAPER = """
sources: {}
targets: {}
tables:
  pair: {title: A & B, rows: {poor: {whole: low}, rich: {whole: high}, twin: {whole: twin}}}
  single: {title: One row of results, rows: {poor: {whole: low}, none: {whole: idle}}}
claims: {}
"""
BLOCKS = {"alone": [60.0, 90.0], "low": [50.0, 40.0], "high": [50.0, 70.0], "twin": [80.0]}
"""Accuracies by block of each row's first seed; those of its second are higher by 2."""
OF_TABLE = ["depth-pair", "time-pair"]
OF_HISTORY = ["loss-alone", "separation-alone"]
OF_GOODNESS = ["goodness-alone", "confusion-alone", "samples-alone"]
DRAWN = [*OF_TABLE, *OF_HISTORY, *OF_GOODNESS]


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """A project: `alone` has runs here, with everything; a table's rows have committed results without histories."""
    project = Layout(tmp_path_factory.mktemp("figures"))
    document = config.read_yaml(root / "params.yaml")
    document["seeds"] = [0, 1]
    document["defaults"]["verdict"] = {"reference_seeds": [3, 4], "margin": 1.5, "alpha": 0.05}
    whole = {"title": "Alone & first", "requires": "cpu", "data": {"name": "digits"}, "network": {"blocks": "2 2"}}
    twin = {"training": {"update": "backprop", "loss": "cross-entropy"}}
    others = {name: {"like": "alone", "title": name} for name in ("low", "high", "idle", "twin")}
    document["experiments"] = {"alone": whole, **others, "twin": others["twin"] | twin}
    YAML(typ="safe").dump(document, project.params)
    project.paper.write_text(PAPER)
    rows, reference = config.load(project.params).experiments, {}
    for name, blocks in BLOCKS.items():
        row, here = rows[name], name == "alone"
        seeds = row.seeds if here else row.verdict.reference_seeds
        for seed in seeds:
            write_run(Layout(project.root, "runs" if here else "results"), name, row, seed, blocks, 2.0 * (seed % 3))
        its = spread([blocks[-1], blocks[-1] + 2.0])
        if here:
            summary = {"row": record.text_hash(config.canonical(row)), "accuracy": its, "seeds": list(seeds)}
            record.write_json(summary | {"seconds": 30.0, "device": "cpu"}, project.summary(name))
        else:
            entry = {"seeds": list(seeds), "values": its["values"], "mean": its["mean"], "std": its["std"]}
            entry |= {"seconds": 15.0, "row": measured(row), "command": "c", "machine": "m", "ffrepro": "0"}
            reference[name] = entry
    record.write_json(reference, project.reference)

    losses = {0: [(1.0, ""), (0.5, 0.4)], 1: [(3.0, 0.2), (1.5, "")]}
    for seed, epochs in losses.items():
        history = [
            {"epoch": i + 1, "loss": 9.0, "loss_1": a, "loss_2": b, "separation_1": 0.5, "separation_2": -1.5}
            for i, (a, b) in enumerate(epochs)
        ]
        record.write_csv(history, project.run("alone", seed) / "history.csv")
    labels = torch.arange(10)
    table = torch.rand(10, 10, 2, generator=torch.Generator().manual_seed(0))
    table[labels, labels, 1] = 3.0
    table[3, 5, 1] = 4.0  # the 3 is taken for a 5
    record.write_tensors({"goodness": table}, project.run("alone", 0) / "goodness.safetensors")
    images = torch.randint(256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data.save(data.Split(images.clone(), labels.clone()), data.Split(images, labels), project.data("digits"))
    return project


def write_run(project, name, row, seed, blocks, more):
    metrics = {
        "accuracy": blocks[-1] + more,
        "vote": "last",
        "weights": f"w{seed}",
        "blocks": {str(i + 1): value + more for i, value in enumerate(blocks)},
    }
    facts = {"seed": seed, "parameters": record.text_hash(config.training_parameters(row)), "weights": f"w{seed}"}
    facts |= {"ffrepro": "0.1.0", "environment": {"device": "cpu"}}
    record.write_sealed(metrics, project.run(name, seed) / "metrics.json")
    record.write_sealed(facts | {"seconds": 10.0 + 5 * more}, project.run(name, seed) / "record.json")


@pytest.fixture(scope="module")
def drawn(made):
    """The project with its figures: they are in `report/figures`, and what `write` said of them is here."""
    return {figure.name: figure for figure in figures.write(made)}


@pytest.fixture
def project(made, tmp_path):
    """A copy, to break files of."""
    shutil.copytree(made.root, tmp_path / "copy", ignore=shutil.ignore_patterns("figures"))
    return Layout(tmp_path / "copy")


@pytest.fixture
def names(monkeypatch):
    """What `write` draws, by name, without the seconds that real files take."""
    monkeypatch.setattr(figures, "SAMPLES", 1)
    monkeypatch.setattr(figures, "_save", lambda canvas, ending, title, path: path.write_text(ending))
    return lambda project: [figure.name for figure in figures.write(project)]


def files(project):
    return sorted(path.name for path in (project.root / "report" / "figures").iterdir())


def contents(project):
    return {name: (project.root / "report" / "figures" / name).read_bytes() for name in files(project)}


# What is drawn


def test_accuracy_by_depth_is_mean_lowest_and_highest_over_seeds():
    runs = [{"metrics": {"blocks": {"1": one, "2": two}}} for one, two in ((10.0, 90.0), (20.0, 96.0), (60.0, 93.0))]
    assert figure_data.depth(runs) == [(1, 30.0, 10.0, 60.0), (2, 93.0, 90.0, 96.0)]


def test_curves_are_means_over_the_seeds_that_have_a_value():
    first = [
        {"epoch": 1.0, "loss": 7.0, "loss_1": 1.0, "loss_10": 8.0},
        {"epoch": 2.0, "loss_1": 0.5, "loss_2": 0.4, "separation_2": -2.0},
        {"epoch": 3.0, "loss_1": 0.1, "held_out_1": 50.0},
    ]
    second = [{"epoch": 1.0, "loss_1": 3.0, "loss_2": 0.2}, {"epoch": 2.0, "loss_1": 1.5, "loss_2": float("nan")}]
    assert figure_data.curves([first, second], "loss") == {
        1: [(1, 2.0), (2, 1.0), (3, 0.1)],
        2: [(1, 0.2), (2, 0.4)],  # no seed has one in epoch 3
        10: [(1, 8.0)],
    }
    assert list(figure_data.curves([first, second], "loss")) == [1, 2, 10]
    assert figure_data.curves([first, second], "separation") == {2: [(2, -2.0)]}


def test_a_history_is_read_without_its_gaps(made):
    assert figure_data.read_history(made.run("alone", 1) / "history.csv")[1] == {
        "epoch": 2.0,
        "loss": 9.0,
        "loss_1": 1.5,
        "separation_1": 0.5,
        "separation_2": -1.5,
    }


@pytest.mark.parametrize("text", ["", "epoch,loss_1\n", "loss_1\n1\n", "epoch,loss_1\n1,x\n", "epoch\n1,2\n", "\xff"])
def test_what_is_no_history_is_refused(tmp_path, text):
    (tmp_path / "history.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not a history"):
        figure_data.read_history(tmp_path / "history.csv")


def test_goodness_is_parted_by_label():
    goodness = numpy.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    right, wrong = figure_data.by_label(goodness, numpy.array([2, 0]))
    assert (right.tolist(), wrong.tolist()) == ([3.0, 4.0], [1.0, 2.0, 5.0, 6.0])


def test_the_area_of_a_histogram_counts_what_lies_beyond():
    values, edges = numpy.array([0.0, 0.1, 0.6, 5.0]), numpy.array([0.0, 0.5, 1.0])
    assert figure_data.density(values, edges).tolist() == [1.0, 0.5]  # 2 and 1 of 4, in bins of width 1/2


def test_confusions_are_counted_by_true_and_predicted_label():
    labels, predicted = numpy.array([0, 0, 1, 2, 2]), numpy.array([0, 2, 1, 1, 1])
    assert figure_data.confusion(labels, predicted, 3) == [[1, 0, 1], [0, 1, 0], [0, 2, 0]]


def test_time_and_accuracy_are_those_of_each_run():
    runs = [{"metrics": {"accuracy": 90}, "record": {"seconds": 12.5}}]
    assert figure_data.timed(runs) == [(12.5, 90.0)]


def test_rows_by_themselves_and_the_best_of_each_table_are_chosen(made):
    rows, tables = figure_data.found(made), targets.read_tables(made.paper)
    assert figure_data.chosen(rows, tables) == ["alone", "high", "low"]  # not the twin, which is better
    worse = {**rows, "high": rows["high"]._replace(mean=1.0)}
    assert figure_data.chosen(worse, tables) == ["alone", "low"]
    assert figure_data.chosen({"twin": rows["twin"]}, tables) == []
    assert figure_data.chosen(rows, {}) == ["alone", "high", "low"]


def test_results_are_found_where_they_lie(made):
    rows = figure_data.found(made)
    assert (rows["alone"].seeds, rows["alone"].place.runs, rows["alone"].mean) == ((0, 1), "runs", 91.0)
    assert (rows["high"].seeds, rows["high"].place.runs, rows["high"].mean) == ((3, 4), "results", 71.0)
    assert "idle" not in rows


def test_an_image_becomes_runs_of_one_colour():
    image = numpy.array([[[0, 0, 255], [0, 255, 0]]], dtype=numpy.uint8)
    black, white = [(0, 0, 2), (1, 0, 1), (1, 2, 3)], [(0, 2, 3), (1, 1, 2)]
    assert figure_data.strokes(image) == [("#000000", black), ("#ffffff", white)]
    red = numpy.array([[[255, 255]], [[0, 0]], [[0, 0]]], dtype=numpy.uint8)
    assert figure_data.strokes(red) == [("#ff0000", [(0, 0, 2)])]


def test_the_runs_of_an_image_cover_each_pixel_once():
    image = numpy.random.default_rng(0).integers(256, size=(3, 9, 7), dtype=numpy.uint8)
    found = figure_data.strokes(image)
    pixels = [(y, x) for _, runs in found for y, start, stop in runs for x in range(start, stop)]
    assert sorted(pixels) == [(y, x) for y in range(9) for x in range(7)]
    assert 1 < len(found) <= figure_data.SHADES


# Files


def test_every_kind_of_figure_is_written(made, drawn):
    assert list(drawn) == DRAWN
    assert files(made) == sorted(f"{name}.{ending}" for name in DRAWN for ending in ("png", "svg"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("depth-pair", {"block", "accuracy of each block (%)", "poor", "rich"}),
        ("time-pair", {"training (s)", "test accuracy (%)", "poor", "rich", "twin"}),
        ("loss-alone", {"epoch", "training loss (nats)", "block", "1", "2"}),
        ("separation-alone", {"epoch", "separation (goodness, true − wrong)"}),
        ("goodness-alone", {"goodness of the last block", "density", "true label", "wrong labels"}),
        ("confusion-alone", {"true label", "predicted label", "0", "9", "1"}),
        ("samples-alone", {"goodness", "true label", "predicted", "2, right", "3, taken for 5"}),
    ],
)
def test_a_drawing_is_svg_with_its_labels_as_text(made, drawn, name, shown):
    from ffrepro import page

    path = made.root / "report" / "figures" / f"{name}.svg"
    root = ElementTree.parse(path).getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert shown <= set(texts)
    assert drawn[name].title in [element.text for element in root if element.tag.endswith("}title")]
    assert page.inlined(path, name, drawn[name].words)  # nothing in it that the page would refuse
    with Image.open(path.with_suffix(".png")) as png:
        assert png.width == 1000


def test_the_words_say_what_was_found(drawn):
    words = {name: figure.words for name, figure in drawn.items()}
    assert words["depth-pair"] == (
        "Test accuracy of each block by itself, means over n = 2 seeds, and bands from the lowest seed to the highest. "
        "digits: the last block is best in rich, from 51.00 % at block 1 to 71.00 % at 2 "
        "and worst in poor, from 51.00 % at block 1 to 41.00 % at 2."
    )
    assert words["time-pair"] == (
        "Test accuracy against seconds of training, a point a run: backprop (hollow squares, n = 2) and "
        "Forward-Forward (filled, n = 4). digits: the best of each, by their means, twin 81.00 % after 15 s "
        "and rich 71.00 % after 15 s."
    )
    assert words["loss-alone"] == (
        "Training loss of each block, means over n = 2 seeds, over 2 epochs: block 1 from 2 to 1 "
        "and block 2 from 0.2 to 0.4."
    )
    assert "block 1 from 0.5 to 0.5 and block 2 from -1.5 to -1.5" in words["separation-alone"]
    assert "n = 10 test images of seed 0" in words["goodness-alone"]
    assert "under the true label 3 on average" in words["goodness-alone"]
    assert "image's highest in 9." in words["goodness-alone"]
    assert "(n = 10 images, no number for none): 9 lie on the diagonal" in words["confusion-alone"]
    assert "takes 3 for 5, 1 times" in words["confusion-alone"]
    assert words["samples-alone"].endswith("seed 0: 7 of 8 are predicted right.")


def test_the_same_files_give_the_same_bytes_here_and_in_another_process(made, drawn, project, tmp_path, monkeypatch):
    first = contents(made)
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 9\n")  # of a user, and without a say
    program = """
import sys
from pathlib import Path
from ffrepro import figures
from ffrepro.layout import Layout
early = {"matplotlib", "numpy", "torch", "PIL"} & set(sys.modules)
assert not early, early
figures.write(Layout(Path(sys.argv[1])))
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
"""
    settings = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program, str(project.root)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(project) == first
    (project.run("alone", 0) / "goodness.safetensors").unlink()  # the quick ones are enough here
    monkeypatch.setattr(figures, "ENDINGS", ("svg",))
    figures.write(project)
    again = [f"{name}.svg" for name in [*OF_TABLE, *OF_HISTORY]]
    assert {name: contents(project)[name] for name in again} == {name: first[name] for name in again}


def test_what_earlier_calls_drew_is_removed_and_nothing_else(project, names):
    folder = project.root / "report" / "figures"
    folder.mkdir()
    for name in ("loss-gone.svg", "loss-gone.png", "notes.txt"):
        (folder / name).write_text("")
    assert names(project) == DRAWN
    assert files(project) == sorted([*(f"{name}.{ending}" for name in DRAWN for ending in ("png", "svg")), "notes.txt"])


def test_settings_of_matplotlib_are_left_as_they_were(project, names):
    import matplotlib

    before = dict(matplotlib.rcParams)
    names(project)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("file", ["runs/alone/0/goodness.safetensors", "data/digits.safetensors"])
@pytest.mark.parametrize("broken", [False, True])
def test_without_goodness_or_images_the_figures_of_them_are_left_out(project, names, file, broken):
    (project.root / file).unlink()
    if broken:
        (project.root / file).write_bytes(b"{")
    assert names(project) == [*OF_TABLE, *OF_HISTORY]


@pytest.mark.parametrize(
    "goodness", [torch.rand(10, 10, 3), torch.rand(9, 10, 2), torch.full((10, 10, 2), float("nan"))]
)
def test_goodness_of_something_else_is_not_drawn(project, names, goodness):
    record.write_tensors({"goodness": goodness}, project.run("alone", 0) / "goodness.safetensors")
    assert names(project) == [*OF_TABLE, *OF_HISTORY]


def state_accuracy(project, percent):
    path = project.run("alone", 0) / "metrics.json"
    record.write_sealed(record.read_json(path) | {"accuracy": percent}, path)
    summary = record.read_json(project.summary("alone"))
    its = spread([percent, *summary["accuracy"]["values"][1:]])
    record.write_json(summary | {"accuracy": its}, project.summary("alone"))


def test_goodness_that_gives_another_accuracy_is_not_drawn(project, names):
    state_accuracy(project, 80.0)
    assert names(project) == [*OF_TABLE, *OF_HISTORY]


def test_a_tie_that_numpy_rounds_the_other_way_goes_as_pytorch_has_it(project, monkeypatch):
    row = figure_data.found(project)["alone"]
    pytorchs = torch.tensor([*range(9), 0])  # as it has decided another tie than the right label for a 9
    monkeypatch.setattr("ffrepro.evaluation.predictions", lambda table, vote: pytorchs)
    test = figure_data.test_images(project, "digits")
    tested = figure_data.tested(row, lambda _: test)
    assert tested.predicted.tolist() == [0, 1, 2, 5, *range(4, 10)]  # NumPy's give metrics.json's accuracy
    state_accuracy(project, 80.0)
    with pytest.raises(UserError, match=r"gives 90 %, not the 80 % of metrics\.json"):
        figure_data.tested(row, lambda _: test)
    table = torch.rand(10, 10, 2)
    record.write_tensors({"goodness": table}, project.run("alone", 0) / "goodness.safetensors")
    state_accuracy(project, 90.0)
    assert figure_data.tested(row, lambda _: test).predicted.tolist() == pytorchs.tolist()


def test_goodness_that_tells_nothing_apart_has_no_histogram(project, names):
    record.write_tensors({"goodness": torch.zeros(10, 10, 2)}, project.run("alone", 0) / "goodness.safetensors")
    state_accuracy(project, 10.0)
    assert names(project) == [name for name in DRAWN if name != "goodness-alone"]


def test_without_one_seeds_history_its_figures_are_left_out(project, names):
    (project.run("alone", 1) / "history.csv").unlink()
    assert names(project) == [*OF_TABLE, *OF_GOODNESS]


def test_a_row_with_a_run_of_other_parameters_has_no_figures(project, names):
    path = project.run("alone", 1) / "record.json"
    record.write_sealed(record.read_json(path) | {"parameters": "others"}, path)
    assert names(project) == OF_TABLE


@pytest.mark.parametrize(("row", "left"), [("low", ["time-pair"]), ("twin", ["depth-pair"])])
def test_a_table_is_drawn_of_the_rows_that_are_whole(project, names, row, left):
    path = Layout(project.root, "results").run(row, 4) / "metrics.json"
    record.write_sealed({**record.read_json(path), "blocks": None}, path)
    assert [name for name in names(project) if name in OF_TABLE] == left


def test_a_long_legend_leaves_the_panel_its_room(made):
    rows = {f"row-{i}": {"whole": "high"} for i in range(50)}
    table, high = targets.Table(title="fifty", rows=rows), figure_data.found(made)["high"]
    _, canvas = figures.draw_depth("fifty", table, [figure_data.Cell(name, "whole", high) for name in rows])
    with warnings.catch_warnings(action="error"):
        canvas.draw_without_rendering()
    inches = canvas.axes[0].get_position().height * canvas.get_figheight()
    assert inches > 1


def test_without_results_nothing_is_drawn(project, names):
    project.reference.unlink()
    project.summary("alone").unlink()
    assert names(project) == []
    assert not project.page.parent.joinpath("figures").exists()
