"""report/rows/ROW.json and the row's rule -> report/verdicts/ROW.json."""

import sys

from ffrepro import config, errors, layout, record, results
from ffrepro.verdict import verdict


def main(name: str) -> None:
    project = layout.find()
    row = config.read_experiment(project.experiment(name))
    record.write_json(verdict(results.summary(row, project.summary(name)), row.verdict), project.verdict(name))


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
