"""What training and evaluation cost on this machine: the plain loop and the engine side by side, against the floor.

Every figure is measured in a process of its own, the contestants in turn, round after round, so that a machine whose
speed drifts slows all of them; the figures are medians, and ratios are taken round by round. Images are random pixels
in the data set's shape: nothing here depends on what they show.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ffrepro import __version__, determinism, devices, errors, record
from ffrepro.config import Experiment, changed
from ffrepro.data import Split
from ffrepro.errors import MachineError, UserError
from ffrepro.evaluation import goodness_of_pairs, goodness_table
from ffrepro.network import Convolutional, autocast
from ffrepro.report import markdown
from ffrepro.training import build

WARM_UP = 2  # steps before the clock starts: an even and an odd one
EVALUATED = 100  # images, each under every label
DECIDED = 0.03  # share of (image, label) pairs that evaluation in half precision looks at again, in float32
MIB = 2**20
GROWTH_ROUNDS = 3  # at most: eleven measurements a round, and nothing is divided by another

# --- one measurement, in a process of its own ------------------------------------------------------------------------


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Run one case: what (a key of CASES), device, fast, threads, row (an experiment), steps.

    Returns images per second and the process's peak memory in MiB (on CUDA the device's), or the machine's rates.
    """
    plain = case["what"].startswith("plain")
    if case["threads"]:
        torch.set_num_threads(case["threads"])
    else:
        devices.keep_to_cores()
    device = torch.device(case["device"])
    if not plain:
        determinism.switch_on(fast=case["fast"])
        if device.type == "cpu":
            devices.keep_pages()
    elif device.type == "cuda":
        determinism.switch_on(fast=True)  # cuDNN's autotuning, as in the authors' code, and no TF32 in float32
    with devices.faults("bench", device):
        result = CASES[case["what"]](Experiment.model_validate(case["row"]), device, case["steps"])
    return result if case["what"] == "rates" else {**result, "peak_mib": peak_memory(device)}


def peak_memory(device: torch.device) -> float:
    """In MiB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def random_images(row: Experiment, n: int) -> Split:
    """`n` images of the row's shape in random pixels, and random labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *row.shape), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.randint(0, row.classes, (n,), generator=generator))


def untrained_network(row: Experiment, device: torch.device, *, plain: bool) -> Convolutional:
    """The row's network before its first step; plain: in the order of memory that the plain loop's tensors have."""
    network = build(row, 0, device)
    assert isinstance(network, Convolutional)
    if plain:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # PyTorch's stub lacks it
    return network


