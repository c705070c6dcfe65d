"""One stage a file: read, call one function of the package, write; `dvc.yaml` says when. Beside them, tools run by
hand."""

import os
import signal
import sys

import ffrepro  # noqa: F401  before a stage imports PyTorch, which reads its variables then

if sys.argv[0] == "-m":  # while `python -m pipelines.STAGE` imports this, seconds before `errors.run` takes over
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))
