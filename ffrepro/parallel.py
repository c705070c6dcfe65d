"""One run on several devices by torchrun: data parallelism that computes what one device computes.

Every process draws the epoch's whole draws and takes its share of each batch, so the global batch, its order, its
augmentation and its wrong labels are those of one process. Batch norm's statistics are of the whole batch (positive and
negative half of all shares), the loss is the mean over it, and the gradients are added up before Adam: every process
then makes the same update of the same weights. What differs is the order in which numbers are added.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.optim import Adam, Optimizer

from ffrepro import checkpoint, devices, engine, negatives, record, training
from ffrepro.config import Experiment
from ffrepro.data import Split
from ffrepro.errors import MachineError, UserError
from ffrepro.network import Network


class GlobalBatchNorm(nn.Module):
    """Batch norm whose statistics are of all processes' samples, which are as many in each; in float32.

    Takes over the parameters and the running statistics of an `nn.BatchNorm2d`, under the same names. No subclass of
    it: what knows a shorter way for `nn.BatchNorm2d` must not take it here.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.momentum is not None
        self.weight, self.bias, self.eps, self.momentum = norm.weight, norm.bias, norm.eps, norm.momentum
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; B of this process."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            n = x.numel() // x.shape[1] * dist.get_world_size()
            # The sums' gradients are summed too, as every process's loss depends on every process's term.
            mean: Tensor = all_reduce(x.sum((0, 2, 3))) / n  # type: ignore[no-untyped-call]
            centred = x - mean.view(1, -1, 1, 1)
            variance: Tensor = all_reduce(centred.square().sum((0, 2, 3))) / n  # type: ignore[no-untyped-call]
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Engine(engine.Engine):
    """This process's share of an engine; steps are launched piece by piece: what crosses processes is not captured."""

    def __init__(
        self,
        network: Network,
        adams: list[Adam],
        memory: negatives.Memory,
        data: Split,
        experiment: Experiment,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(network, adams, memory, data, experiment, say)
        self.places = self.places.chunk(dist.get_world_size())[dist.get_rank()]
        self.run = self._step
        for module in network.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, GlobalBatchNorm(child))
        for adam in adams:
            adam.register_step_pre_hook(_mean_of_gradients)

    def epoch(self, seed: int, epoch: int, progress: Callable[[int], None] = lambda _: None) -> tuple[Tensor, Tensor]:
        """As of one process: (loss, separation) of each block over all shares."""
        device = self.data.images.device
        both = torch.stack(super().epoch(seed, epoch, progress)).to(device)
        dist.all_reduce(both)
        loss, separation = (both / dist.get_world_size()).cpu().unbind()
        return loss, separation


def _mean_of_gradients(adam: Optimizer, args: Any, kwargs: Any) -> None:
    """The gradient of the mean over all shares, in one exchange."""
    gradients = [value.grad for group in adam.param_groups for value in group["params"] if value.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


class Checkpoint(checkpoint.Checkpoint):
    """All processes resume from the one file; the first writes it."""

    def resume(self) -> tuple[list[dict[str, Any]], str]:
        """As of one process. Raises UserError unless all go on from the same state in the same environment."""
        history, line = super().resume()
        mine = [json.loads(self.key["environment"]), self.chain[-1]["link"] if self.chain else self.first]
        each: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(each, mine)
        if kinds := {name for its, _ in each for name in record.unlike(its, each[0][0])}:
            raise UserError(
                f"torchrun: processes with another {', '.join(sorted(kinds))} than the first; allowed: all alike "
                "(CUDA_VISIBLE_DEVICES chooses GPUs)"
            )
        if any(link != each[0][1] for _, link in each):
            raise UserError("torchrun: not every process could read the checkpoint as the first did; run again")
        return history, line

    def _write(self, state: dict[str, Any]) -> None:
        path = self.path
        if dist.get_rank():
            self.path = None
        super()._write(state)
        self.path = path


def check(row: Experiment, processes: int) -> None:
    """Raise UserError for a row that would be another method in shares."""
    batch, hardness = row.training.batch, row.training.hardness
    if batch % processes:
        raise UserError(
            f"training.batch: given {batch} for {processes} processes; allowed: a multiple of them, as shares are equal"
        )
    if hardness:
        raise UserError(
            f"training.hardness: given {hardness:g} for {processes} processes; allowed: 0, as the choice of hard wrong "
            "labels remembers the margins of all images in one process"
        )


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """torchrun's group, this process's device chosen: (rank, how many). Raises UserError without torchrun."""
    if "LOCAL_RANK" not in os.environ:
        raise UserError("start this by torchrun: torchrun --nproc-per-node N -m pipelines.parallel ROW SEED")
    cuda, rank = devices.choose().type == "cuda", int(os.environ["LOCAL_RANK"])
    if cuda:
        if rank >= torch.cuda.device_count():
            raise MachineError(f"torchrun: process {rank} has no GPU; there are {torch.cuda.device_count()}")
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if cuda else "gloo")
    # By name, as training.py is in the hash that every committed record carries, and not to be touched for this.
    with patch.multiple(training, Engine=Engine, Checkpoint=Checkpoint):
        try:
            yield dist.get_rank(), dist.get_world_size()
        finally:
            dist.destroy_process_group()
