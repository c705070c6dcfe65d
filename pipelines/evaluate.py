"""Weights and test split -> metrics.json of one seed. The only stage that sees the test split."""

import sys

from ffrepro import config, data, determinism, devices, errors, evaluation, layout, record, training


def main(name: str, seed: str, runs: str = "runs") -> None:
    project = layout.Layout(layout.find().root, runs)
    row, folder = config.read_experiment(project.experiment(name)), project.run(name, int(seed))
    determinism.switch_on()
    device = devices.choose()
    weights = record.read_tensors(folder / "weights.safetensors")
    network = training.build(row, int(seed), device)
    training.load_weights(network, weights, folder / "weights.safetensors")
    _, test = data.load(project.data(row.data.name))
    table = evaluation.goodness_table(network, test.images.to(device), row).cpu()
    metrics = evaluation.metrics(table, test.labels, row.evaluation.vote)
    metrics["weights"] = record.tensors_hash(weights)
    metrics["goodness_table"] = record.tensors_hash({"goodness": table})
    record.write_json(metrics, folder / "metrics.json")


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
