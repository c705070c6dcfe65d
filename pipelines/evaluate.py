"""Weights and test split -> metrics.json of one seed. The only stage that sees the test split."""

import sys

from ffrepro import config, data, determinism, devices, errors, evaluation, layout, record, training


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.Layout(layout.find().root, runs)
    row, folder = config.read_experiment(project.experiment(name)), project.run(name, int(seed))
    determinism.switch_on(fast=devices.fast())
    device = devices.choose()
    weights = record.read_tensors(folder / "weights.safetensors")
    network = training.build(row, int(seed), device)
    training.load_weights(network, weights, folder / "weights.safetensors")
    _, test = data.load(project.data(row.data.name))
    record.write_json(evaluation.evaluate(network, test.to(device), row), folder / "metrics.json")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
