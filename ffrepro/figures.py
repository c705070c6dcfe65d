"""What the runs did, drawn: report/figures/NAME.svg and NAME.png, the same bytes for the same files.

A function draws a kind of figure, from what `figure_data` computes. Matplotlib is used by its objects alone, without
pyplot's global state, and imported where it is used, since it takes a second.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from ffrepro import figure_data, record, targets
from ffrepro.errors import UserError
from ffrepro.figure_data import Cell, Row, Tested
from ffrepro.layout import Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

ENDINGS = ("svg", "png")
WIDTH = 5.0  # inches, in which 9 points can be read when the figure is shown 400 pixels wide
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart; without yellow, which is lost on white."""
BLUE, ORANGE, GREY = COLOURS[0], COLOURS[1], "#b3b3b3"
MARKERS = ("o", "^", "D", "v")
DASHES: Sequence[Any] = ("-", (0, (4, 1.5)), (0, (1, 1)), "-.")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # the first comes with Matplotlib; the second has its widths
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "text.parse_math": False,
    "svg.fonttype": "none",  # text stays text: small, to be searched and read aloud
    "svg.hashsalt": "ffrepro",
}
KEYS = 3  # of a legend in a line
SHOWN = 0.995  # least share of each histogram within the axis: a few images have ten times the others' goodness
SAMPLES = 8


class Figure(NamedTuple):
    """A figure that was written. words: what it shows and what was found, as its caption or where it is not seen."""

    name: str
    title: str
    words: str


Drawn = tuple[Figure, "Canvas"]


def write(project: Layout) -> list[Figure]:
    """Draw every figure that has data, and remove what earlier calls drew. A missing or broken file leaves its figure
    out, or its line in a table's; a row whose runs are not whole, or not of its parameters, has none."""
    import matplotlib

    folder, figures = project.figures, []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc of the user's says
        matplotlib.rcParams.update(STYLE)
        for draw in plan(project):
            try:
                figure, canvas = draw()
            except UserError:
                continue
            for ending in ENDINGS:
                record.write(folder / f"{figure.name}.{ending}", partial(_save, canvas, ending, figure.title))
                canvas.set_layout_engine("none")  # the first has laid it out, for all
            figures.append(figure)
    names = {f"{figure.name}.{ending}" for figure in figures for ending in ENDINGS}
    for ending in ENDINGS:
        for path in folder.glob(f"*.{ending}"):
            if path.name not in names:
                path.unlink()
    return figures


def _save(canvas: "Canvas", ending: str, title: str, path: Path) -> None:
    metadata = {"svg": {"Date": None, "Title": title}, "png": {"Software": None, "Title": title}}[ending]
    canvas.savefig(path, format=ending, metadata=metadata)


def plan(project: Layout) -> Iterator[Callable[[], Drawn]]:
    """What draws each figure, in their order: the tables', then row by row."""
    rows, tables = figure_data.found(project), targets.read_tables(project.paper)
    for name, table in tables.items():
        yield partial(draw_depth, name, table, figure_data.cells(table, rows))
        yield partial(draw_time, name, table, figure_data.cells(table, rows))
    tests = cache(partial(figure_data.test_images, project))  # for this call: another may find other files
    for name in figure_data.chosen(rows, tables):
        row = rows[name]
        tested = cache(partial(figure_data.tested, row, tests))
        yield partial(draw_curves, row, "loss")
        yield partial(draw_curves, row, "separation")
        yield partial(draw_goodness, row, tested)
        yield partial(draw_confusion, row, tested)
        yield partial(draw_samples, row, tested)


# Figures of tables


