"""params.yaml -> runs/ROW/experiment.json: the checked row with its defaults filled in, whose leaves the other stages
track."""

import sys

from ffrepro import config, errors, layout, record


def main(name: str, runs: str = "runs") -> None:
    project = layout.find(runs)
    params = config.load(project.params)
    row = config.experiment(params, name)
    if row.requires == "cuda":
        from ffrepro import devices, jobs  # torch, a second that a row for the CPU need not wait

        if any(jobs.lacking(project, params, run) for run in jobs.runs_of(params, [name])):  # else nothing is trained
            devices.require(params, name)
    record.write_text(config.canonical(row), project.experiment(name))


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
