"""What the engine costs on a CUDA GPU, and where the time goes: `python -m pipelines.gpu --out DIR`.

For a borrowed machine, where minutes count: all in one process, with what `pipelines/away.py` needs and nothing more.
Writes DIR/gpu.json and DIR/gpu.md: the distance of one float32 step's gradients from float64's, on the CPU and on the
GPU, block by block; seconds per epoch and peak memory of each network, precision and kind of kernels, the contestants
in turn, round after round, medians; the plain loop's; the floor; and the kernels that a step of the first contestant
spends its time in. Images are random pixels. Each part that fails says so in the file and leaves the others standing.
"""

import argparse
import gc
import math
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ffrepro import augment, bench, config, determinism, devices, errors, layout, plain, record
from ffrepro.config import Experiment
from ffrepro.data import DATASETS
from ffrepro.engine import Engine, draw
from ffrepro.goodness import wrong_labels
from ffrepro.network import Network
from ffrepro.report import markdown
from ffrepro.step import has_loss
from pipelines.away import say

NETWORKS = {"large": "cifar10", "small": "ablation-symba-batch-overlapping"}  # the row whose network it is
CONTESTANTS = [
    ("large", "float16", "deterministic"),
    ("large", "float16", "fast"),
    ("large", "bfloat16", "deterministic"),
    ("large", "bfloat16", "fast"),
    ("large", "float32", "deterministic"),
    ("small", "float16", "deterministic"),
    ("small", "float16", "fast"),
    ("small", "bfloat16", "deterministic"),
]
SIDES = {"cpu": "CPU", "by channel": "CPU, norms channel by channel", "gpu": "GPU"}  # of `differences`
COMPARED = 64  # images of the step that float64 computes too; most of its time is the CPU's
KINDS = {  # of kernels, by what their names contain; the first that fits
    "Adam": ("Adam", "multi_tensor"),
    "pooling": ("max_pool",),
    "norm": ("batch_norm", "bn_", "batchnorm", "layer_norm"),
    "convolution": ("conv", "gemm", "xmma", "cutlass", "nvjet", "implicit", "dgrad", "wgrad", "fprop", "cudnn"),
    "goodness and losses": ("reduce_kernel", "softplus", "norm_"),
    "copies": ("Memcpy", "Memset", "copy", "CatArray"),
}


def engine_of(row: Experiment, device: torch.device, n: int) -> Engine:
    """The row's engine over `n` random images."""
    return devices.untrained(row, bench.random_images(row, n).to(device), say)


def differences(row: Experiment, device: torch.device) -> list[dict[str, Any]]:
    """How far one float32 step's gradients are from float64's: per parity and block, on each side.

    |a - b| / |b| over a block's tensors, the embedding's with the first block's. The reference b is the plain loop's in
    float64 on the CPU, from the same weights and batch. Not of the new weights: Adam's first step goes by each
    gradient's sign, also of a tiny one's. Sides: "cpu", as rows train there; "by channel", the same with each norm's
    input laid out channel by channel, because PyTorch's batch norm for channels last adds a channel's values up one by
    one on a CPU, and loses digits; and "gpu", where `device` is one.
    """
    row, cpu = config.changed(row, {"training.precision": "float32"}), torch.device("cpu")
    found = []
    for parity in (0, 1):
        exact = _exact_gradients(row, parity)
        sides = {"cpu": _gradients(row, parity, cpu), "by channel": _gradients(row, parity, cpu, by_channel=True)}
        if device.type != "cpu":
            sides["gpu"] = _gradients(row, parity, device)
        for block in exact:
            away = {side: distance(its[block], exact[block]) for side, its in sides.items()}
            found.append({"parity": parity, "block": block, **away})
    return found


def in_float32(row: Experiment, found: list[dict[str, Any]], side: str) -> bool:
    """Whether a side of a row's `differences` is as near to float64 as float32 can be, and TF32 cannot.

    The bounds are about five times what "by channel" needs (docs/speed.md): 1e-3, and 1e-2 where rounding can switch a
    gradient on or off: by another maximum where a block pools, by a ReLU where it learns by the next block's loss. (Its
    own loss leaves a value near zero next to no gradient, so that it does not matter whether a ReLU lets it through.)
    """

    def switches(one: dict[str, Any]) -> bool:
        _, pools = row.network.parsed()[one["block"] - 1]
        return pools or not has_loss(one["block"] - 1, one["parity"], row.training.update)

    return all(one[side] < (1e-2 if switches(one) else 1e-3) for one in found)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """|a - b| / |b| over a block's tensors; infinite where only b is 0."""
    apart = sum((value.double() - b[name]).square().sum().item() for name, value in a.items())
    length = sum(b[name].double().square().sum().item() for name in a)
    if not length:
        return math.inf if apart else 0.0
    return math.sqrt(apart / length)


