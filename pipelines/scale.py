"""How the cost of runs grows with their number: `python -m pipelines.scale 1 10 100 1000`.

Makes projects of so many run folders, up to 20 seeds a row, all rows in one table, by copying one real run under other
names, and measures what is done once for all of them: `ffrepro status`, entering them into dvc.lock, the summaries and
verdicts of their rows, the tables, and `ffrepro report`, which also draws figures; with --slurm also how long
submitting so many jobs takes, which are held and cancelled.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ffrepro import config, errors, jobs, layout, pipeline, record, report, slurm
from ffrepro.errors import UserError
from ffrepro.layout import Layout
from ffrepro.progress import say
from ffrepro.targets import read_targets, target_of
from ffrepro.verdict import verdict
from pipelines import run as job

SEEDS = 20
COPIED = ("deviations.yaml", "dvc.yaml", ".dvcignore", "ffrepro", "pipelines", ".dvc")
COLUMNS = {
    "runs": "{}",
    "submit (ms a run)": "{:.1f}",
    "status (s)": "{:.1f}",
    "into dvc.lock (s)": "{:.1f}",
    "summaries and verdicts (s)": "{:.1f}",
    "tables (s)": "{:.1f}",
    "ffrepro report (s)": "{:.1f}",
    "files a run": "{}",
    "KiB a run": "{:.0f}",
}


def project_of(runs: int, source: Layout, root: Path) -> tuple[Layout, list[jobs.Run]]:
    """A project with so many runs of a tiny row on the digits: made once, and copied under the other names."""
    for name in COPIED:
        path = source.root / name
        if path.is_dir():
            shutil.copytree(path, root / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
        else:
            shutil.copy(path, root)
    (root / "results").mkdir()
    shutil.copy(source.reference, root / "results")
    given = config.read_yaml(source.params)
    given["experiments"]["digits"] |= {
        "network": {"blocks": "4 8P"},
        "training": given["experiments"]["digits"]["training"] | {"epochs": 1},
    }
    names = [f"scale-{i}" for i in range(-(-runs // SEEDS))]
    for name in names:
        given["experiments"][name] = {"like": "digits", "seeds": list(range(10, 10 + min(SEEDS, runs)))}
    record.write_json(given, root / "params.yaml")  # JSON is YAML
    paper = config.read_yaml(source.paper)
    paper["tables"]["scale"] = {"title": "Copies of one run", "rows": {name: {"whole": name} for name in names}}
    record.write_json(paper, root / "paper.yaml")
    project = Layout(root)
    params = config.load(project.params)
    pipeline.write_graph(params, project)
    made = jobs.runs_of(params, names)[:runs]
    jobs.prepare(project, params, made, {})
    first = made[0]
    subprocess.run([sys.executable, "-m", job.__name__, first.name, str(first.seed)], cwd=root, check=True)
    facts = record.read_json(project.run(*first) / "record.json")
    facts.pop("seal")
    for run in made[1:]:
        shutil.copytree(project.run(*first), project.run(*run))
        record.write_sealed({**facts, "experiment": run.name, "seed": run.seed}, project.run(*run) / "record.json")
    for run in made:
        jobs.write_down(project, run, ended=True)
    return project, made


def seconds(what: Callable[[], object]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


def command(project: Layout, *arguments: str) -> Callable[[], object]:
    def call() -> None:
        subprocess.run([sys.executable, "-m", *arguments], cwd=project.root, check=True, stdout=subprocess.DEVNULL)

    return call


def summaries(project: Layout, params: config.Params, names: list[str]) -> None:
    """What the stages report and verdict do, of all rows in one process; DVC starts two processes a row."""
    targets = read_targets(project.paper, project.reference)
    for name in names:
        row = params.experiments[name]
        summary = report.summarise(name, row, project, target_of(targets, name, row))
        record.write_json(summary, project.summary(name))
        record.write_json(verdict(summary, row.verdict), project.verdict(name))


def submission(project: Layout, runs: list[jobs.Run]) -> float:
    """Seconds a run for an array of held jobs; they are cancelled."""
    import submitit

    executor = submitit.SlurmExecutor(project.slurm)
    executor.update_parameters(time=1, mem="1G", additional_parameters={"hold": True})
    made: list[str] = []
    trainings = [slurm.Training(project.root, run, [], {}) for run in runs]
    spent = seconds(lambda: made.extend(slurm.submitted(executor, trainings)))
    subprocess.run(["scancel", *{one.partition("_")[0] for one in made}], check=True)
    return spent / len(runs)


def measure(runs: int, source: Layout, with_slurm: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        project, made = project_of(runs, source, Path(folder))
        params, names = config.load(project.params), list(dict.fromkeys(run.name for run in made))
        files = [path for path in project.run(*made[0]).iterdir() if path.is_file()]
        spent = {
            "submit (ms a run)": 1000 * submission(project, made) if with_slurm else None,
            "status (s)": seconds(command(project, "ffrepro", "status")),
            "into dvc.lock (s)": seconds(lambda: jobs.note(project, params, made)),
        }
        whole = [name for name in names if len(params.experiments[name].seeds) == sum(r.name == name for r in made)]
        spent["summaries and verdicts (s)"] = seconds(lambda: summaries(project, params, whole))
        spent["tables (s)"] = seconds(command(project, "pipelines.table"))
        spent["ffrepro report (s)"] = seconds(command(project, "ffrepro", "report"))
        size = sum(path.stat().st_size for path in files)
        return {"runs": runs, **spent, "files a run": len(files), "KiB a run": size / 1024}


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=int, nargs="+")
    parser.add_argument("--slurm", action="store_true", help="also submit, to the cluster's default partition")
    parser.add_argument("--machine", default="machine class not given")
    parser.add_argument("--output", type=Path, help="FOLDER/NAME: write NAME.json and NAME.md there")
    given = parser.parse_args(arguments)
    if min(given.runs) < 1:
        raise UserError(f"scale: given {min(given.runs)} runs; allowed: 1 and more")
    rows = []
    for runs in given.runs:
        say(f"{runs} runs")
        rows.append(measure(runs, layout.find(), given.slurm))
    shown = [
        ["not run" if row[key] is None else form.format(row[key]) for key, form in COLUMNS.items()] for row in rows
    ]
    asked = " ".join(["python -m pipelines.scale", *map(str, given.runs), *["--slurm"] * given.slurm])
    text = f"`{asked}` on {given.machine}\n\n{report.markdown(list(COLUMNS), shown)}"
    print(text, end="")
    if given.output:
        content = {"command": asked, "machine": given.machine, "rows": rows}
        record.write_text(text, given.output.with_name(f"{given.output.name}.md"))
        record.write_json(content, given.output.with_name(f"{given.output.name}.json"))


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
