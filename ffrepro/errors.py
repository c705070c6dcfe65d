"""Mistakes that a person can mend: an entry point prints them, one line each, and exits with their code."""

import contextlib
import difflib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

EXIT_CODE_FILE = "FFREPRO_EXIT_CODE_FILE"
"""Variable that names a file for a failing stage's exit code, which DVC keeps to itself."""


class UserError(Exception):
    """What was given cannot be used: which file or field, what it holds, what is allowed, what to do."""

    exit_code = 2


class MachineError(UserError):
    """What was asked for is sound, but this machine cannot do it."""

    exit_code = 5


class Stop(BaseException):  # no KeyboardInterrupt, which Typer would take for itself
    """Ctrl-C, or SIGTERM as `kill`, `docker stop` and a cluster's time limit send it.

    gone: called when nothing holds it any more.
    """

    def __init__(self, number: int, gone: Callable[[], None]) -> None:
        self.exit_code, self.gone = 128 + number, gone

    def __del__(self) -> None:
        self.gone()


def end_undisturbed() -> None:
    """Let SIGINT and SIGTERM do nothing, to the process's end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # no SIG_IGN: of a signal that arrives right now and is then to be ignored, Python prints a traceback
        signal.signal(number, lambda number, frame: None)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM raise Stop, until it arrives here, and those that follow do nothing.

    On its way it can get lost, and is then raised again a moment later: Python drops what is raised in a `__del__` or
    for a weak reference, and PyTorch, while it is imported, what NumPy's import raises.
    """
    hook, arrived = sys.unraisablehook, False

    def stop(number: int, frame: FrameType | None) -> None:
        def again(alarm: int, frame: FrameType | None) -> None:
            if not arrived:
                raise Stop(number, lost)

        end_undisturbed()
        signal.signal(signal.SIGALRM, again)
        raise Stop(number, lost)

    def lost() -> None:
        if not arrived:
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    def silent(its: "sys.UnraisableHookArgs") -> None:
        if not isinstance(its.exc_value, Stop):
            hook(its)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.unraisablehook = silent
    try:
        yield
    finally:
        arrived = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP wait for the end of this: who must end what is started in it knows of it then."""
    arrived: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it, for what is started here too
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, wait) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def deaf_to_the_terminal() -> None:
    """For a child, as `preexec_fn`: until it says otherwise, Ctrl-C does nothing to it, and who started it ends it.

    While it starts, it could answer by a traceback alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


MOST_NAMES = 16  # that a message lists


def require_known(otherwise: str, name: str, there_are: Iterable[str]) -> None:
    """Raise UserError, which begins with `otherwise`, for a name that is none of those there are; with the nearest."""
    names = list(there_are)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        few = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"and {len(names) - MOST_NAMES} more"]
        raise UserError(f"{otherwise}; {hint}there are: {', '.join(few)}")


def usage(main: Callable[..., int | None], arguments: tuple[str, ...]) -> str | None:
    """How to call a stage, for `--help`. Raises UserError, with the same, for what it cannot be called with: too much,
    too little, a `seed` that is none. Of an entry point that takes any number of arguments, nothing is known here."""
    signature, module = inspect.signature(main), sys.modules[main.__module__]
    parameters = signature.parameters.items()
    if any(its.kind is its.VAR_POSITIONAL for _, its in parameters):
        return None
    names = (name.upper() if its.default is its.empty else f"[{name.upper()}]" for name, its in parameters)
    text = " ".join(["usage: python -m", module.__spec__.name if module.__spec__ else module.__name__, *names])
    if arguments == ("--help",):
        return f"{text}\n\n{(module.__doc__ or '').strip()}"
    try:
        seed = signature.bind(*arguments).arguments.get("seed", "0")
    except TypeError:
        raise UserError(f"given {', '.join(map(repr, arguments)) or 'nothing'}; {text}") from None
    if not (seed.isascii() and seed.isdecimal()):
        raise UserError(f"given {seed!r} as the seed; allowed: a whole number from 0 up; {text}")
    return None


def run(main: Callable[..., int | None], *arguments: str) -> int:
    """Call an entry point; its exit code, with UserError, a file that the system does not let be used, Ctrl-C and
    SIGTERM as lines on stderr, not tracebacks."""
    try:
        with stoppable():
            code = _told(main, arguments)
    except Stop as stop:
        print(
            "ffrepro: interrupted; a training goes on from its last checkpoint with the same command",
            file=sys.stderr,
        )
        code = stop.exit_code
    if code and EXIT_CODE_FILE in os.environ:
        with contextlib.suppress(OSError):  # a full disk, most likely the failure itself, of which a line has told
            Path(os.environ[EXIT_CODE_FILE]).write_text(str(code))
    return code


def _told(main: Callable[..., int | None], arguments: tuple[str, ...]) -> int:
    try:
        if text := usage(main, arguments):
            print(text)
            return 0
        return main(*arguments) or 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"ffrepro: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a folder without rights, a name too long, that nothing nearer has told of
        if error.filename is None or error.strerror is None:  # a broken pipe, a socket
            raise
        name = str(error.filename)
        print(f"ffrepro: {name if name.isprintable() else ascii(name)}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code