def _gradients(
    row: Experiment, parity: int, device: torch.device, *, by_channel: bool = False
) -> dict[int, dict[str, torch.Tensor]]:
    """The engine's, by block and tensor, on the host."""
    engine = engine_of(row, device, row.training.batch)
    for module in engine.network.modules():
        if by_channel and isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    engine.draws = draw(row, 0, 0, row.training.batch).to(device)
    engine._step(parity)
    return by_block(engine.network)


def _exact_gradients(row: Experiment, parity: int) -> dict[int, dict[str, torch.Tensor]]:
    images, draws = bench.random_images(row, row.training.batch), draw(row, 0, 0, row.training.batch)
    network = bench.untrained_network(row, torch.device("cpu"), plain=True).double()
    data, source = images.rows(draws.order), DATASETS[row.data.name]
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (source.mean, source.std))
    x = augment.normalise(augment.apply(data.images, draws.geometry), mean, std)  # float64 from the mean on
    wrong = wrong_labels(data.labels, draws.wrong, row.classes)
    plain.step(network, plain.optimizers(network, row.training), x, data.labels, wrong, parity, row.training)
    return by_block(network)


def by_block(network: Network) -> dict[int, dict[str, torch.Tensor]]:
    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in network.named_parameters():
        if value.grad is not None:
            block = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 1
            found.setdefault(block, {})[name] = value.grad.cpu()
    return found


