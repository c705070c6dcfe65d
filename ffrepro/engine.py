"""An epoch on a device: the data lie there, the draws arrive once, and nothing is read back before its end.

On CUDA the step is captured as a graph, one for even and one for odd steps, and replayed: a step costs the host three
launches instead of several hundred, and no compiler is needed.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Adam

from ffrepro import augment, backprop, negatives
from ffrepro.config import Experiment
from ffrepro.data import DATASETS, Split
from ffrepro.errors import UserError
from ffrepro.goodness import wrong_labels
from ffrepro.network import Network, autocast
from ffrepro.randomness import generator
from ffrepro.step import learners, learning_rate, local_losses, set_learning_rate


class Draws(NamedTuple):
    """All that is random in an epoch, drawn on the CPU, the same on every machine (2.5 MB for CIFAR-10)."""

    order: Tensor  # (N,) int64
    wrong: Tensor  # (N,) int64, how many places further round the wrong label lies
    noise: Tensor  # (N, classes + 1) float32 for the choice of hard wrong labels; (N, 0) where they are uniform
    geometry: augment.Geometry

    def rows(self, rows: Tensor) -> "Draws":
        return Draws(self.order[rows], self.wrong[rows], self.noise[rows], self.geometry.rows(rows))

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.order.to(device), self.wrong.to(device), self.noise.to(device), self.geometry.to(device))

    def copy_(self, other: Self) -> None:
        """Take another epoch's draws over into the same places."""
        for mine, its in zip((*self[:3], *self.geometry), (*other[:3], *other.geometry), strict=True):
            mine.copy_(its)


def draw(experiment: Experiment, seed: int, epoch: int, n: int) -> Draws:
    """The draws of one epoch over `n` images: a generator for each purpose, keyed by seed and epoch."""
    chosen = experiment.augmentation
    size = experiment.shape[1:]
    return Draws(
        order=torch.randperm(n, generator=generator(seed, "order", epoch)),
        wrong=torch.randint(1, experiment.classes, (n,), generator=generator(seed, "wrong labels", epoch)),
        noise=torch.rand(
            n,
            experiment.classes + 1 if experiment.training.hardness else 0,
            generator=generator(seed, "hard labels", epoch),
        ),
        geometry=augment.draw(
            n, size, chosen.crop, chosen.rotation, chosen.flip, generator(seed, "augmentation", epoch)
        ),
    )


class Graphs:
    """Steps that run as they are the first time, are captured the second time, and replayed from then on.

    The first time is a step of the training like any other; it also lets the libraries make what must not be made while
    capturing (workspaces, the optimizer's state). A capture computes nothing, so it is replayed at once. Where
    it fails, one notice, and all steps run as they are.
    """

    def __init__(
        self,
        steps: list[Callable[[], None]],
        capture: Callable[[Callable[[], None]], Callable[[], object]],
        say: Callable[[str], None],
    ) -> None:
        self.steps, self.say = steps, say
        self.capture: Callable[[Callable[[], None]], Callable[[], object]] | None = capture
        self.warm: set[int] = set()
        self.graphs: dict[int, Callable[[], object]] = {}

    def __call__(self, parity: int) -> None:
        if parity in self.graphs:
            self.graphs[parity]()
        elif self.capture is None or parity not in self.warm:
            self.warm.add(parity)
            self.steps[parity]()
        else:
            try:
                self.graphs[parity] = self.capture(self.steps[parity])
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                self.say(f"no CUDA graph ({reason}): steps are launched piece by piece, to the same result, slower")
                self.capture = None
                self.graphs.clear()
            self(parity)


