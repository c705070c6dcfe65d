"""Row and data set -> weights, history and record of one seed, by several processes: torchrun's part of `train`."""

import sys

from ffrepro import config, data, determinism, devices, errors, layout, lock, parallel, training
from ffrepro.progress import TrainingProgress, say
from pipelines.train import write


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.Layout(layout.find().root, runs)
    row = config.read_experiment(project.experiment(name))
    devices.require(config.load(project.params), name)
    determinism.switch_on()
    device = devices.choose()
    run = f"{name}-{seed}"
    with parallel.processes() as (rank, number):
        parallel.check(row, number)
        train, held_out = data.held_out(data.load(project.data(row.data.name))[0], row.data.held_out)
        first = rank == 0
        with (
            lock.alone(project.lock(run if first else f"{run}-{rank}"), f"the training of {run}"),
            devices.faults(run, device, row),
            TrainingProgress(run, row.training.epochs, row.steps) as progress,
        ):
            trained = training.train(
                row,
                int(seed),
                train.to(device),
                held_out.to(device) if row.data.held_out else None,
                checkpoint=project.checkpoint(name, int(seed)),
                say=say if first else lambda _: None,
                progress=progress.step if first else lambda *_: None,
                finished=progress.finished if first else lambda _: None,
            )
        if first:
            write(name, row, int(seed), trained, project)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
