"""What half precision does to a row's gradients: `python -m pipelines.precision ROW SEED [--weights own]`.

The gradients of one batch, in an even and in an odd step: in float32, and in float32 with every value rounded as
autocast rounds it in float16 and in bfloat16, forward (input, weights and output of each convolution) and backward
(their gradients). A product of two such numbers is exact in float32, so a CPU without half precision can tell. Not
modelled are how a GPU adds up, and that bfloat16 takes the norm into the convolution (`Block._folded`). Wrong labels
are uniform, whatever the row's hardness.

Prints for each block, and for each of its two roles in overlapping updates:

- how far the gradients of all its weights are from float32's, |half - float32| / |float32|;
- how many of them have float32's sign, as Adam divides each by its own size, and small ones count as much as large;
- for scale, both of another batch's gradients in float32: of two that have nothing in common 141 % and 50 %;
- the share of gradients that come from the block's loss, at its output, or from the next block's, at the next
  convolution's input, and become 0 there.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

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
    evidence,
    layout,
    network,
    pipeline,
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
Told = Callable[[Tensor, Tensor], None]  # gets gradients before and after rounding


class Likeness(NamedTuple):
    """To float32's gradients: the distance as a share of their length, and the share of weights with the same sign."""

    distance: float
    signs: float


class Finding(NamedTuple):
    """Of one block in one of its roles. halves, lost: by precision."""

    block: int
    role: str
    halves: dict[str, Likeness]
    lost: dict[str, float]
    another: Likeness


class _Rounded(Function):
    """The nearest numbers of a half precision, of the values and, backwards, of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: torch.dtype, tell: Told) -> Tensor:
        ctx.kind, ctx.tell = kind, tell
        return x.to(kind).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rounded = gradient.to(ctx.kind).float()
        ctx.tell(gradient, rounded)
        return rounded, None, None


@contextmanager
def rounding(kind: torch.dtype, tell: Callable[[Tensor, str, Tensor, Tensor], None]) -> Iterator[None]:
    """Blocks convolve in float32 with values of `kind`.

    tell: gets each convolution's weight, "input", "weight" or "output", and its gradient before and after rounding.
    """

    def near(x: Tensor, weight: Tensor, place: str) -> Tensor:
        told = functools.partial(tell, weight, place)
        result: Tensor = _Rounded.apply(x, kind, told)  # type: ignore[no-untyped-call]  # torch's own gap
        return result

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        y = conv2d(near(x, weight, "input"), near(weight, weight, "weight"), padding=1)
        return near(y, weight, "output")

    with patch.object(network, "convolve", convolve):
        yield


def gradients(
    trained: Convolutional, row: Experiment, train: Split, draws: engine.Draws, parity: int, kind: str = "float32"
) -> tuple[Gradients, dict[tuple[int, str], float]]:
    """The gradients of one step on the batch of `draws`; by block and place, the share of gradients that became 0.

    trained stays as it is. row: in float32; `kind` is the precision that values are rounded to.
    """
    made = devices.untrained(row, train)
    made.draws, copied = draws, made.network
    assert isinstance(copied, Convolutional)
    copied.load_state_dict(trained.state_dict())
    blocks = {id(block.conv.weight): number for number, block in enumerate(copied.blocks, 1)}
    lost: dict[tuple[int, str], float] = {}

    def tell(weight: Tensor, place: str, before: Tensor, after: Tensor) -> None:
        there = before != 0  # nothing there: all was lost before
        share = ((there & (after == 0)).sum() / there.sum()).nan_to_num(1.0)
        lost[blocks[id(weight)], place] = float(share)

    if kind == "float32":
        made._step(parity)
    else:
        with rounding(getattr(torch, kind), tell):
            made._step(parity)
    return by_block(copied), lost


def likeness(its: dict[str, Tensor], exact: dict[str, Tensor]) -> Likeness:
    """Of a block's gradients to the exact ones."""
    mine, true = (torch.cat([part[name].flatten() for name in exact]) for part in (its, exact))
    return Likeness(distance(its, exact), float((mine.sign() == true.sign()).double().mean()))


def findings(trained: Convolutional, row: Experiment, train: Split, batches: list[engine.Draws]) -> Iterator[Finding]:
    """For each kind of step and each block that learns in it, first block first.

    row: in whatever precision. batches: the draws of two.
    """
    draws, other = batches
    row, update = config.changed(row, {"training.precision": "float32"}), row.training.update
    for parity in range(2 if update == "overlapping" else 1):
        exact, _ = gradients(trained, row, train, draws, parity)
        another, _ = gradients(trained, row, train, other, parity)
        halves = {kind: gradients(trained, row, train, draws, parity, kind) for kind in KINDS}
        for block in sorted(exact):
            own = steps.has_loss(block - 1, parity, update)
            place = (block, "output") if own else (block + 1, "input")
            yield Finding(
                block,
                "its own loss" if own else "the next block's",
                {kind: likeness(halves[kind][0][block], exact[block]) for kind in KINDS},
                {kind: halves[kind][1][place] for kind in KINDS},
                likeness(another[block], exact[block]),
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
    parser.add_argument("--device", choices=devices.DEVICES, help="default: FFREPRO_DEVICE, or auto")
    options = parser.parse_args(arguments)
    name, number, device = options.row, options.seed, devices.choose(options.device)
    released = options.weights == "released"
    project = layout.find("results" if released else "runs")
    determinism.switch_on()
    with devices.faults(f"{name}-{number}", device):
        if options.weights == "initial":
            row = config.experiment(config.load(project.params), name)
            trained = training.build(row, number, device)
        else:
            run = evidence.read(project.run(name, number))
            row, trained = run.row, evidence.network(run, device, released=released)
        if not isinstance(trained, Convolutional):
            raise UserError(f"{name}: does not convolve and learn block by block; allowed: a row that does")
        pipeline.prepare(project, row.data.name, {})
        train = data.held_out(data.load(project.data(row.data.name))[0], row.data.held_out)[0].to(device)
        batch = torch.arange(row.training.batch)
        batches = [  # the first of each of two epochs that no training had
            engine.draw(row, number, row.training.epochs + after, len(train.labels)).rows(batch).to(device)
            for after in (0, 1)
        ]
        print(f"{name}-{number}, {options.weights} weights, a batch of {len(batch)}\n")
        print("| block | learns by | float16 | signs | lost | bfloat16 | signs | lost | another batch | signs |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for one in findings(trained, row, train, batches):
            shares = [share for kind in KINDS for share in (*one.halves[kind], one.lost[kind])]
            cells = [f"{100 * share:.1f} %" for share in (*shares, *one.another)]
            print(f"| {one.block} | {one.role} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
