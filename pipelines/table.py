"""Summaries, verdicts, paper.yaml and deviations.yaml -> report/table.md, .csv and report/claims.md, .csv, .json."""

import sys

from ffrepro import errors, layout
from ffrepro.report import write_tables


def main() -> None:
    write_tables(layout.find())


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
