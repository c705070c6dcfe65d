"""Weights and test split -> one seed's goodness.safetensors and metrics.json. No other stage sees the test split."""

import sys

from ffrepro import config, data, determinism, devices, errors, evaluation, layout, record, training


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.find(runs)
    row, folder = config.read_experiment(project.experiment(name)), project.run(name, int(seed))
    devices.require(config.load(project.params), name)
    determinism.switch_on(fast=devices.fast())
    device = devices.choose()
    weights = record.read_tensors(folder / "weights.safetensors")
    _, test = data.load(project.data(row.data.name))
    with devices.faults(f"{name}-{seed}", device):
        network = training.build(row, int(seed), device)
        training.load_weights(network, weights, folder / "weights.safetensors")
        table, metrics = evaluation.evaluate(network, test.to(device), row)
    record.write_tensors({"goodness": table}, folder / "goodness.safetensors")
    link = record.read_sealed(folder / "record.json")["chain"][-1]["link"]
    record.write_sealed({**metrics, "link": link}, folder / "metrics.json")
    project.checkpoint(name, int(seed)).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
