"""The state of a training after its last whole epoch: saved, and resumed from to the same bits or not at all.

Each state is also a link of the training's hash chain, so that whoever has the chain can tell whether a state that is
shown to them, or that they trained themselves, is the one that this training went through.
"""

import copy
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict

import torch
from torch import Tensor
from torch.optim import Adam

from ffrepro import record
from ffrepro.errors import MachineError, UserError
from ffrepro.negatives import Memory
from ffrepro.network import Network

# What a machine does while a state is read, and says nothing of the file
MACHINES = (torch.OutOfMemoryError, torch.AcceleratorError)
UNREADABLE = (errno.EACCES, errno.EIO, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT)


class Link(TypedDict):
    """What a record keeps of the state after an epoch."""

    epoch: int
    weights: str  # hash of the network's tensors
    optimizer: str  # hash of the optimizers' tensors and of the memory of margins
    link: str  # hash of the link before and of the three above


def chained(before: str, epoch: int, weights: str, optimizer: str) -> Link:
    """The link after an epoch: SHA-256 of "before, epoch, weights, optimizer", each on a line."""
    link = record.text_hash(f"{before}\n{epoch}\n{weights}\n{optimizer}\n")
    return {"epoch": epoch, "weights": weights, "optimizer": optimizer, "link": link}


class Checkpoint:
    """One file with weights, optimizers' state, memory of margins, history and chain, and the key it belongs to.

    key: what must agree to go on from it (parameters, seed, data, code, environment). first: the link that the chain
    starts from. On CUDA a state is hashed and written while the next epoch trains (170 MB for 12 blocks, as long as a
    good part of an epoch); leaving the context waits for it. Without a path nothing is saved or resumed. keep: every
    state also stays, as EPOCH.pt in the folder named like the file, for `ffrepro audit`.
    """

    def __init__(
        self,
        path: Path | None,
        key: dict[str, str],
        first: str,
        network: Network,
        adams: list[Adam],
        memory: Memory,
        *,
        keep: bool = False,
    ) -> None:
        self.path, self.key, self.network, self.adams, self.memory = path, key, network, adams, memory
        self.first, self.keep = first, keep
        self.started = now()
        self.chain: list[Link] = []
        self.device = next(network.parameters()).device
        self.writer = ThreadPoolExecutor(1)
        self.written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()

    def save(self, history: list[dict[str, Any]]) -> None:
        """Raises UserError when the file cannot be written (on CUDA, that of the epoch before)."""
        state = {
            "key": self.key,
            "started": self.started,
            **snapshot(self.network, self.adams, self.memory),
            "history": list(history),
        }
        if self.device.type == "cpu":
            self._write(state)
        else:
            self._wait()
            self.written = self.writer.submit(self._write, _on_host(state))

    def resume(self) -> tuple[list[dict[str, Any]], str]:
        """Take the file's state over, if it is this training's: (history so far, one line about it or "")."""
        if not self.path or not self.path.exists():
            return [], ""
        try:
            state = read(self.path, self.device)
        except MachineError:  # it may be whole all the same
            raise
        except UserError as error:
            return [], f"{error}: not resumed, training starts anew"
        differs = [name for name in self.key if state["key"].get(name) != self.key[name]]
        if differs:
            return [], f"{self.path.name}: of other {', '.join(differs)}: not resumed, training starts anew"
        if not self._taken_over(state):
            return [], f"{self.path.name}: damaged, not what its own chain names: not resumed, training starts anew"
        self.started, self.chain = state["started"], state["chain"]
        history: list[dict[str, Any]] = state["history"]
        kept = kept_state(self.path.with_suffix(""), len(history))
        if self.keep and not kept.exists():  # killed between the two, or not kept until now
            record.write(kept, partial(shutil.copyfile, self.path))
        return history, f"{self.path.name}: going on after epoch {len(history)}"

    def _taken_over(self, state: dict[str, Any]) -> bool:
        """Whether all of the state is what was saved, to the bit; else network, optimizers and memory stay as they are.

        The archive's own checksums are not looked at by `torch.load`.
        """
        before = copy.deepcopy(snapshot(self.network, self.adams, self.memory))
        try:
            whole = state["seal"] == seal(state) and 0 < len(state["chain"]) == len(state["history"])
            link = self.first
            for epoch, its in enumerate(state["chain"], 1):
                whole = whole and its == chained(link, epoch, its["weights"], its["optimizer"])
                link = its["link"]
            if whole := whole and hashes(state) == (its["weights"], its["optimizer"]):
                restore(state, self.network, self.adams, self.memory)  # may convert, and leave out
                whole = hashes(snapshot(self.network, self.adams, self.memory)) == hashes(state)
        except MACHINES:
            raise
        except Exception:  # what is no tensor, or one of another shape, is refused by PyTorch in its own ways
            whole = False
        if not whole:
            restore(before, self.network, self.adams, self.memory)
        return whole

    def _wait(self) -> None:
        if self.written:
            self.written.result()

    def _write(self, state: dict[str, Any]) -> None:
        before = self.chain[-1]["link"] if self.chain else self.first
        weights, optimizer = hashes(state)
        self.chain = [*self.chain, chained(before, len(state["history"]), weights, optimizer)]
        if path := self.path:
            state = {**state, "chain": self.chain}
            record.write(path, partial(_save, {**state, "seal": seal(state)}))
            folder = path.with_suffix("")
            if len(self.chain) == 1:  # what is there is another training's
                _forget_states(folder)
            if self.keep:
                record.write(kept_state(folder, len(self.chain)), partial(shutil.copyfile, path))


