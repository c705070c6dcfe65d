"""One process at a time, by a lock that goes with its process, however that ends."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ffrepro.errors import UserError


@contextlib.contextmanager
def alone(path: Path, doing: str) -> Iterator[int]:
    """Hold the lock of that file, once whoever holds it has ended, whom a line on stderr names; gives its descriptor.

    doing: what this process does, for the next one's line. A child that inherits the descriptor holds the lock too, as
    long as it lives. Where a file system has no locks, nothing is locked. Raises UserError where the file cannot be
    made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; work in a folder of yours") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 4096, 0).decode(errors="replace") or "another process"
            print(f"ffrepro: waiting until {holder} has ended", file=sys.stderr)
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # NFS without its lock daemon, for one
            pass
        with contextlib.suppress(OSError):  # a full disk: it is locked all the same
            os.truncate(file, 0)
            os.pwrite(file, f"{doing} (process {os.getpid()})".encode(errors="replace"), 0)
        yield file
    finally:
        os.close(file)
