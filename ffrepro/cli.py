"""Typer commands: their arguments, what they print, their exit codes.

Starts in a fraction of a second: torch, DVC and Pydantic are imported where used."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ffrepro import __version__, errors
from ffrepro import portable as asked_portable

app = typer.Typer(
    help="Reproduce The Trifecta (arXiv 2311.18130): Forward-Forward training of deep networks, and the proof of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
params_app = typer.Typer(help="Look at params.yaml: check it, show a row, print its schema.", no_args_is_help=True)
app.add_typer(params_app, name="params")


Device = Literal["auto", "cpu", "cuda"]
MirrorOption = Annotated[
    str | None,
    typer.Option(help="Folder or base URL in torchvision's layout.", envvar="FFREPRO_MIRROR", metavar="DIR|URL"),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Ask no official source.", envvar="FFREPRO_OFFLINE")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.", envvar="FFREPRO_DEVICE")]
FastOption = Annotated[
    bool,
    typer.Option("--fast", help="CUDA kernels picked by timing: quicker, not repeatable.", envvar="FFREPRO_FAST"),
]
NameArgument = Annotated[str, typer.Argument(help="A row of params.yaml.", metavar="NAME")]
RowOrTable = Annotated[str, typer.Argument(help="A row of params.yaml, or a table of paper.yaml.", metavar="NAME")]


def _settings(
    device: Device,
    mirror: str | None,
    offline: bool,
    fast: bool = False,
    portable: bool = False,
    keep: bool = False,
) -> dict[str, str]:
    if mirror and "://" not in mirror:
        mirror = str(Path(mirror).resolve())  # stages run in the project's root
    switches = {
        "FFREPRO_OFFLINE": offline,
        "FFREPRO_FAST": fast,
        "FFREPRO_PORTABLE": portable or asked_portable(),
        "FFREPRO_KEEP": keep,
    }
    settings = {"FFREPRO_DEVICE": device, **{name: "1" if on else "" for name, on in switches.items()}}
    if downloads := os.environ.get("FFREPRO_DATA"):
        settings["FFREPRO_DATA"] = str(Path(downloads).resolve())
    return settings | ({"FFREPRO_MIRROR": mirror} if mirror else {})


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ffrepro {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def reproduce(
    name: RowOrTable,
    device: DeviceOption = "auto",
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
    fast: FastOption = False,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="CPU: one thread, AVX2, for the same bits elsewhere.", envvar="FFREPRO_PORTABLE"
        ),
    ] = False,
    keep_states: Annotated[
        bool, typer.Option("--keep-states", help="Keep every epoch's state, for `audit`.", envvar="FFREPRO_KEEP")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as one JSON object, for a table a list of them.")
    ] = False,
) -> None:
    """Run a row's part of the DVC graph and print its verdict; of a table, all its rows, and its claims.

    Exit code: 0 reproduced, 2 bad input, 3 not reproduced, 4 inconclusive, 5 this machine cannot. Of a table: 3 where
    a row is not reproduced, else 4 where one is inconclusive, else 0.
    """
    import json

    from ffrepro import config, jobs, layout, pipeline, record, report, tables, targets, verdict

    project = layout.find()
    params = config.load(project.params)
    rows = targets.rows_of(project.paper, params, [name])
    whole = name not in params.experiments
    pipeline.check_graph(params, project)
    settings = _settings(device, mirror, offline, fast, portable=portable, keep=keep_states)
    trained = jobs.taken_over(project, params, rows, settings)
    for row in rows:
        if config.experiment(params, row).requires == "cuda" and row not in trained:
            from ffrepro import devices

            devices.require(params, row, device, measure=True)
    pipeline.repro(project, [f"verdict@{row}" for row in rows], settings)
    for row in rows if keep_states else ():
        if line := pipeline.without_states(project, row, config.experiment(params, row)):
            print(f"ffrepro: {line}", file=sys.stderr)
    results = [record.read_json(project.verdict(row)) for row in rows]
    if as_json:
        print(json.dumps(results if whole else results[0]))
    else:
        print(tables.of_table(project, name) if whole else report.sentence(results[0]))
    try:
        tables.write_all(project)
    except errors.UserError as error:  # by another row's file: this one's verdict stands
        print(f"ffrepro: {error}; until then no tables are written", file=sys.stderr)
    raise typer.Exit(verdict.worst({verdict.EXIT_CODES[result["verdict"]] for result in results}))


@app.command()
def submit(
    names: Annotated[
        list[str], typer.Argument(help="Rows of params.yaml, or tables of paper.yaml.", metavar="NAME...")
    ],
    to_slurm: Annotated[bool, typer.Option("--slurm", help="As a job array of Slurm's, by cluster.yaml.")] = False,
    local: Annotated[
        int | None, typer.Option(min=1, max=1024, help="On this machine, so many at once; on CUDA one a GPU.")
    ] = None,
    device: DeviceOption = "auto",
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
    fast: FastOption = False,
) -> None:
    """Train and evaluate every seed of the rows as a job of its own; `reproduce` then only reports.

    What is done, or submitted already, is left alone; what was stopped goes on from its checkpoint. Exit code: 0
    submitted, or with --local done; 1 a run failed, 2 bad input, 5 this machine cannot.
    """
    from ffrepro import config, jobs, layout, slurm, targets

    if to_slurm == (local is not None):
        raise errors.UserError("submit: give one of --slurm and --local N")
    project = layout.find()
    params = config.load(project.params)
    runs = jobs.runs_of(params, targets.rows_of(project.paper, params, names))
    settings = _settings(device, mirror, offline, fast)
    if local is None:
        made = slurm.submit(project, params, runs, slurm.read(project.cluster), settings)
        print(f"{len(made)} of {len(runs)} runs submitted; ffrepro status shows them")
        return
    states = jobs.local(project, params, runs, local, settings)
    failed = [state for state in states if state.word == "failed"]
    for state in failed:
        print(f"ffrepro: {state.run}: {state.of}", file=sys.stderr)
    print(f"{sum(state.word == 'done' for state in states)} of {len(states)} runs done")
    raise typer.Exit(1 if failed else 0)


@app.command()
def status(
    names: Annotated[
        list[str] | None, typer.Argument(help="Rows or tables; default: what was submitted.", metavar="[NAME...]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """Show every run: done (accuracy), running (epoch, loss, time left), queued, failed (its last line)."""
    import json

    from ffrepro import config, jobs, layout, targets

    project = layout.find()
    params = config.load(project.params)
    there = [run for run in jobs.submitted(project) if run.name in params.experiments]
    runs = jobs.runs_of(params, targets.rows_of(project.paper, params, names)) if names else there
    states = list(jobs.states(project, params, runs))
    if as_json:
        print(json.dumps([{"run": str(state.run), "state": state.word, "of": state.of} for state in states]))
        return
    for state in states:
        print(f"{state.run!s:<32} {state.word:<14} {state.of}".rstrip())
    counts = [f"{sum(s.word == word for s in states)} {word}" for word in dict.fromkeys(s.word for s in states)]
    print(
        f"{len(states)} runs: {', '.join(counts)}" if states else "nothing was submitted; ffrepro submit NAME... does"
    )


@app.command()
def explain(
    address: Annotated[str, typer.Argument(help="TABLE.ROW.COLUMN, or a row.", metavar="TABLE.ROW.COLUMN")],
) -> None:
    """Say where a number of a table comes from: its row, seeds, records, commit and parameters."""
    from ffrepro import layout, tables

    print(tables.explain(layout.find(), address))


@app.command("list")
def list_rows(
    table: Annotated[
        str | None, typer.Option(help="The rows of this table of paper.yaml; all: every row.", metavar="TABLE")
    ] = None,
) -> None:
    """List the rows: data set, network, device, measured cost, published and measured accuracy.

    Without --table, those that are not `like` another row.
    """
    from ffrepro import layout, report

    print(report.overview(layout.find(), table))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A data set.", metavar="NAME")],
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
) -> None:
    """Bring a data set's canonical files, verified: already here, from a mirror, or from the official source."""
    from ffrepro import data, layout, sources
    from ffrepro.progress import DownloadProgress, say

    project = layout.find()
    errors.require_known(f"no data set {name!r}", name, data.DATASETS)
    with DownloadProgress() as progress:
        sources.fetch(name, project.downloads, mirror=mirror, offline=offline, report=progress.report, say=say)
    files = len(data.DATASETS[name].contents)
    state = f"{files} files verified" if files else "embedded, nothing to fetch"
    print(f"{name}: {state}; licence: {data.DATASETS[name].licence}")


