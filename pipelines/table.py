"""Summaries, verdicts, paper.yaml and deviations.yaml -> report/table.md, .csv, tables/, and claims.md, .csv, .json."""

import sys

from ffrepro import errors, layout, tables


def main() -> None:
    tables.write_all(layout.find())


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