def plain_training(row: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    """The plain loop's speed over so many steps, its images read by PyTorch's data loader."""
    from ffrepro import plain  # with torchvision and a data loader, which would count as the engine's memory

    training, network = row.training, untrained_network(row, device, plain=True)
    adams = plain.optimizers(network, training)
    workers = 4 if device.type == "cuda" else 2  # the authors' number; on a small CPU more would stand in the way
    batches = plain.batches(random_images(row, (WARM_UP + steps) * training.batch), row, workers, device)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            begun = _now(device)
        x, y = (part.to(device, non_blocking=True) for part in next(batches))
        wrong = (y + torch.randint(1, row.classes, y.shape, device=device)) % row.classes
        with autocast(device, training.precision):
            plain.step(network, adams, x, y, wrong, step, training)
    return {"images_per_second": steps * training.batch / (_now(device) - begun)}


def _engine_training(row: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    images = random_images(row, steps * row.training.batch)
    engine = devices.untrained(row, images.to(device))
    for epoch in range(3):  # on CUDA the first runs as it is, the second captures; an epoch may have a step or two only
        begun = _now(device)
        engine.epoch(0, epoch)
    return {"images_per_second": len(images.labels) / (_now(device) - begun)}


def _plain_evaluation(row: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    from ffrepro import plain

    images = random_images(row, EVALUATED).images.to(device).float() / 255
    network = untrained_network(row, device, plain=True).eval()
    with autocast(device, row.training.precision):
        return _repeated(lambda: plain.evaluate(network, images, row), device, steps)


def _engine_evaluation(row: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    """The goodness table, and in half precision a second look in float32 at a share of the pairs (`DECIDED`)."""
    images, network = random_images(row, EVALUATED).images.to(device), untrained_network(row, device, plain=False)
    pairs = round(DECIDED * len(images) * row.classes) if row.training.precision != "float32" else 0
    image = torch.arange(pairs, device=device) % len(images)

    def evaluate() -> None:
        goodness_table(network, images, row)
        if pairs:
            goodness_of_pairs(network, images[image], image % row.classes, row)

    return _repeated(evaluate, device, steps)


def _repeated(evaluate: Callable[[], object], device: torch.device, times: int) -> dict[str, float]:
    evaluate()
    begun = _now(device)
    for _ in range(times):
        evaluate()
    return {"images_per_second": times * EVALUATED / (_now(device) - begun)}


def machine_rates(row: Experiment, device: torch.device, steps: int) -> dict[str, float]:
    """What the machine can do at best: matrix products in the row's precision, and copying memory."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.rand(n, n, device=device).to(getattr(torch, row.training.precision))
    long = torch.zeros(256 * MIB // 4, device=device)
    copy = torch.zeros_like(long)
    matmul, copying = [], []
    for _ in range(WARM_UP + steps):
        begun = _now(device)
        torch.matmul(a, a)
        middle = _now(device)
        copy.copy_(long)
        matmul.append(middle - begun)
        copying.append(_now(device) - middle)
    return {
        "flops_per_second": 2 * n**3 / statistics.median(matmul[WARM_UP:]),
        "bytes_per_second": 2 * long.numel() * 4 / statistics.median(copying[WARM_UP:]),
    }


CASES: dict[str, Callable[[Experiment, torch.device, int], dict[str, float]]] = {
    "plain training": plain_training,
    "engine training": _engine_training,
    "plain evaluation": _plain_evaluation,
    "engine evaluation": _engine_evaluation,
    "rates": machine_rates,
}

# --- the floor -------------------------------------------------------------------------------------------------------


def work(row: Experiment) -> tuple[float, float]:
    """What one training image costs at the least: (floating-point operations, bytes to and from memory).

    Operations: those of the convolutions, for both halves of the batch, averaged over even and odd steps: forward of
    every block but a last one that waits, weight gradients of every block that learns, input gradients of the
    second block of each window. Bytes: each of these convolutions' outputs written once and read once, and so are
    their gradients.
    """
    channels, height, width = row.shape
    channels, size = channels + 1, 4 if row.training.precision == "float32" else 2
    convolutions, outputs = [], []
    for out, pool in row.network.parsed():
        convolutions.append(2 * 9 * channels * out * height * width)
        outputs.append(out * height * width)
        channels = out
        if pool:
            height, width = height // 2, width // 2
    last, operations, values = len(convolutions) - 1, 0.0, 0.0
    for step in (0, 1):
        for i, cost in enumerate(convolutions):
            layer_wise = row.training.update == "layer-wise"
            learns = layer_wise or (i + step) % 2 == 1  # has a loss; else it is the first of a window, or waits
            if not learns and i == last:
                continue
            second = learns and not layer_wise and i > 0
            operations += cost * (3 if second else 2)
            values += outputs[i] * 4
    return 2 * operations / 2, 2 * values * size / 2  # two halves, two steps


# --- all of them -----------------------------------------------------------------------------------------------------


def child(case: dict[str, Any], at_once: int = 1) -> dict[str, float]:
    """Measure a case in a process of its own; `at_once` of them side by side, their images per second added up."""
    command = [sys.executable, "-m", "ffrepro.bench", json.dumps(case)]
    pipe = subprocess.PIPE  # their input stays open as long as this process lives: `end_with_parent`
    processes = [  # in sessions of their own: Ctrl-C in a terminal would reach them while they start
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) for _ in range(at_once)
    ]
    results = [(process.stdout.read() if process.stdout else "", process.wait()) for process in processes]
    if code := max((code for _, code in results), key=abs):
        kind = MachineError if code == MachineError.exit_code else UserError
        raise kind(f"bench: {case['what']} ended with exit code {code}; see above")
    found = [json.loads(text) for text, _ in results]
    return {key: sum(one[key] for one in found) for key in found[0]}


def end_with_parent() -> None:
    """End this process once standard input ends, as it does with whoever holds its other end, however that ends."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def variants(row: Experiment) -> Iterable[tuple[str, str, Experiment]]:
    """(axis, value, row) to see how cost grows."""
    blocks, row = row.network.parsed(), changed(row, {"evaluation.vote": "last"})  # the last 3 of 2 are none
    for factor in (4, 2, 1):
        batch = max(2, row.training.batch // factor)
        yield "batch", str(batch), changed(row, {"training.batch": batch})
    for factor in (4, 2, 1):
        text = " ".join(f"{max(1, out // factor)}{'P' if pool else ''}" for out, pool in blocks)
        yield "width", f"1/{factor}" if factor > 1 else "1", changed(row, {"network.blocks": text})
    fewest = min(2, len(blocks))
    for count in sorted({max(fewest, len(blocks) // 3), max(fewest, 2 * len(blocks) // 3), len(blocks)}):
        yield "blocks", str(count), changed(row, {"network.blocks": " ".join(row.network.blocks.split()[:count])})


def run(
    row: Experiment,
    device: str,
    machine: str,
    command: str,
    *,
    rounds: int,
    steps: int,
    fast: bool,
    growth: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The whole benchmark of a row on a device: medians, spreads and ratios. On a CPU the plain loop is float32's."""
    if row.network.norm == "length" or row.training.update == "backprop":
        raise UserError("bench: given a row of another kind; allowed: rows of the authors' loop, with label planes")
    plain_row = changed(row, {"training.precision": "float32"}) if device == "cpu" else row

    def case(what: str, chosen: Experiment, threads: int = 0) -> dict[str, Any]:
        content = chosen.model_dump(mode="json")
        return {"what": what, "device": device, "fast": fast, "threads": threads, "row": content, "steps": steps}

    found: dict[str, list[dict[str, float]]] = {what: [] for what in CASES}
    for number in range(rounds):
        for what, results in found.items():
            results.append(child(case(what, plain_row if what.startswith("plain") else row)))
        say(f"round {number + 1} of {rounds}: " + ", ".join(_brief(what, its[-1]) for what, its in found.items()))
    measured = {what: _summary(results) for what, results in found.items()}
    (operations, moved), per_epoch = work(row), row.steps * row.training.batch
    rates = {name: value["median"] for name, value in measured["rates"].items()}
    return {
        "command": command,
        "machine": machine,
        "device": device,
        "ffrepro": __version__,
        "torch": version("torch"),
        "rounds": rounds,
        "blocks": row.network.blocks,
        "batch": row.training.batch,
        "precision": {"plain": plain_row.training.precision, "engine": row.training.precision},
        "kernels": "fast" if fast else "deterministic",
        "measured": measured,
        "ratio": {
            what: _spread(
                [
                    engine["images_per_second"] / plain["images_per_second"]
                    for plain, engine in zip(found[f"plain {what}"], found[f"engine {what}"], strict=True)
                ]
            )
            for what in ("training", "evaluation")
        },
        "images_per_epoch": per_epoch,
        "seconds_per_epoch": {
            who: per_epoch / measured[f"{who} training"]["images_per_second"]["median"] for who in ("plain", "engine")
        },
        "floor_seconds_per_epoch": {
            "operations": per_epoch * operations / rates["flops_per_second"],
            "memory": per_epoch * moved / rates["bytes_per_second"],
        },
        "growth": _growth(row, case, min(rounds, GROWTH_ROUNDS), say) if growth else [],
    }


def _growth(
    row: Experiment, case: Callable[..., dict[str, Any]], rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    points: list[tuple[str, str, dict[str, Any], int]] = [
        (axis, value, case("engine training", chosen), 1) for axis, value, chosen in variants(row)
    ]
    points += [
        ("seeds at once", str(n), case("engine training", row, devices.cores(n)), n)
        for n in (1, 2)
        if n <= devices.cores()
    ]
    found: list[list[dict[str, float]]] = [[] for _ in points]
    for number in range(rounds):
        for results, (_, _, chosen, at_once) in zip(found, points, strict=True):
            results.append(child(chosen, at_once))
        say(f"growth: round {number + 1} of {rounds}")
    return [
        {"axis": axis, "value": value, **_summary(results)}
        for (axis, value, _, _), results in zip(points, found, strict=True)
    ]


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def _summary(results: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {key: _spread([one[key] for one in results]) for key in results[0]}


def _brief(what: str, result: dict[str, float]) -> str:
    if what == "rates":
        return f"{result['flops_per_second'] / 1e9:.0f} GFLOP/s, {result['bytes_per_second'] / 1e9:.1f} GB/s"
    return f"{what} {result['images_per_second']:.0f} images/s"


def table(result: dict[str, Any]) -> str:
    """The benchmark as Markdown."""
    measured, precision = result["measured"], result["precision"]
    contest = []
    for what in ("training", "evaluation"):
        both = [measured[f"{who} {what}"] for who in ("plain", "engine")]
        speeds = [_cell(one["images_per_second"], ".1f") for one in both]
        peaks = [f"{one['peak_mib']['median']:.0f}" for one in both]
        contest.append([what, *speeds, _cell(result["ratio"][what], ".2f"), *peaks])
    grown = [
        [one["axis"], one["value"], _cell(one["images_per_second"], ".1f"), f"{one['peak_mib']['median']:.0f}"]
        for one in result["growth"]
    ]
    seconds, floor = result["seconds_per_epoch"], result["floor_seconds_per_epoch"]
    rates = {name: value["median"] / 1e9 for name, value in measured["rates"].items()}
    parts = [
        f"`{result['command']}`\n",
        f"{result['machine']}; medians of {result['rounds']} rounds (smallest to largest); ffrepro "
        f"{result['ffrepro']}, torch {result['torch']}. Network {result['blocks']}, batch {result['batch']}; plain "
        f"loop in {precision['plain']}, engine in {precision['engine']} with {result['kernels']} kernels.\n",
        markdown(("", "plain, images/s", "engine, images/s", "ratio", "plain, peak MiB", "engine, peak MiB"), contest),
        f"An epoch of {result['images_per_epoch']} images: plain {seconds['plain']:.1f} s, engine "
        f"{seconds['engine']:.1f} s. Floor: {floor['operations']:.1f} s for the convolutions' operations at "
        f"{rates['flops_per_second']:.0f} GFLOP/s, measured on matrix products; {floor['memory']:.1f} s for their "
        f"outputs and gradients at {rates['bytes_per_second']:.1f} GB/s, measured on copying.\n",
    ]
    if grown:
        rounds = result["growth"][0]["images_per_second"]["n"]
        parts.append(markdown((f"engine, training, {rounds} rounds", "", "images/s", "peak MiB"), grown))
    return "\n".join(parts)


def _cell(spread: dict[str, float], digits: str) -> str:
    return f"{spread['median']:{digits}} ({spread['min']:{digits}} to {spread['max']:{digits}})"


def write(result: dict[str, Any], path: Path) -> None:
    """PATH.json and PATH.md."""
    record.write_json(result, path.with_name(f"{path.name}.json"))
    record.write_text(table(result), path.with_name(f"{path.name}.md"))


if __name__ == "__main__":
    end_with_parent()
    sys.exit(errors.run(lambda: print(json.dumps(measure(json.loads(sys.argv[1]))))))
