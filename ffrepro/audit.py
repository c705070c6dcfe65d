"""Keep a training honest at a small part of its cost: train randomly drawn epochs again and compare with the chain.

The auditor needs the record, the states that were kept beside the training (`reproduce --keep-states`) and the data.
State e - 1 must be the one that the chain names; epoch e trained from it, here and now, must end in the state that the
chain names: bitwise where the environment is the record's, elsewhere within `TOLERANCE`.
"""

import gc
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffrepro import checkpoint, config, determinism, negatives, proof, record, training
from ffrepro.config import Params
from ffrepro.data import Split
from ffrepro.engine import Engine
from ffrepro.errors import UserError
from ffrepro.evidence import Run
from ffrepro.progress import tell
from ffrepro.step import optimizers
from ffrepro.verdict import worst

TOLERANCE = 0.5
"""Largest distance between two machines' results of one epoch from the same state, in any one tensor, as a share of how
far the auditor's epoch moved it. What was measured is in docs/proof.md."""
MOMENTS = 2.0
"""The same for the optimizers' moments and the memory of margins, which are averages over an epoch's last steps: of two
unrelated gradients of one size, the difference is 1.41 times as large as each."""


class Finding(NamedTuple):
    """holds: True, False, or None where it cannot be told: a state that it takes was not shown."""

    epoch: int
    found: str
    holds: bool | None


def draw(epochs: int, k: int, seed: int) -> list[int]:
    """k different ones of all epochs at random, whatever states are shown: what is missing must not go undrawn."""
    if not 1 <= k <= epochs:
        raise UserError(f"--epochs: given {k}; allowed: 1 to {epochs}, the run's epochs")
    return sorted(random.Random(seed).sample(range(1, epochs + 1), k))


def detection(epochs: int, altered: int, drawn: int) -> float:
    """Probability that `drawn` of `epochs` epochs, drawn without putting back, hit one of `altered` ones."""
    return 1 - math.comb(epochs - altered, drawn) / math.comb(epochs, drawn)


def audit(run: Run, data: Split, states: Path, drawn: list[int], device: torch.device) -> Iterator[Finding]:
    """Train each drawn epoch again.

    data: the row's training split. states: the folder of the kept states. Raises UserError for a state that is not the
    chain's.
    """
    facts, row, seed = run.facts, run.row, run.facts["seed"]
    if record.code_hash() != facts["code"]:
        raise UserError(f"{run.folder}: trained by another version of the code than this one; audit with that version")
    if record.tensors_hash(data._asdict()) != facts["data"]:
        raise UserError(f"{run.folder}: broken link: training data other than this project's {row.data.name}")
    chain = {link["epoch"]: link for link in facts["chain"]}
    here, on_device = record.same_environment(record.environment(device), facts["environment"]), data.to(device)
    elsewhere = f"{'perhaps ' if here is None else ''}another environment than the record's"
    for epoch in drawn:
        gc.collect()  # an engine and its steps hold one another, and on CUDA the graphs' memory: the epoch's before
        network = training.build(row, seed, device)
        adams, memory = optimizers(network, row.training), negatives.memory(len(data.labels), row.classes, device)
        if epoch > 1:
            path = checkpoint.kept_state(states, epoch - 1)
            if not path.exists():
                yield Finding(epoch, f"the state before it, {path.parent.name}/{path.name}, was not shown", None)
                continue
            state = _state(path, chain[epoch - 1], device)
            try:
                checkpoint.restore(state, network, adams, memory)
            except checkpoint.MACHINES:
                raise
            except Exception:  # what stands where tensors should can fail in any way
                raise UserError(f"{path.parent.name}/{path.name}: not a state of this row's network") from None
        start = {name: value.clone() for name, value in learned(checkpoint.snapshot(network, adams, memory)).items()}
        if wrong := [name for name, value in start.items() if not value.isfinite().all()]:
            yield Finding(epoch, f"cannot be trained again: {wrong[0]} in the state before it is not finite", False)
            continue
        before = ~memory.images.isnan()  # pairs that were trained on, and stay so
        try:
            Engine(network, adams, memory, on_device, row).epoch(seed, epoch - 1)
        except UserError:  # which tells a trainer to choose another learning rate
            yield Finding(epoch, "cannot be trained again: a loss is no number", False)
            continue
        mine = checkpoint.snapshot(network, adams, memory)
        hashes = dict(zip(("weights", "optimizer"), checkpoint.hashes(mine), strict=True))
        other = [name for name, value in hashes.items() if value != chain[epoch][name]]
        if not other:
            text = ", ".join(f"{name} {value[:12]}" for name, value in hashes.items())
            yield Finding(epoch, f"the same bits: {text}", True)
        elif here:
            text = ", ".join(f"{name} {hashes[name][:12]}, not {chain[epoch][name][:12]}" for name in other)
            yield Finding(epoch, f"other bits in the same environment: {text}", False)
        elif not (path := checkpoint.kept_state(states, epoch)).exists():
            yield Finding(epoch, f"{elsewhere}, and the state after it was not shown", None)
        else:
            after = _state(path, chain[epoch], device)
            theirs, ours = learned(after), learned(mine)
            try:
                checkpoint.fits(theirs, ours)
            except ValueError:
                raise UserError(f"{path.parent.name}/{path.name}: not a state of this row's network") from None
            holds, how = _near(ours, theirs, start)
            if gone := int((before & after["memory"]["images"].isnan()).sum()):
                holds, how = False, f"{how}; {gone} margins are gone"
            yield Finding(epoch, f"{elsewhere}: {how}", holds)


