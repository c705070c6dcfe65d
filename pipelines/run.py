"""A seed's train and evaluate stages in one process: what a job of `ffrepro submit` runs, to the same bytes."""

import sys

from ffrepro import errors
from pipelines import evaluate, train


def main(name: str, seed: str) -> None:
    train.main(name, seed)
    evaluate.main(name, seed)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
