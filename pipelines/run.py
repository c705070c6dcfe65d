"""A seed's train and evaluate stages in one process: what a job of `ffrepro submit` runs, to the same bytes."""

import gc
import sys

from ffrepro import config, errors, jobs, layout, lock
from ffrepro.progress import say
from pipelines import evaluate, train


def main(name: str, seed: str) -> None:
    project, run = layout.find(), jobs.Run(name, int(seed))
    # A node that Slurm has lost may go on with a job that it has queued again: this one waits, and finds it done.
    with lock.alone(project.lock(f"{run}-job"), f"the job of {run}"):
        if not jobs.lacking(project, config.load(project.params), run):
            say(f"{run}: done already")
            return
        train.main(name, seed)
        gc.collect()  # an engine and its steps hold one another, and with them a GPU's memory
        evaluate.main(name, seed)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
