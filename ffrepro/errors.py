"""Mistakes that a person can mend: an entry point prints them, one line each, and exits with their code."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

EXIT_CODE_FILE = "FFREPRO_EXIT_CODE_FILE"
"""Variable that names a file for a failing stage's exit code, which DVC keeps to itself."""


class UserError(Exception):
    """What was given cannot be used: which file or field, what it holds, what is allowed, what to do."""

    exit_code = 2


class MachineError(UserError):
    """What was asked for is sound, but this machine cannot do it."""

    exit_code = 5


class InterruptedByUser(UserError):  # noqa: N818  # not an error of anybody
    """Ctrl-C."""

    exit_code = 130


MOST_NAMES = 16  # that a message lists


def known(kind: str, name: str, there_are: Iterable[str], prefix: str = "") -> None:
    """Raise UserError for a name that is none of those there are, with the nearest one."""
    names = list(there_are)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        few = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"and {len(names) - MOST_NAMES} more"]
        raise UserError(f"{prefix or f'no {kind} {name!r}'}; {hint}there are: {', '.join(few)}")


def run(main: Callable[..., int | None], *arguments: str) -> int:
    """Call an entry point; its exit code, with UserError and Ctrl-C as lines on stderr instead of tracebacks."""
    try:
        code = main(*arguments) or 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"ffrepro: {line}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("ffrepro: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        code = 130
    if code and EXIT_CODE_FILE in os.environ:
        Path(os.environ[EXIT_CODE_FILE]).write_text(str(code))
    return code