def draw_depth(name: str, table: targets.Table, members: list[Cell]) -> Drawn:
    """Accuracy of each block by itself, a line for each row of a table, a panel for each data set."""
    lines = figure_data.of_whole((cell for cell in members if cell.of.forward), figure_data.depth)
    if len(lines) < 2:
        raise UserError(f"{name}: fewer than 2 rows to compare")
    panels, shown = figure_data.by_data_set(lines), [cell for cell, _ in lines]
    look, words = _Look(table, shown), []
    canvas, axes = _panels(panels, "block", "accuracy of each block (%)", look.keys())
    for (data_set, inside), panel in zip(panels.items(), axes, strict=True):
        for cell, blocks in inside:
            numbers, means, lows, highs = zip(*blocks, strict=True)
            panel.fill_between(numbers, lows, highs, color=look.colour(cell), alpha=0.15, linewidth=0)
            panel.plot(numbers, means, look.marker(cell), color=look.colour(cell), linestyle=look.dash(cell))
        _whole_numbers(panel)
        ranked = sorted(inside, key=lambda line: line[1][-1].mean)
        ends = [
            f"{look.title(cell)}, from {blocks[0].mean:.2f} % at block 1 to {blocks[-1].mean:.2f} % at {len(blocks)}"
            for cell, blocks in ([ranked[-1], ranked[0]] if len(ranked) > 1 else ranked)
        ]
        words.append(f"{data_set}: the last block is best in {' and worst in '.join(ends)}.")
    look.legend(canvas, lines=True)
    n = _seeds(cell.of for cell in shown)
    start = f"Test accuracy of each block by itself, {n}, and bands from the lowest seed to the highest."
    return Figure(f"depth-{name}", f"Accuracy by depth: {table.title}", " ".join([start, *words])), canvas


def draw_time(name: str, table: targets.Table, members: list[Cell]) -> Drawn:
    """Test accuracy against seconds of training, a point a run, for data sets with rows of both kinds."""
    panels = {
        data_set: lines
        for data_set, lines in figure_data.by_data_set(figure_data.of_whole(members, figure_data.timed)).items()
        if {cell.of.forward for cell, _ in lines} == {True, False}
    }
    if not panels:
        raise UserError(f"{name}: no backprop twin beside Forward-Forward")
    shown = [cell for lines in panels.values() for cell, _ in lines]
    look, words = _Look(table, shown), []
    canvas, axes = _panels(panels, "training (s)", "test accuracy (%)", look.keys())
    for (data_set, lines), panel in zip(panels.items(), axes, strict=True):
        for cell, points in lines:
            x, y = zip(*points, strict=True)
            panel.plot(x, y, look.marker(cell), color=look.colour(cell), markerfacecolor=look.face(cell))
        panel.set_xlim(left=0)
        best = []
        for forward in (False, True):
            cell = max((cell for cell, _ in lines if cell.of.forward is forward), key=lambda cell: cell.of.mean)
            seconds = fmean(one.seconds for one in dict(lines)[cell])
            best.append(f"{look.title(cell)} {cell.of.mean:.2f} % after {seconds:.0f} s")
        words.append(f"{data_set}: the best of each, by their means, {' and '.join(best)}.")
    look.legend(canvas, lines=False)
    hollow, filled = (sum(len(cell.of.seeds) for cell in shown if cell.of.forward is kind) for kind in (False, True))
    start = (
        "Test accuracy against seconds of training, a point a run: "
        f"backprop (hollow squares, n = {hollow}) and Forward-Forward (filled, n = {filled})."
    )
    return Figure(f"time-{name}", f"Accuracy and time: {table.title}", " ".join([start, *words])), canvas