class Engine:
    """Trains a network in place, epoch by epoch, on the device where `data` lie and stay.

    Whoever changes what is trained does it in place too: a graph reads and writes the same memory in every step.
    """

    def __init__(
        self,
        network: Network,
        adams: list[Adam],
        memory: negatives.Memory,
        data: Split,
        experiment: Experiment,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        device, source = data.images.device, DATASETS[experiment.data.name]
        self.network, self.adams, self.memory, self.data, self.experiment = network, adams, memory, data, experiment
        self.steps = len(data.labels) // experiment.training.batch  # the last partial batch is dropped
        self.mean, self.std = (torch.tensor(value, device=device) for value in (source.mean, source.std))
        self.draws: Draws | None = None
        self.first = torch.zeros((), dtype=torch.int64, device=device)  # of the step's batch, in the epoch's order
        self.places = torch.arange(experiment.training.batch, device=device)
        self.sums = torch.zeros(2, len(network.blocks), device=device)
        self.sound = torch.zeros(len(network.blocks), dtype=torch.int64, device=device)  # steps with a number for a sum
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.run: Callable[[int], None] = self._step
        if self.stream:
            steps: list[Callable[[], None]] = [lambda: self._step(0), lambda: self._step(1)]
            self.run = Graphs(steps[: len(adams)], self._capture, say)
            self.pool = torch.cuda.graph_pool_handle()

    def epoch(self, seed: int, epoch: int, progress: Callable[[int], None] = lambda _: None) -> tuple[Tensor, Tensor]:
        """Train one epoch. Returns (loss, separation) of each block, averaged over the steps in which it has a loss.

        Returns (blocks,) twice; NaN for a block that had no loss at all (the last one, where an epoch has one
        step). `progress` gets each step, on CUDA when it is under way. Raises UserError when a loss is no number.
        """
        training, device = self.experiment.training, self.data.images.device
        draws = draw(self.experiment, seed, epoch, len(self.data.labels))
        with ExitStack() as stack:
            if self.stream:
                self.stream.wait_stream(torch.cuda.current_stream(device))
                stack.enter_context(torch.cuda.stream(self.stream))
            if self.draws is None:
                self.draws = draws.to(device)
            else:
                self.draws.copy_(draws)
            self.sums.zero_()
            self.sound.zero_()
            for step in range(self.steps):
                parity = step % len(self.adams)
                self.first.fill_(step * training.batch)
                set_learning_rate(
                    self.adams[parity], learning_rate(training, (epoch + step / self.steps) / training.epochs)
                )
                self.run(parity)
                progress(step)
            sums = self.sums.cpu()  # waits for the epoch's end
        counts = torch.zeros(len(self.network.blocks))
        for step in range(self.steps):
            counts[learners(step, training.update)] += 1
        loss, separation = (sums / counts).unbind()
        step, block = min((step, i) for i, step in enumerate(self.sound.tolist()))
        if step < self.steps:
            raise UserError(
                f"training: the loss of block {block + 1} is no number in step {step + 1} of epoch {epoch + 1}; "
                "nothing of that epoch is kept; try a smaller training.lr, or another training.precision than "
                f"{training.precision}"
            )
        return loss, separation

    def _step(self, parity: int) -> None:
        """The step on the batch that starts at `first`: all that a graph captures. It waits for nothing."""
        training, classes = self.experiment.training, self.experiment.classes
        assert self.draws is not None
        draws = self.draws.rows(self.first + self.places)
        images, labels = self.data[draws.order]
        images = augment.normalise(augment.apply(images, draws.geometry), self.mean, self.std)
        wrong = wrong_labels(labels, draws.wrong, classes)
        if training.hardness:
            wrong = negatives.choose(self.memory, training.hardness, draws.order, labels, wrong, draws.noise)
        adam = self.adams[parity]
        adam.zero_grad()
        with autocast(images.device, training.precision):
            if isinstance(self.network, backprop.Classifier):
                losses, separations = backprop.loss(self.network, images, labels)
            else:
                losses, separations = local_losses(self.network, images, labels, wrong, parity, training)
        torch.autograd.backward(losses.sum())
        adam.step()
        self.sums[:, learners(parity, training.update)] += torch.stack([losses.detach(), separations.mean(1)])
        self.sound += self.sums[0].isfinite()
        if training.hardness:
            negatives.remember(self.memory, draws.order, labels, wrong, -separations[-1])

    def _capture(self, step: Callable[[], None]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            step()
        return graph.replay