def _save(state: dict[str, Any], path: Path) -> None:
    """Raises OSError where it cannot be written; PyTorch by itself, given a path, would not say why."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # on a full disk, of its archive that has no end
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def snapshot(network: Network, adams: list[Adam], memory: Memory) -> dict[str, Any]:
    """All that a training changes, as a state; shares its tensors."""
    return {
        "network": network.state_dict(),
        "optimizers": [adam.state_dict() for adam in adams],
        "memory": memory._asdict(),
    }


def restore(state: dict[str, Any], network: Network, adams: list[Adam], memory: Memory) -> None:
    """Go back to a state, in place.

    Raises ValueError, and what else a state that is none makes Python raise, before anything is changed: Adam takes
    over moments of any shape and layout, and would read and write beyond them.
    """
    fits(state["network"], network.state_dict())
    fits(state["memory"], memory._asdict())
    learned = [_moments(adam, saved["state"]) for adam, saved in zip(adams, state["optimizers"], strict=True)]
    network.load_state_dict(state["network"])
    for adam, moments in zip(adams, learned, strict=True):
        # moments and step counts only: what the optimizer does is the row's to say, not a file's
        adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
    for name, mine in memory._asdict().items():
        mine.copy_(state["memory"][name])


def _moments(adam: Adam, saved: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """Copies of an optimizer's saved moments and step counts, laid out in memory like its weights."""
    weights = [weight for group in adam.param_groups for weight in group["params"]]
    copies = {}
    for place, moments in saved.items():
        mine = {"step": torch.tensor(0.0), "exp_avg": weights[place], "exp_avg_sq": weights[place]}
        fits(moments, mine)
        copies[place] = {
            name: torch.empty_like(mine[name], device=value.device).copy_(value) for name, value in moments.items()
        }
    return copies


def fits(saved: Any, mine: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors have the names, shapes and types of mine."""
    found, wanted = ({name: (value.shape, value.dtype) for name, value in of.items()} for of in (saved, mine))
    if found != wanted:
        raise ValueError("a state of another network")


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """A checkpoint's state. Raises UserError when the file is not a whole one, MachineError where it cannot be read."""
    record.regular(path)
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        missing = {"key", "started", "network", "optimizers", "memory", "history", "chain", "seal"} - state.keys()
        if not missing and not (isinstance(state["key"], dict) and isinstance(state["started"], str)):
            raise TypeError
    except MACHINES:
        raise
    except Exception as error:  # torch.load has no error of its own: a damaged file can raise almost anything
        if isinstance(error, OSError) and error.errno in UNREADABLE:
            raise MachineError(f"{path}: cannot be read ({error.strerror}); run again, or delete it") from None
        raise UserError(f"{path.name}: not a whole checkpoint ({type(error).__name__})") from None
    if missing:
        raise UserError(f"{path.name}: not a whole checkpoint (without {', '.join(sorted(missing))})")
    return state


def kept_state(folder: Path, epoch: int) -> Path:
    """Where the state after an epoch stays."""
    return folder / f"{epoch}.pt"


def _forget_states(folder: Path) -> None:
    """Delete the kept states, and the folder if it holds nothing else."""
    for state in folder.glob("*.pt"):
        if state.stem.isdecimal():
            state.unlink()
    with suppress(OSError):
        folder.rmdir()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def seal(state: dict[str, Any]) -> str:
    """SHA-256 of what a state holds beside tensors, which its chain names."""
    return record.text_hash(json.dumps([state[name] for name in ("key", "started", "history", "chain")]))


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a state by its place, such as network.blocks.0.conv.weight or optimizers.0.3.exp_avg."""
    moments = [adam["state"] for adam in state["optimizers"]]
    return dict(_tensors({"network": state["network"], "optimizers": moments, "memory": state["memory"]}))


def hashes(state: dict[str, Any]) -> tuple[str, str]:
    """(hash of the weights, hash of the optimizers' tensors and the memory) of a checkpoint's state."""
    return record.tensors_hash(state["network"]), record.tensors_hash(tensors({**state, "network": {}}))


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested state by its place, such as optimizers.0.3.exp_avg."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}" if name else str(key))


def _on_host(value: Any) -> Any:
    """A copy whose tensors lie on the host, so that training may go on."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _on_host(part) for name, part in value.items()}
    return [_on_host(part) for part in value] if isinstance(value, list) else value
