"""Trained weights evaluated again: on other images, at another precision, as released; no run is changed."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ffrepro import config, data, determinism, devices, engine, evaluation, evidence, proof
from ffrepro.errors import UserError
from ffrepro.layout import Layout


class Asked(NamedTuple):
    """images: "test", "training" or "held-out", the first of them. precision: None is the row's, or a CPU's stand-in.

    released: the weights that results holds in float16, not the run's own. restated: batch norm's statistics anew.
    """

    name: str
    seeds: list[int] | None
    images: str
    first: int | None
    precision: str | None
    released: bool
    restated: bool


def evaluate(project: Layout, asked: Asked, device: str, prepare: Callable[[str], None]) -> Iterator[str]:
    """One line for each run's accuracies in percent; of released weights on all test images a second, comparing.

    prepare: brings the data of that name to where the project has it. Raises UserError for what cannot be asked of the
    row, before anything is fetched, and for a run that is damaged or missing.
    """
    name, images = asked.name, asked.images
    if not project.experiment(name).exists():
        config.experiment(config.load(project.params), name)  # which refuses a name that is none
        instead = f"`ffrepro reproduce {name}` trains it, and --runs results takes what is committed"
        raise UserError(f"{name}: nothing of it in {project.runs}/; {instead}")
    row, chosen = config.read_experiment(project.experiment(name)), devices.choose(device)
    precision = asked.precision or devices.stand_in(row, chosen)
    row = config.changed(row, {"training.precision": precision}, "evaluate")
    if images == "held-out" and not row.data.held_out:
        raise UserError(f"--images: given {images}, but {name} holds none out; allowed: test, training")
    if asked.restated and row.network.norm != "batch":
        raise UserError(f"--restated: {name} has {row.network.norm} norm, without statistics; leave it out")
    determinism.switch_on()
    prepare(row.data.name)
    train, test = data.load(project.data(row.data.name))
    train, held_out = data.held_out(train, row.data.held_out)
    split = {"test": test, "training": train, "held-out": held_out}[images].rows(slice(asked.first))
    places = [project.run(name, seed) for seed in asked.seeds or ()]
    for place in places or evidence.runs_of(project.experiment(name).parent):
        run, one = evidence.read(place), f"{name}-{place.name}"
        with devices.faults(one, chosen):
            network = evidence.network(run, chosen, released=asked.released)
            if asked.restated:  # with an epoch's draws that no epoch of the training had
                draws = engine.draw(row, run.facts["seed"], row.training.epochs, len(train.labels))
                evaluation.restate(network, train.to(chosen), row, draws.to(chosen))
            table, metrics = evaluation.evaluate(network, split.to(chosen), row)
        blocks = " ".join(f"{accuracy:.2f}" for accuracy in metrics["blocks"].values())
        of = f"{metrics['images']} {images} images in {row.evaluated_in}{', statistics anew' if asked.restated else ''}"
        yield f"{one}: {metrics['accuracy']:.2f} % of {of}; blocks {blocks}"
        if asked.released and not asked.restated and images == "test" and len(split.labels) == len(test.labels):
            yield f"{one}: {proof.released(run, table)}"