def _near(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: dict[str, Tensor]) -> tuple[bool, str]:
    """Whether two machines' results of an epoch are within what rounding may make of one start."""
    within = {name: ours[name] for name in ours if name.startswith("network.")}
    beside = {name: ours[name] for name in ours.keys() - within.keys()}
    share, moments = distance(within, theirs, start), distance(beside, theirs, start)
    how = (
        f"weights and statistics off by {100 * share:.1f} % of their movement ({100 * TOLERANCE:g} % allowed), "
        f"moments and margins by {100 * moments:.1f} % ({100 * MOMENTS:g} %)"
    )
    return share <= TOLERANCE and moments <= MOMENTS, how


def learned(state: dict[str, Any]) -> dict[str, Tensor]:
    """All that an epoch changes, by its place: weights, running statistics, optimizers' moments, memory of margins.

    A pair that was never trained on has a margin of 0 here, where the memory has NaN.
    """
    return {
        name: value.nan_to_num(0, torch.inf, -torch.inf) if name.startswith("memory.") else value
        for name, value in checkpoint.tensors(state).items()
    }


def distance(mine: dict[str, Tensor], theirs: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """The largest |mine - theirs| / |mine - start| of any floating-point tensor; what is not in `start` began as 0.

    Infinite where one of them holds what is no number: nothing else compares with that.
    """
    shares = [0.0]
    for name, value in mine.items():
        if value.is_floating_point():
            others = theirs[name], start.get(name, torch.zeros_like(value))
            apart, moved = (float((value - other).double().norm()) for other in others)
            if not (math.isfinite(apart) and math.isfinite(moved)):
                return math.inf
            if moved:
                shares.append(apart / moved)
            elif apart:
                return math.inf
    return max(shares)


def _state(path: Path, link: dict[str, Any], device: torch.device) -> dict[str, Any]:
    state = checkpoint.read(path, device)
    try:
        found = checkpoint.hashes(state)
    except checkpoint.MACHINES:
        raise
    except Exception:  # what stands where tensors should can fail in any way
        raise UserError(f"{path.parent.name}/{path.name}: not a whole checkpoint") from None
    if found != (link["weights"], link["optimizer"]):
        raise UserError(
            f"{path.parent.name}/{path.name}: not the state that the chain names after epoch {link['epoch']}"
        )
    return state


def folder(states: Path) -> Path:
    """The folder of states that was given. Raises UserError where there is none."""
    try:
        why = "" if states.is_dir() else "no folder there"
    except OSError as error:
        why = f"{error.strerror}"
    if why:
        raise UserError(f"--states: given {config.plain(states)}: {why}; allowed: a folder of kept states")
    return states


def report(run: Run, params: Params, data: Split, states: Path, k: int, seed: int | None, device: torch.device) -> int:
    """Draw, train, compare, print: 0 all follow, 3 one does not, 4 one cannot be told. states: folder of the states."""
    determinism.switch_on()
    name, n = f"{run.facts['experiment']}-{run.facts['seed']}", run.row.training.epochs
    declared = proof.declared(run, params)
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    drawn = draw(n, k, seed)
    print(f"{name}: drawn of {n} epochs: {', '.join(map(str, drawn))} (--draw {seed})")
    if not declared.holds:
        tell(f"{declared.what}: {declared.found}", None)
    codes = {0}
    for epoch, found, holds in audit(run, data, states, drawn, device):
        tell(f"epoch {epoch}: {found}", holds)
        codes.add(proof.CODES[holds])
    some = dict.fromkeys(max(1, round(n * share)) for share in (0.01, 0.1, 0.5))
    chances = ", ".join(f"{100 * detection(n, altered, k):.0f} % if {altered} of {n}" for altered in some)
    print(f"a draw of {k} hits an altered epoch with a probability of {chances} were altered")
    return worst(codes)
