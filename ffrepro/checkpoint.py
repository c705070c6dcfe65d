"""The state of a training after its last whole epoch: saved, and resumed from to the same bits or not at all."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Adam

from ffrepro import record
from ffrepro.negatives import Memory
from ffrepro.network import Network


class Checkpoint:
    """One file with weights, optimizers' state, memory of margins and history, and the key it belongs to.

    key: what must agree to go on from it (parameters, seed, data, code, environment). On CUDA the file is written while
    the next epoch trains (170 MB for 12 blocks, as long as a good part of an epoch); leaving the context waits for it.
    Without a path nothing is saved or resumed.
    """

    def __init__(
        self, path: Path | None, key: dict[str, str], network: Network, adams: list[Adam], memory: Memory
    ) -> None:
        self.path, self.key, self.network, self.adams, self.memory = path, key, network, adams, memory
        self.device = next(network.parameters()).device
        self.writer = ThreadPoolExecutor(1)
        self.written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()

    def save(self, history: list[dict[str, Any]]) -> None:
        """Raises UserError when the file cannot be written (on CUDA, that of the epoch before)."""
        if not self.path:
            return
        state = {
            "key": self.key,
            "network": self.network.state_dict(),
            "optimizers": [adam.state_dict() for adam in self.adams],
            "memory": self.memory._asdict(),
            "history": list(history),
        }
        if self.device.type == "cpu":
            _write(state, self.path)
        else:
            self._wait()
            self.written = self.writer.submit(_write, _on_host(state), self.path)

    def resume(self) -> tuple[list[dict[str, Any]], str]:
        """Take the file's state over, if it is this training's: (history so far, one line about it or "")."""
        if not self.path or not self.path.exists():
            return [], ""
        try:
            state = torch.load(self.path, map_location=self.device, weights_only=True)
            differs = [name for name in self.key if state["key"].get(name) != self.key[name]]
        except Exception as error:  # torch.load has no error of its own: a damaged file can raise almost anything
            why = f"not a whole checkpoint ({type(error).__name__})"
            return [], f"{self.path.name}: {why}: not resumed, training starts anew"
        if differs:
            return [], f"{self.path.name}: of other {', '.join(differs)}: not resumed, training starts anew"
        self.network.load_state_dict(state["network"])
        for adam, saved in zip(self.adams, state["optimizers"], strict=True):
            adam.load_state_dict(saved)
        for mine, saved in zip(self.memory, state["memory"].values(), strict=True):
            mine.copy_(saved)
        history: list[dict[str, Any]] = state["history"]
        return history, f"{self.path.name}: going on after epoch {len(history)}"

    def _wait(self) -> None:
        if self.written:
            self.written.result()


def _write(state: dict[str, Any], path: Path) -> None:
    record.write(path, lambda part: torch.save(state, part))


def _on_host(value: Any) -> Any:
    """A copy whose tensors lie on the host, so that training may go on."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _on_host(part) for name, part in value.items()}
    return [_on_host(part) for part in value] if isinstance(value, list) else value
