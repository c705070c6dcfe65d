"""`ffrepro` inside the image: the project laid out in /out, where what it makes survives the container.

The image's code runs, never that in /out: there it only is what DVC compares. Outside the image nothing here is used.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ffrepro import errors, record
from ffrepro.errors import UserError

IMAGE = Path(__file__).parent.parent
OUT, DATA = Path("/out"), Path("/data")
LAID = ".ffrepro-image.json"  # in OUT: of each file of the image, the hashes that it was laid out with
LOCK = ".ffrepro-container.lock"
NOTHING = {LOCK, f"{LAID}.part", "lost+found", ".DS_Store"}  # what a folder may hold that nothing has been laid out in
CODE = ("ffrepro/", "pipelines/", "dvc.yaml")
READING = ("", "list", "explain", "doctor", "params", "bench")  # commands that need no folder
GIVE = 'give a folder of yours: docker run --user "$(id -u):$(id -g)" -v "$PWD/out:/out" ...'
IDENTITY = "0 0 4294967295"  # /proc/self/uid_map where users are the host's


def files(root: Path) -> Iterator[str]:
    """The project's files in the image, relative to its root."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (str((Path(folder) / name).relative_to(root)) for name in sorted(names))


def lay(image: Path, out: Path) -> list[str]:
    """Lay the image's project out in a folder; returns a line for each file that its user has changed.

    Code is put back as the image has it. Another file is replaced only where it is as an image has laid it out.
    """
    laid: dict[str, list[str]] = record.read_json(out / LAID) if (out / LAID).exists() else {}
    wanted = {name: record.file_hash(image / name) for name in files(image)}
    found = {name: record.file_hash(out / name) for name in sorted({*laid, *wanted}) if (out / name).exists()}
    changed = {name for name, hashed in found.items() if hashed not in [*laid.get(name, ()), wanted.get(name)]}
    kept = {name for name in changed if not name.startswith(CODE)}
    # Before the files: if this ends in between, the next time knows what was laid.
    for name, hashed in wanted.items():
        laid[name] = [*dict.fromkeys([*laid.get(name, ()), hashed])]
    record.write_json(laid, out / LAID)
    for name, hashed in wanted.items():
        if name not in kept and found.get(name) != hashed:
            record.write_bytes((image / name).read_bytes(), out / name)
    for name in found.keys() - wanted.keys() - kept:
        (out / name).unlink()
    yours, ours = "yours, not the image's", "put back, since code is the image's"
    return [f"{name}: {yours if name in kept else ours}" for name in sorted(changed)]


def alone(out: Path) -> int | None:
    """Take the folder for this container, until its process ends; None where another container works in it.

    DVC's own locks name processes by numbers, which say nothing in another container, and are used again in the next.
    """
    lock = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        why = f"its file system has no locks ({error.strerror}), without which DVC does not work"
        raise UserError(f"{out}: {why}; give a folder on another one, such as this machine's own disk") from None
    (out / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)  # of a container that was killed
    return lock


def mounted(path: Path) -> bool:
    """Whether something is mounted there, a folder of the same disk too, which `os.path.ismount` does not see."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def unwritable() -> str:
    """Why OUT, which is mounted, cannot be written, as far as it can be told from inside."""
    if os.statvfs(OUT).f_flag & os.ST_RDONLY:
        return "mounted read-only"
    if OUT.stat().st_uid == os.getuid():
        return "yours, and not writable: where SELinux is enforced, mount it with :Z at its end"
    if " ".join(Path("/proc/self/uid_map").read_text().split()) != IDENTITY:
        return "not writable for this user of an engine without root: --user 0:0 (podman: --userns keep-id) may be you"
    return "not writable for this user"


def enter(command: str) -> None:
    """Make /out the current folder; the image's own project, for commands that only read and where nothing is mounted.

    Raises UserError where /out cannot be used.
    """
    record.image()  # what is told of it wrongly, is told now and not after a training
    if mounted(DATA):
        os.environ.setdefault("FFREPRO_DATA", str(DATA))
    if not mounted(OUT) and command in READING:
        os.chdir(IMAGE)
        return
    if not os.access(OUT, os.W_OK | os.X_OK):
        raise UserError(f"{OUT}: {unwritable() if mounted(OUT) else 'nothing is mounted there'}; {GIVE}")
    try:
        _take(command)
    except OSError as error:  # another user's files
        raise UserError(f"{error.filename or OUT}: {error.strerror}; {GIVE}") from None
    if not mounted(OUT):
        print(f"ffrepro: nothing is mounted at {OUT}: what this makes goes with the container", file=sys.stderr)
    os.chdir(OUT)


def _take(command: str) -> None:
    found = {entry.name for entry in OUT.iterdir()}  # before LAID, with which another container may just now begin
    if not (OUT / LAID).exists() and found - NOTHING:
        raise UserError(f"{OUT}: holds other things than what this image has put there; give an empty folder")
    lock = alone(OUT)
    if lock is not None:
        for line in lay(IMAGE, OUT):
            print(f"ffrepro: {line}", file=sys.stderr)
        if command in READING:
            os.close(lock)
    elif command not in READING:
        raise UserError(f"{OUT}: another container works in this folder; wait until it has ended, or give another")


def main() -> None:
    """`docker run IMAGE ARGUMENTS`: what `ffrepro ARGUMENTS` does, or DVC for `dvc ARGUMENTS`."""
    arguments = sys.argv[1:]
    command = next((one for one in arguments if not one.startswith("-")), "")
    if code := errors.run(lambda: enter(command)):
        sys.exit(code)
    if command == "dvc":
        from ffrepro import layout, pipeline

        sys.exit(errors.run(lambda: pipeline.dvc(layout.find(), arguments[1:])))
    from ffrepro import cli

    cli.main()


if __name__ == "__main__":
    main()
