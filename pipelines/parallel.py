"""Row and data set -> weights, history and record of one seed, by several processes: torchrun's part of `train`."""

import sys

from ffrepro import config, determinism, devices, errors, layout, parallel
from pipelines.train import train


def main(name: str, seed: str) -> None:
    project = layout.find()
    row = config.read_experiment(project.experiment(name))
    devices.require(config.load(project.params), name)
    determinism.switch_on()
    device = devices.choose()
    with parallel.processes() as (rank, number):
        parallel.check(row, number)
        train(name, row, int(seed), device, project, rank=rank)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
