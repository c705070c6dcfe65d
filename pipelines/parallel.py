"""Row and data set -> weights, history and record of one seed, by several processes: torchrun's part of `train`."""

import sys

from ffrepro import config, data, determinism, devices, errors, layout, lock, parallel, record, training
from ffrepro.progress import TrainingProgress, say


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.Layout(layout.find().root, runs)
    row = config.read_experiment(project.experiment(name))
    devices.require(config.load(project.params), name)
    determinism.switch_on()
    device = devices.choose()
    checkpoint, folder = project.checkpoint(name, int(seed)), project.run(name, int(seed))
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
                checkpoint=checkpoint,
                say=say if first else lambda _: None,
                progress=progress.step if first else lambda *_: None,
                finished=progress.finished if first else lambda _: None,
            )
        if first:
            record.write_tensors(trained.network.state_dict(), folder / "weights.safetensors")
            record.write_csv(trained.history, folder / "history.csv")
            facts = training.run_record(name, row, int(seed), trained, folder / "history.csv", project)
            record.write_sealed({**facts, **record.image()}, folder / "record.json")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
