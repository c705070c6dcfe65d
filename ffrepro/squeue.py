"""What Slurm says of the jobs that it was given."""

import os
import subprocess
from pathlib import Path

from ffrepro import config
from ffrepro.errors import MachineError
from ffrepro.layout import Layout

TIMEOUT = 60  # seconds for Slurm's own commands
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")


def queue() -> dict[str, tuple[bool, str]]:
    """This user's jobs that have not ended: id -> (whether it waits, for what). Raises MachineError without Slurm."""
    try:
        done = subprocess.run(
            ["squeue", "--me", "--array", "--noheader", "--format=%i|%T|%r"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={name: its for name, its in os.environ.items() if not name.startswith("SQUEUE_")},  # what to leave out
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"squeue does not answer ({type(error).__name__}); go to a login node") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise MachineError(f"squeue: {config.plain(said[-1])}")
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {job: (state in WAITING, reason) for job, state, reason in rows}


def log(project: Layout, job: str) -> Path:
    """Where the node's daemon, srun and submitit say what became of a job."""
    return project.slurm / f"{job}_0_log.err"
