"""Row and data set -> weights, history and record of one seed."""

import sys
from typing import Any

import torch

from ffrepro import config, data, determinism, devices, errors, layout, lock, record, training
from ffrepro.progress import TrainingProgress, say


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.find(runs)
    row = config.read_experiment(project.experiment(name))
    devices.require(config.load(project.params), name)
    determinism.switch_on(fast=devices.fast())
    train(name, row, int(seed), devices.choose(), project, keep=devices.keep_states())
    # The checkpoint stays until the weights are evaluated: a stop before DVC has noted that this is done costs nothing.


def train(
    name: str,
    row: config.Experiment,
    seed: int,
    device: torch.device,
    project: layout.Layout,
    *,
    rank: int = 0,
    keep: bool = False,
) -> None:
    """A run, or a process's share of it: only that of rank 0 tells of it and writes its files."""
    split, held_out = data.held_out(data.load(project.data(row.data.name))[0], row.data.held_out)
    run = f"{name}-{seed}"
    # A training whose DVC was killed goes on: this one waits, and finds it done, its files written too.
    with lock.alone(project.lock(f"{run}-{rank}" if rank else run), f"the training of {run}"):
        with devices.faults(run, device, row), TrainingProgress(run, row.training.epochs, row.steps) as progress:
            told: dict[str, Any] = (
                {} if rank else {"say": say, "progress": progress.step, "finished": progress.finished}
            )
            trained = training.train(
                row,
                seed,
                split.to(device),
                held_out.to(device) if row.data.held_out else None,
                checkpoint=project.checkpoint(name, seed),
                keep=keep,
                **told,
            )
        if not rank:
            write(name, row, seed, trained, project)


def write(name: str, row: config.Experiment, seed: int, trained: training.Trained, project: layout.Layout) -> None:
    """The files of a run that evaluation reads; its record last, by which the others are known."""
    folder = project.run(name, seed)
    record.write_tensors(trained.network.state_dict(), folder / "weights.safetensors")
    record.write_csv(trained.history, folder / "history.csv")
    facts = training.run_record(name, row, seed, trained, folder / "history.csv", project)
    record.write_sealed({**facts, **record.image()}, folder / "record.json")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