@app.command()
def evaluate(
    name: NameArgument,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; can be repeated.", min=0)] = None,
    runs: Annotated[str, typer.Option(help="Folder of the runs: runs, or results for the committed ones.")] = "runs",
    weights: Annotated[
        Literal["own", "released"],
        typer.Option(help="The run's own, or those that results holds in float16: `released`."),
    ] = "own",
    precision: Annotated[
        str | None, typer.Option(help="Another precision than the row's, or than a CPU's for float16.")
    ] = None,
    images: Annotated[
        Literal["test", "training", "held-out"],
        typer.Option(help="The test split's, those trained on, or those of the training split held out."),
    ] = "test",
    first: Annotated[int | None, typer.Option(help="Only so many of them.", min=1, metavar="N")] = None,
    restated: Annotated[
        bool, typer.Option("--restated", help="Batch norm's statistics computed anew, over an epoch of training.")
    ] = False,
    device: DeviceOption = "auto",
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
) -> None:
    """Evaluate trained weights again, on the test split by default, and print each block's accuracy; no run is changed.

    Of all test images, released weights' predictions are compared with the run's. Images of the training split come in
    a random order, always the same: the first N are a fair sample. With --restated the weights are the same and the
    statistics of batch norm are those of the weights alone, where a training leaves a moving average of its last steps.

    On a CPU, which takes days for float16, a row in float16 is evaluated in bfloat16 where the CPU has that, else in
    float32. Either way float32 decides what counts.
    """
    from ffrepro import again, layout, pipeline

    released = weights == "released"
    project = layout.find("results" if released else runs)
    settings = _settings(device, mirror, offline)
    asked = again.Asked(name, seed, images, first, precision, released, restated)
    for line in again.evaluate(project, asked, device, lambda data: pipeline.prepare(project, data, settings)):
        print(line, flush=True)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A run's folder, its record.json, or a row's folder with its seeds.")],
    device: DeviceOption = "auto",
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
) -> None:
    """Check what a run's files prove, from weights, labels and goodness, and print the ladder of proof.

    Exit code: 0 all that can be told here holds, 2 a link is broken, 3 not reproduced, 4 inconclusive.
    """
    from ffrepro import config, devices, layout, pipeline, proof

    project, settings = layout.find(), _settings(device, mirror, offline)
    chosen = devices.choose(device)
    with devices.faults("verify", chosen):
        code = proof.report(
            path, project, config.load(project.params), lambda row: pipeline.prepared(project, row, settings), chosen
        )
    raise typer.Exit(code)


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(help="A run's folder, or its record.json.", metavar="RUN")],
    epochs: Annotated[int, typer.Option(min=1, help="How many epochs to draw and train again.")] = 2,
    draw: Annotated[int | None, typer.Option(help="Repeat an audit's draw: the seed it was made with.")] = None,
    states: Annotated[Path | None, typer.Option(help="Folder of the kept states; default: beside checkpoints.")] = None,
    device: DeviceOption = "auto",
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
) -> None:
    """Train randomly drawn epochs again from the states that were kept, and compare with the record's chain.

    Exit code: 0 every drawn epoch follows, 2 bad input, 3 one does not, 4 one cannot be told here.
    """
    from ffrepro import audit, config, devices, evidence, layout, pipeline

    project = layout.find()
    run, chosen = evidence.read(evidence.run_of(path)), devices.choose(device)
    if run.facts["environment"]["device"] == "cuda" and devices.stand_in(run.row, chosen) != run.row.training.precision:
        raise errors.MachineError("audit: this run trained in float16, for which a CPU takes days; audit it on a GPU")
    splits = pipeline.prepared(project, run.row, _settings(device, mirror, offline))
    if splits is None:
        raise errors.UserError(
            f"{run.row.data.name}: the data cannot be had, and an audit trains; ffrepro fetch says why"
        )
    kept = project.checkpoint(run.facts["experiment"], run.facts["seed"]).with_suffix("")
    folder = audit.folder(states) if states else kept
    with devices.faults("audit", chosen):
        code = audit.report(run, config.load(project.params), splits[0], folder, epochs, draw, chosen)
    raise typer.Exit(code)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A run's folder, its record.json, or a row's folder with its seeds.")],
    to: Annotated[Path, typer.Option(help="A new folder.", metavar="FOLDER")],
) -> None:
    """Write runs as an RO-Crate (Process Run Crate) with a codecheck.yml to fill in; broken records are refused."""
    from ffrepro import crate, evidence

    crate.export([evidence.read(folder) for folder in evidence.runs_of(path)], to)
    print(f"{to}: ro-crate-metadata.json and codecheck.yml written")