def forget(device: torch.device) -> None:
    """What was measured before, as far as memory goes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def milliseconds(row: Experiment, device: torch.device, *, fast: bool, steps: int) -> dict[str, float]:
    """Of one step, averaged over an epoch of so many steps, and the peak memory in MiB."""
    forget(device)
    determinism.switch_on(fast=fast)
    engine = engine_of(row, device, steps * row.training.batch)
    engine.epoch(0, 0)  # runs as it is, captures, replays
    begun = time.perf_counter()
    engine.epoch(0, 1)  # ends when its sums are read
    return {
        "milliseconds": 1000 * (time.perf_counter() - begun) / steps,
        "peak_mib": bench.peak_memory(device),
    }


def plain_loop(row: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    """The plain loop's step, with the autotuning of the authors' code."""
    forget(device)
    determinism.switch_on(fast=True)
    rate = bench.plain_training(row, device, steps)["images_per_second"]
    return {
        "milliseconds": 1000 * row.training.batch / rate,
        "peak_mib": bench.peak_memory(device),
    }


def kernels(row: Experiment, device: torch.device, steps: int) -> dict[str, Any]:
    """Milliseconds of GPU time a step, by kind of kernel and by kernel."""
    determinism.switch_on()
    engine = engine_of(row, device, steps * row.training.batch)
    engine.epoch(0, 0)
    with profile(activities=[getattr(ProfilerActivity, device.type.upper())]) as profiled:
        engine.epoch(0, 1)
    each = {
        event.key: [event.self_device_time_total / 1000 / steps, event.count / steps]
        for event in profiled.key_averages()
        if event.self_device_time_total
    }
    kinds: dict[str, float] = {}
    for name, (spent, _) in each.items():
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "the rest")
        kinds[kind] = kinds.get(kind, 0.0) + spent
    longest = sorted(each.items(), key=lambda item: -item[1][0])
    return {
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "kernels": [{"name": name, "milliseconds": spent, "times": times} for name, (spent, times) in longest[:40]],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    rows = {network: config.read_experiment(layout.find().experiment(name)) for network, name in NETWORKS.items()}
    if options.shrink:
        rows = {
            network: config.changed(row, {"network.blocks": "4 8P 8 8", "training.batch": 8})
            for network, row in rows.items()
        }
    determinism.switch_on()
    found: dict[str, Any] = {
        "command": f"python -m pipelines.gpu {' '.join(options.given)}",
        "environment": record.environment(device),
        "driver": record.driver(device),
        "code": record.code_hash(),
    }

    def part(name: str, work: Any) -> None:
        if options.only not in (None, name):
            return
        begun = time.perf_counter()
        try:
            found[name] = work()
        except Exception:  # what a GPU can do is not known beforehand, and the other parts are worth having
            found[name] = {"failed": traceback.format_exc().splitlines()[-1]}
            traceback.print_exc()
        say(f"{name}: {time.perf_counter() - begun:.0f} s")
        record.write_json(found, options.out / "gpu.json")

    def row_of(network: str, precision: str) -> Experiment:
        return config.changed(rows[network], {"training.precision": precision})

    def rounds() -> list[dict[str, Any]]:
        every: dict[tuple[str, str, str], list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for contestant in CONTESTANTS:
                network, precision, kind = contestant
                one = milliseconds(row_of(network, precision), device, fast=kind == "fast", steps=options.steps)
                every.setdefault(contestant, []).append(one)
                say(f"{' '.join(contestant)}: {one['milliseconds']:.2f} ms a step, {one['peak_mib']:.0f} MiB")
        return [
            {
                "network": network,
                "precision": precision,
                "kernels": kind,
                "milliseconds": [one["milliseconds"] for one in its],
                "peak_mib": max(one["peak_mib"] for one in its),
            }
            for (network, precision, kind), its in every.items()
        ]

    part("rates", lambda: bench.machine_rates(rows["large"], device, 10))
    part("differences", lambda: differences(config.changed(rows["large"], {"training.batch": COMPARED}), device))
    part("kernels", lambda: kernels(rows["large"], device, options.steps))
    part("engine", rounds)
    part("plain", lambda: {name: plain_loop(row, device, options.steps) for name, row in rows.items()})
    rates = found.get("rates", {})
    if "flops_per_second" in rates:
        found["floor"] = {}
        for name, row in rows.items():
            operations, moved = bench.work(row)
            images = row.training.batch
            found["floor"][name] = {
                "operations_ms": 1000 * images * operations / rates["flops_per_second"],
                "memory_ms": 1000 * images * moved / rates["bytes_per_second"],
            }
    found["steps_per_epoch"] = {name: row.steps for name, row in rows.items()}
    record.write_json(found, options.out / "gpu.json")
    return found


def table(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    environment = found["environment"]
    lines = [
        f"`{found['command']}`\n",
        f"{environment.get('gpu', environment['device'])}, driver {found['driver']}, torch {environment['torch']}, "
        f"CUDA {environment.get('cuda')}, cuDNN {environment.get('cudnn')}.\n",
    ]
    if isinstance(found.get("engine"), list):
        plain = found.get("plain", {"failed": True})
        contestants = [(*(one[key] for key in ("network", "precision", "kernels")), one) for one in found["engine"]]
        if "failed" not in plain:
            contestants += [
                (name, "as its row", "plain loop", {**one, "milliseconds": [one["milliseconds"]]})
                for name, one in plain.items()
            ]
        rows = []
        for network, precision, kind, one in contestants:
            middle, n = statistics.median(one["milliseconds"]), len(one["milliseconds"])
            seconds = found["steps_per_epoch"][network] * middle / 1000
            numbers = [f"{middle:.2f} ({n})", f"{seconds:.2f}", f"{one['peak_mib']:.0f}"]
            rows.append([network, precision, kind, *numbers])
        header = ("network", "precision", "kernels", "ms a step (n)", "s an epoch", "peak MiB")
        lines.append(markdown(header, rows))
    for name, floor in found.get("floor", {}).items():
        lines.append(
            f"\nFloor of {name}, ms a step: {floor['operations_ms']:.2f} for the convolutions' operations at "
            f"{found['rates']['flops_per_second'] / 1e12:.0f} TFLOP/s, {floor['memory_ms']:.2f} for their outputs and "
            f"gradients at {found['rates']['bytes_per_second'] / 1e9:.0f} GB/s, both measured."
        )
    if "failed" not in found.get("kernels", {"failed": True}):
        rows = [[kind, f"{spent:.2f}"] for kind, spent in found["kernels"]["kinds"].items()]
        lines.append("\n" + markdown(("GPU time of a step", "ms"), rows))
    if isinstance(found.get("differences"), list):
        sides = [side for side in SIDES if side in found["differences"][0]]
        rows = [
            [f"{('even', 'odd')[one['parity']]} step", str(one["block"]), *(f"{one[side]:.1e}" for side in sides)]
            for one in found["differences"]
        ]
        columns = ("gradients, |float32 - float64| / |float64|", "block", *(SIDES[side] for side in sides))
        lines.append(markdown(columns, rows))
    return "\n".join(lines) + "\n"


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--steps", type=int, default=24, help="of a measured epoch (default: 24)")
    parser.add_argument("--only", choices=["rates", "differences", "kernels", "engine", "plain"], help="one part")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu: to try the script")
    parser.add_argument("--shrink", action="store_true", help="tiny networks, to try the script")
    options = parser.parse_args(arguments)
    options.given = arguments
    found = measure(options)
    text = table(found)
    record.write_text(text, options.out / "gpu.md")
    say(text)
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, *sys.argv[1:]))