class _Look:
    """How the cells of a table are told apart: the row by colour, the column by marker and dashes.

    Where a panel has one column, as of a data set, markers and dashes tell the rows apart too. Backprop is hollow.
    """

    def __init__(self, table: targets.Table, shown: Sequence[Cell]) -> None:
        self.rows, self.shown = list(table.rows), shown
        forward = [cell for cell in shown if cell.of.forward]
        panels: dict[str, set[str]] = {}
        for cell in forward:
            panels.setdefault(cell.of.experiment.data.name, set()).add(cell.column)
        several = any(len(columns) > 1 for columns in panels.values())
        self.columns = list(dict.fromkeys(cell.column for cell in forward)) if several else []

    def title(self, cell: Cell) -> str:
        return f"{cell.row} {cell.column}" if cell.column in self.columns else cell.row

    def colour(self, cell: Cell) -> str:
        return COLOURS[self.rows.index(cell.row) % len(COLOURS)]

    def face(self, cell: Cell) -> str:
        return self.colour(cell) if cell.of.forward else "none"

    def marker(self, cell: Cell) -> str:
        return MARKERS[self._place(cell)] if cell.of.forward else "s"

    def dash(self, cell: Cell) -> Any:
        return DASHES[self._place(cell)]

    def _place(self, cell: Cell) -> int:
        return (self.columns or self.rows).index(cell.column if self.columns else cell.row) % len(MARKERS)

    def keys(self) -> int:
        """How many entries the legend has."""
        return len({cell.row for cell in self.shown}) + len(self.columns)

    def legend(self, canvas: "Canvas", lines: bool) -> None:
        """Below the panels: the rows, and the columns where they are told apart. lines: whether dashes are shown."""
        from matplotlib.lines import Line2D

        handles = []
        for row, cell in {cell.row: cell for cell in self.shown}.items():
            alone = not self.columns and cell.of.forward
            handle = Line2D([], [], color=self.colour(cell), markerfacecolor=self.face(cell), label=row)
            handle.set_marker(self.marker(cell) if alone or not cell.of.forward else "o")
            handle.set_linestyle(self.dash(cell) if alone and lines else "none")
            handles.append(handle)
        for i, column in enumerate(self.columns):
            handle = Line2D([], [], color="#444444", marker=MARKERS[i % len(MARKERS)], label=column)
            handle.set_linestyle(DASHES[i % len(DASHES)] if lines else "none")
            handles.append(handle)
        canvas.legend(handles=handles, loc="outside lower center", ncols=KEYS, handletextpad=0.6, columnspacing=1.5)