@app.command("report")
def report_tables() -> None:
    """Write tables, figures and the page report/index.html from what is there; the rest says "not run"."""
    from ffrepro import layout, page, tables

    project = layout.find()
    print(tables.write_all(project), end="")
    print(f"page: {page.write(project).relative_to(project.root)}")


@app.command()
def reference(
    name: NameArgument,
    machine: Annotated[str, typer.Option(help='The machine\'s class, e.g. "2 cores AMD EPYC with AVX-512, no GPU".')],
    device: DeviceOption = "auto",
    mirror: MirrorOption = None,
    offline: OfflineOption = False,
) -> None:
    """Train a row's reference seeds and write their accuracies to results/, for others to compare with."""
    from ffrepro import config, layout, pipeline, report

    project = layout.find("results")
    row = config.experiment(config.load(project.params), name)
    report.check_machine(machine)
    pipeline.train_references(project, name, row, _settings(device, mirror, offline))
    value = report.write_reference(name, row, project, machine)
    print(f"{name}: {report.percent(value)}, {value['seconds']:.0f} s a seed")


@app.command()
def doctor(device: DeviceOption = "auto") -> None:
    """Say what this machine is, what repeats bit for bit on it, and how long each row would take.

    Exit code: 0 all checks are good, 5 one is not. A row that needs a CUDA GPU and finds none is told of, and no fault.
    """
    from ffrepro import config, devices, doctor, layout

    project = layout.find()
    chosen = devices.choose(device)
    with devices.faults("doctor", chosen):
        sound = doctor.report(config.load(project.params), project, chosen)
    if not sound:
        raise typer.Exit(5)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A row of params.yaml.", metavar="NAME")] = "cifar10",
    blocks: Annotated[str | None, typer.Option(help='Other blocks than the row\'s, e.g. "128P 128 256P".')] = None,
    batch: Annotated[int | None, typer.Option(help="Another batch size than the row's.")] = None,
    precision: Annotated[str | None, typer.Option(help="Another precision than the row's.")] = None,
    device: DeviceOption = "auto",
    fast: FastOption = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which medians are taken.")] = 5,
    steps: Annotated[int, typer.Option(min=2, help="Training steps, or evaluations, a measurement.")] = 4,
    growth: Annotated[bool, typer.Option(help="Also how cost grows with batch, width, blocks, seeds.")] = True,
    machine: Annotated[str, typer.Option(help="The machine's class, for the table.")] = "machine class not given",
    output: Annotated[Path | None, typer.Option(help="FOLDER/NAME: write NAME.json and NAME.md there.")] = None,
) -> None:
    """Measure what the row costs here: plain loop and engine side by side, floor, peak memory, growth."""
    import shlex

    from ffrepro import bench, config, devices, layout, report
    from ffrepro.progress import say

    report.check_machine(machine)
    row = config.experiment(config.load(layout.find().params), name)
    values = {"network.blocks": blocks, "training.batch": batch, "training.precision": precision}
    row = config.changed(row, values, "bench")
    if output and (output.name in ("", "..") or not str(output).isprintable()):
        raise errors.UserError(
            f"--output: given {str(output)!r}; allowed: FOLDER/NAME, for NAME.json and NAME.md there"
        )
    result = bench.run(
        row,
        devices.choose(device).type,
        machine,
        shlex.join(["ffrepro", *sys.argv[1:]]),
        rounds=rounds,
        steps=steps,
        fast=fast,
        growth=growth,
        say=say,
    )
    print(bench.table(result), end="")
    if output:
        bench.write(result, output)


