"""What half precision does to a row's gradients: `python -m pipelines.precision ROW SEED [--weights own]`.

The gradients of one batch, the first of the epoch that would follow the last, of an even and of an odd step: in
float32, and in float32 with every value rounded as autocast rounds it in float16 and in bfloat16, forward (input,
weights and output of each convolution) and backward (their gradients). A product of two such numbers is exact in
float32 and sums are float32's on a GPU too, so a CPU without half precision can tell; not modelled are the order of
sums, and that bfloat16 takes the norm into the convolution (`Block._folded`).

Prints for each block, and for each of its two roles in overlapping updates, how far the gradients of all its weights
are from float32's, |half - float32| / |float32|, and the share of the gradients at its convolution's output that are
not 0 in float32 and become 0; for scale, how far another batch's gradients are, in float32. Unlike a batch's, the
distance that rounding makes need not average out over steps.
"""

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import conv2d

from ffrepro import (
    config,
    data,
    determinism,
    devices,
    engine,
    errors,
    layout,
    negatives,
    network,
    pipeline,
    proof,
    training,
)
from ffrepro import step as steps
from ffrepro.config import Experiment
from ffrepro.data import Split
from ffrepro.errors import UserError
from ffrepro.network import Convolutional
from pipelines.away import seed
from pipelines.gpu import by_block, distance

KINDS = ("float16", "bfloat16")
Gradients = dict[int, dict[str, Tensor]]  # by block, from 1, and tensor


class Finding(NamedTuple):
    """Of one block in one of its roles. distance, lost: by precision, as shares; another: another batch's distance."""

    block: int
    role: str
    distance: dict[str, float]
    lost: dict[str, float]
    another: float


class _Rounded(Function):
    """The nearest numbers of a half precision, of the values and, backwards, of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: torch.dtype, tell: Callable[[Tensor, Tensor], None] | None) -> Tensor:
        ctx.kind, ctx.tell = kind, tell
        return x.to(kind).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rounded = gradient.to(ctx.kind).float()
        if ctx.tell:
            ctx.tell(gradient, rounded)
        return rounded, None, None


@contextmanager
def rounding(kind: torch.dtype, tell: Callable[[Tensor, Tensor, Tensor], None]) -> Iterator[None]:
    """Blocks convolve in float32 with values of `kind`. tell: gets each convolution's weight, and the gradient of its
    output before and after rounding."""
    exact = network.convolve

    def near(x: Tensor, told: Callable[[Tensor, Tensor], None] | None = None) -> Tensor:
        result: Tensor = _Rounded.apply(x, kind, told)  # type: ignore[no-untyped-call]  # torch's own gap
        return result

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return near(conv2d(near(x), near(weight), padding=1), functools.partial(tell, weight))

    network.convolve = convolve
    try:
        yield
    finally:
        network.convolve = exact


def gradients(
    trained: Convolutional, row: Experiment, train: Split, draws: engine.Draws, parity: int, kind: str = "float32"
) -> tuple[Gradients, dict[int, float]]:
    """The gradients of one step on the batch of `draws`, and by block the share of its output's that rounding lost.

    trained stays as it is. row: in float32; `kind` is the precision that values are rounded to.
    """
    copied = copy.deepcopy(trained)
    device = train.images.device
    memory = negatives.memory(len(train.labels), row.classes, device)
    made = engine.Engine(copied, steps.optimizers(copied, row.training), memory, train, row)
    made.draws = draws
    blocks = {id(block.conv.weight): number for number, block in enumerate(copied.blocks, 1)}
    lost: dict[int, float] = {}

    def tell(weight: Tensor, before: Tensor, after: Tensor) -> None:
        there = before != 0
        lost[blocks[id(weight)]] = float((there & (after == 0)).sum() / there.sum())

    if kind == "float32":
        made._step(parity)
    else:
        with rounding(getattr(torch, kind), tell):
            made._step(parity)
    return by_block(copied), lost


def findings(trained: Convolutional, row: Experiment, train: Split, batches: list[engine.Draws]) -> Iterator[Finding]:
    """For each kind of step and each block that learns in it, first block first.

    row: in whatever precision. batches: the draws of two.
    """
    draws, following = batches
    row, update = config.changed(row, {"training.precision": "float32"}), row.training.update
    trained.train()
    for parity in range(2 if update == "overlapping" else 1):
        exact, _ = gradients(trained, row, train, draws, parity)
        another, _ = gradients(trained, row, train, following, parity)
        halves = {kind: gradients(trained, row, train, draws, parity, kind) for kind in KINDS}
        for block in sorted(exact):
            yield Finding(
                block,
                "its own loss" if steps.has_loss(block - 1, parity, update) else "the next block's",
                {kind: distance(halves[kind][0][block], exact[block]) for kind in KINDS},
                {kind: halves[kind][1][block] for kind in KINDS},
                distance(another[block], exact[block]),
            )


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.precision", description=(__doc__ or "").partition(":")[0] + "."
    )
    parser.add_argument("row")
    parser.add_argument("seed", type=seed)
    parser.add_argument(
        "--weights",
        choices=["initial", "own", "released"],
        default="own",
        help="those the training begins with, those of the run, or those that results holds in float16 (default: own)",
    )
    parser.add_argument("--device", type=devices.choose, default="auto", help="auto, cpu or cuda (default: auto)")
    options = parser.parse_args(arguments)
    name, number, device = options.row, options.seed, options.device
    released = options.weights == "released"
    project = layout.Layout(layout.find().root, "results" if released else "runs")
    determinism.switch_on()
    if options.weights == "initial":
        row = config.experiment(config.load(project.params), name)
        trained = training.build(row, number, device)
    else:
        run = proof.read(project.run(name, number))
        row, trained = run.row, proof.network(run, device, released=released)
    if not isinstance(trained, Convolutional):
        raise UserError(f"{name}: does not convolve and learn block by block; allowed: a row that does")
    if not project.data(row.data.name).exists():
        pipeline.run_stage(project, {}, "prepare", row.data.name)
    train = data.held_out(data.load(project.data(row.data.name))[0], row.data.held_out)[0].to(device)
    size = row.training.batch
    draws = engine.draw(row, number, row.training.epochs, len(train.labels))
    batches = [draws.rows(torch.arange(first, first + size)).to(device) for first in (0, len(train.labels) - size)]
    print(f"{name}-{number}, {options.weights} weights, a batch of {size}\n")
    print("| block | learns by | float16: distance | lost | bfloat16: distance | lost | another batch: distance |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with devices.faults(f"{name}-{number}", device, row):
        for one in findings(trained, row, train, batches):
            shares = [share[kind] for kind in KINDS for share in (one.distance, one.lost)]
            cells = [f"{100 * share:.1f} %" for share in (*shares, one.another)]
            print(f"| {one.block} | {one.role} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
