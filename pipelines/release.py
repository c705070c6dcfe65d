"""A large run made small enough to publish: `python -m pipelines.release ROW SEED`.

Copies runs/ROW/SEED into results/ROW/SEED, record, metrics, history and goodness as they are, and the weights as
released.safetensors, where numbers with a fraction are float16: half the size, rounded once more. `ffrepro evaluate ROW
--weights released` says what that changed; the record's hash is of the weights before it.
"""

import argparse
import sys

from ffrepro import config, errors, evidence, layout, record
from ffrepro.errors import UserError
from pipelines.away import seed

KEPT = ("history.csv", "record.json", "metrics.json", "goodness.safetensors")


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.release", description=__doc__.partition("\n")[0])
    parser.add_argument("row")
    parser.add_argument("seed", type=seed)
    options = parser.parse_args(arguments)
    name, number = options.row, options.seed
    here, there = layout.find(), layout.find("results")
    run = evidence.read(here.run(name, number))
    if run.weights is None:
        raise UserError(f"{run.folder}: no weights.safetensors, nothing to release")
    if run.goodness is None:
        raise UserError(f"{run.folder}: no goodness.safetensors, by which released weights are judged")
    released = {key: t.half() if t.is_floating_point() else t for key, t in run.weights.items()}
    infinite = [key for key, value in released.items() if not value.isfinite().all()]
    if infinite:
        raise UserError(f"{run.folder}: {infinite[0]} does not fit into float16; publish weights.safetensors itself")
    record.write_text(config.canonical(run.row), there.experiment(name))
    folder = there.run(name, number)
    for file in KEPT:
        record.write_bytes((run.folder / file).read_bytes(), folder / file)
    record.write_tensors(released, there.released(name, number))


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
