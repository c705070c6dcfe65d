"""Metrics of exactly the declared seeds, paper.yaml and the reference -> report/rows/ROW.json."""

import sys

from ffrepro import config, errors, layout, record
from ffrepro.report import summarise
from ffrepro.targets import read_targets, target_of


def main(name: str) -> None:
    project = layout.find()
    row = config.read_experiment(project.experiment(name))
    targets = read_targets(project.paper, project.reference)
    record.write_json(summarise(name, row, project, target_of(targets, name, row)), project.summary(name))


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