def _panels(names: Iterable[str], across: str, up: str, keys: int) -> "tuple[Canvas, list[Axes]]":
    """A canvas with a panel for each name, two in a line, and room for a legend; a single one has no title."""
    names = list(names)
    lines, columns = -(-len(names) // 2), min(len(names), 2)
    more = max(-(-keys // KEYS) - 4, 0)  # lines of a legend that would take the panels' room
    canvas = _canvas((3.2 if lines == 1 else 1 + 2.1 * lines) + 0.17 * more)
    axes = []
    for i, name in enumerate(names):
        panel = canvas.add_subplot(lines, columns, i + 1, xlabel=across, ylabel=up if i % 2 == 0 else "")
        panel.set_title(name if len(names) > 1 else "")
        axes.append(panel)
    return canvas, axes


def _canvas(height: float) -> "Canvas":
    from matplotlib.figure import Figure as Canvas

    return Canvas((WIDTH, height), layout="constrained")


def _whole_numbers(panel: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _seeds(rows: Iterable[Row]) -> str:
    """means over n = 3 seeds, or from the smallest n to the largest."""
    counts = [len(row.seeds) for row in rows]
    low, high = min(counts), max(counts)
    if high == 1:
        return "of one seed (n = 1)"
    return f"means over n = {low} seeds" if low == high else f"means over n = {low} to {high} seeds"


# Figures of rows


CURVES = {
    "loss": ("Training loss", "Training loss of each block"),
    "separation": (
        "Separation",
        "Separation of each block (goodness under the true label less that under a wrong one)",
    ),
}
"""Title, and what the words begin with, of what a history has for each block."""


def draw_curves(row: Row, what: str) -> Drawn:
    """The loss or the separation of each block over the epochs."""
    from matplotlib import colormaps

    figure_data.whole_runs(row)  # whose histories these are
    histories = [figure_data.read_history(row.place.run(row.name, seed) / "history.csv") for seed in row.seeds]
    lines = figure_data.curves(histories, what)
    if not lines:
        raise UserError(f"{row.name}: no {what} of a block in the histories")
    canvas = _canvas(3.0)
    up = "training loss (nats)" if what == "loss" else "separation (goodness, true − wrong)"
    panel = canvas.add_subplot(xlabel="epoch", ylabel=up)
    shades = colormaps["viridis"]  # blocks have an order, and so has this map, also in grey and to the colour-blind
    for place, (block, points) in enumerate(lines.items()):  # its lightest third is hard to see on white
        x, y = zip(*points, strict=True)
        colour = shades(0.68 * (1 - place / max(len(lines) - 1, 1)))
        panel.plot(x, y, color=colour, marker="." if len(x) < 40 else "", label=f"{block}")
    _whole_numbers(panel)
    if what == "loss" and all(value > 0 for points in lines.values() for _, value in points):
        _logarithmic(panel)
    canvas.legend(loc="outside right upper", title="block", title_fontsize=8)
    ends = [
        f"block {block} from {lines[block][0][1]:.3g} to {lines[block][-1][1]:.3g}"
        for block in sorted({min(lines), max(lines)})  # the first and the last, which may be one
    ]
    title, start = CURVES[what]
    epochs = max(int(epoch) for points in lines.values() for epoch, _ in points)
    words = f"{start}, {_seeds([row])}, over {epochs} epochs: {' and '.join(ends)}."
    return Figure(f"{what}-{row.name}", f"{title} by block: {row.experiment.title}", words), canvas


def _logarithmic(panel: "Axes") -> None:
    """Plain digits: powers of ten, with what lies between where there are few."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_yscale("log")
    low, high = panel.get_ylim()
    if high < 10 * low:
        between: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7)
    elif high < 30 * low:
        between = (1, 2, 5)
    elif high < 3000 * low:
        between = (1, 3)
    else:
        between = (1,)
    panel.yaxis.set_major_locator(LogLocator(subs=between))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def draw_goodness(row: Row, tested: Callable[[], Tested]) -> Drawn:
    """Histograms of the last block's goodness under the true label and under the wrong ones."""
    import numpy

    goodness, _, test = tested()
    right, wrong = figure_data.by_label(goodness[:, :, -1], test.labels)
    low, high = min(right.min(), wrong.min()), max(numpy.quantile(part, SHOWN) for part in (right, wrong))
    edges = numpy.linspace(low, high, 51)
    if edges[0] == edges[-1]:
        raise UserError(f"{row.name}: all goodness is the same")
    canvas = _canvas(2.8)
    panel = canvas.add_subplot(xlabel="goodness of the last block", ylabel="density")
    for values, colour, dash, label in ((wrong, ORANGE, DASHES[1], "wrong labels"), (right, BLUE, "-", "true label")):
        heights = figure_data.density(values, edges)
        panel.stairs(heights, edges, fill=True, color=colour, alpha=0.25)
        panel.stairs(heights, edges, color=colour, linestyle=dash, label=label, linewidth=1.4)
    panel.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    panel.legend(loc="upper right")
    highest = int((goodness[:, :, -1].argmax(1) == test.labels).sum())
    words = (
        f"Goodness of the last block for the n = {len(right)} test images of seed {row.seeds[0]}, as densities: under "
        f"the true label {right.mean():.3g} on average, under the wrong ones {wrong.mean():.3g}; the true label has an "
        f"image's highest in {highest}. At most {100 * (1 - SHOWN):.1f} % of each lie beyond the axis."
    )
    return Figure(f"goodness-{row.name}", f"Goodness by label: {row.experiment.title}", words), canvas


def draw_confusion(row: Row, tested: Callable[[], Tested]) -> Drawn:
    """What the images of each label were predicted to be, counts printed and shares shaded."""
    classes, labels = row.experiment.classes, row.labels
    _, predicted, test = tested()
    counts = figure_data.confusion(test.labels, predicted, classes)
    canvas = _canvas(4.6)
    panel = canvas.add_subplot(xlabel="predicted label", ylabel="true label", aspect="equal")
    shares = [[count / max(sum(line), 1) for count in line] for line in counts]
    panel.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolor="white", linewidth=0.5)
    for y, line in enumerate(counts):
        for x, count in enumerate(line):
            if count:
                ink = "white" if shares[y][x] > 0.5 else "black"
                panel.text(x + 0.5, y + 0.5, str(count), color=ink, ha="center", va="center", fontsize=8)
    panel.invert_yaxis()
    places = [label + 0.5 for label in range(classes)]
    panel.set_xticks(places, labels, rotation=0 if labels[0] == "0" else 45)
    panel.set_yticks(places, labels)
    panel.grid(False)
    panel.tick_params(length=0)
    wrong = [(count, y, x) for y, line in enumerate(counts) for x, count in enumerate(line) if x != y]
    count, y, x = max(wrong, key=lambda one: one[0])
    right, every = sum(counts[i][i] for i in range(classes)), sum(map(sum, counts))
    words = (
        f"Test images by true and predicted label, seed {row.seeds[0]} (n = {every} images, no number for none): "
        f"{right} lie on the diagonal. "
        + (f"The commonest error takes {labels[y]} for {labels[x]}, {count} times." if count else "There is no error.")
    )
    return Figure(f"confusion-{row.name}", f"Confusions: {row.experiment.title}", words), canvas


def draw_samples(row: Row, tested: Callable[[], Tested]) -> Drawn:
    """The first test images, each with its goodness under every label."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    (goodness, predictions, test), labels = tested(), row.labels
    n = min(SAMPLES, len(test.labels))
    high, lines = 94, -(-n // 2)  # of a line, in points, as all lengths here; an image has 64
    canvas = _canvas((high * lines + 42) / 72)
    canvas.set_layout_engine("none")

    def axes(left: float, top: float, width: float, height: float) -> "Axes":
        whole, full = canvas.get_size_inches() * 72
        return canvas.add_axes((left / whole, 1 - (top + height) / full, width / whole, height / full))

    for i in range(n):
        left, top = 8 + 180 * (i % 2), 18 + high * (i // 2)
        true, predicted = int(test.labels[i]), int(predictions[i])
        picture = axes(left, top, 64, 64)
        _draw_image(picture, test.images[i], 64 / row.experiment.shape[1])
        taken = "right" if true == predicted else f"taken for {labels[predicted]}"
        picture.set_title(f"{labels[true]}, {taken}", fontsize=8, pad=4)
        bars = axes(left + 108, top, 60, 72)
        values = goodness[i, :, -1].tolist()
        bars.barh(range(len(values)), values, color=[BLUE if label == true else GREY for label in range(len(values))])
        bars.plot(values[predicted], predicted, "<", color=ORANGE, markersize=5, clip_on=False)
        bars.set_yticks(range(len(values)), labels, fontsize=6.5)
        bars.set(xlim=(0, max(values) * 1.05 or 1), ylim=(len(values) - 0.4, -0.6))
        bars.locator_params("x", nbins=3)
        bars.tick_params(labelsize=6.5, length=2, pad=1.5)
        bars.grid(False)
        bars.set_xlabel("goodness" if i >= n - 2 else "", fontsize=8, labelpad=1)
    handles = [
        Patch(color=BLUE, label="true label"),
        Patch(color=GREY, label="other labels"),
        Line2D([], [], color=ORANGE, marker="<", linestyle="none", label="predicted"),
    ]
    canvas.legend(handles=handles, loc="lower center", ncols=3)
    right = int((predictions[:n] == test.labels[:n]).sum())
    words = (
        f"The first n = {n} test images, each with the last block's goodness under every label, seed {row.seeds[0]}: "
        f"{right} of {n} are predicted right."
    )
    return Figure(f"samples-{row.name}", f"Test images and their goodness: {row.experiment.title}", words), canvas


def _draw_image(panel: "Axes", image: "NDArray[Any]", pixel: float) -> None:
    """Draw runs of pixels as lines, a little longer and wider than they are, so that no gap shows between them."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path as Shape

    _, height, width = image.shape
    (background, _), *rest = figure_data.strokes(image)
    panel.add_patch(Rectangle((0, 0), width, height, color=background, linewidth=0))
    for colour, runs in rest:
        points = [(x, y + 0.5) for y, start, stop in runs for x in (start - 0.03, stop + 0.03)]
        shape = Shape(points, [Shape.MOVETO, Shape.LINETO] * len(runs))
        shape.should_simplify = False
        line = PathPatch(shape, edgecolor=colour, facecolor="none", linewidth=1.06 * pixel, capstyle="butt")
        panel.add_patch(line)
    panel.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    panel.axis("off")
