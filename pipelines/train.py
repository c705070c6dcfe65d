"""Row and data set -> weights, history and record of one seed."""

import sys

from ffrepro import config, data, determinism, devices, errors, layout, lock, record, training
from ffrepro.progress import TrainingProgress, say


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.Layout(layout.find().root, runs)
    row = config.read_experiment(project.experiment(name))
    devices.require(config.load(project.params), name)
    determinism.switch_on(fast=devices.fast())
    device = devices.choose()
    train, _ = data.load(project.data(row.data.name))
    train, held_out = data.held_out(train, row.data.held_out)
    run = f"{name}-{seed}"
    with (  # a training whose DVC was killed goes on: this one waits, and finds it done
        lock.alone(project.lock(run), f"the training of {run}"),
        devices.faults(run, device, row),
        TrainingProgress(run, row.training.epochs, row.steps) as progress,
    ):
        trained = training.train(
            row,
            int(seed),
            train.to(device),
            held_out.to(device) if row.data.held_out else None,
            checkpoint=project.checkpoint(name, int(seed)),
            keep=devices.keep_states(),
            say=say,
            progress=progress.step,
            finished=progress.finished,
        )
    write(name, row, int(seed), trained, project)
    # The checkpoint stays until the weights are evaluated: a stop before DVC has noted that this is done costs nothing.


def write(name: str, row: config.Experiment, seed: int, trained: training.Trained, project: layout.Layout) -> None:
    """The files of a run that evaluation reads; its record last, by which the others are known."""
    folder = project.run(name, seed)
    record.write_tensors(trained.network.state_dict(), folder / "weights.safetensors")
    record.write_csv(trained.history, folder / "history.csv")
    facts = training.run_record(name, row, seed, trained, folder / "history.csv", project)
    record.write_sealed({**facts, **record.image()}, folder / "record.json")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