@params_app.command()
def check() -> None:
    """Check the whole of params.yaml, paper.yaml, deviations.yaml and graph.yaml; nothing is run."""
    from ffrepro import claims, config, deviations, layout, pipeline, targets

    project = layout.find()
    params = config.load(project.params)
    pipeline.check_graph(params, project)
    published = targets.read_paper(project.paper)
    targets.read_tables(project.paper, params.experiments)
    for name in published:
        errors.require_known(f"paper.yaml: targets.{name}: no such row in params.yaml", name, params.experiments)
    claims.check(targets.read_claims(project.paper), params.experiments)
    deviations.check(deviations.read(project.deviations), published)
    seeds = sum(len(row.seeds) for row in params.experiments.values())
    print(f"params.yaml: {len(params.experiments)} rows, {seeds} runs: sound")


@params_app.command()
def show(name: NameArgument) -> None:
    """Print a row with its defaults filled in, as JSON."""
    from ffrepro import config, layout

    print(config.canonical(config.experiment(config.load(layout.find().params), name)), end="")


@params_app.command()
def schema() -> None:
    """Print the JSON Schema of params.yaml, for editors; params.schema.json is its committed copy."""
    from ffrepro import config

    print(config.json_schema(), end="")


@params_app.command()
def handbook() -> None:
    """Print docs/parameters.md: each field's meaning, what is allowed, and its default."""
    from ffrepro import config, layout
    from ffrepro import handbook as page

    project = layout.find()
    config.load(project.params)
    print(page.markdown(project.params), end="")


@params_app.command()
def graph() -> None:
    """Write graph.yaml, the rows' seeds as DVC's stages, from params.yaml."""
    from ffrepro import config, layout, pipeline

    project = layout.find()
    pipeline.write_graph(config.load(project.params), project)
    print("graph.yaml written")


def main() -> None:
    """The command `ffrepro`: a user's mistake is one line on stderr and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one that has no sign for ± prints another
            stream.reconfigure(errors="replace")
    try:
        sys.exit(errors.run(lambda: app(prog_name="ffrepro")))
    finally:
        errors.end_undisturbed()
