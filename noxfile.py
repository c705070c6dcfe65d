"""Automation as verbs. Every session installs from the hashed lock, so that it runs what was tested.

nox -s tests            the test suite
nox -s reproduce -- ROW a row of params.yaml, end to end
nox -s bench -- ROW     what training and evaluation cost here
nox -s chaos            faults, injected: fifty kills, full disks, clocks that jump
nox -s browser          the report's page in Chromium
nox -s latex            the report's tables in pdflatex
nox -s cuda             what needs a CUDA GPU
nox -s slurm            a Slurm of two nodes on this machine, and the digits ablation by it
nox -s image            the container image, built and tried by a running engine
nox -s mutation         which changes of the core's code no test would notice; hours
nox -s coverage         the branches that the tests take
nox -s audit            licences of what is locked, and whether anything in it is known to be vulnerable
nox -s dev              .venv with everything, for daily use
nox -s lint, types, slow, lock
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.error_on_missing_interpreters = True

LOCKS = {  # what each lock is compiled from
    "run": ["pyproject.toml", "--group", "build"],
    "lint": ["--group", "lint"],
    "dev": ["pyproject.toml", "--group", "dev"],
    "browser": ["pyproject.toml", "--group", "browser"],
    "image": ["pyproject.toml"],
    "mutation": ["pyproject.toml", "--group", "mutation"],
    "audit": ["pyproject.toml", "--group", "build", "--group", "audit"],
    "image-build": ["--group", "image"],
}


os.environ.pop("PYTHONPATH", None)  # what a cluster's modules put there would come before the locked packages
# Where Python may keep no bytecode, every process would compile PyTorch and SciPy for itself: seconds each.
BYTECODE = {"UV_COMPILE_BYTECODE": "1"} if os.environ.get("PYTHONDONTWRITEBYTECODE") else {}


def here(session: nox.Session) -> None:
    """End with a line where the packages could be installed and the project not run."""
    if sys.platform != "linux":
        session.error("ffrepro runs on Linux; on Windows use WSL, on a Mac the container (docs/container.md)")
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        session.error("ffrepro needs Python 3.11 to 3.14: uvx --python 3.13 --from 'nox[uv]' nox -s ...")


def install(session: nox.Session, lock: str) -> None:
    """The locked packages, every one checked by hash, and the project itself from here."""
    here(session)
    session.install("--require-hashes", "-r", f"requirements/{lock}.txt", env=BYTECODE)
    if lock != "lint":
        session.install("--no-deps", "--no-build-isolation", "-e", ".")


def debian(session: nox.Session, package: str, *programs: str) -> None:
    """Install Debian's package, where that can be done and none of the programs is there."""
    if not any(map(shutil.which, programs)) and shutil.which("apt-get") and os.geteuid() == 0:
        session.run("apt-get", "install", "-y", "--no-install-recommends", package, external=True)


# One process a core, a test file each: what a file prepared once, a training say, it need not prepare again. In their
# order: files of few tests, which would be put last, are among those that take longest.
PARALLEL = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest."""
    install(session, "dev")
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the proofs that take minutes; QEMU, for other makes of CPU, is installed where this may."""
    install(session, "dev")
    debian(session, "qemu-user", "qemu-x86_64")
    session.run("pytest", "-m", "slow and not image", *PARALLEL, *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Break things on purpose, for half an hour; faketime, for clocks that jump, is installed where this may."""
    install(session, "dev")
    debian(session, "faketime", "faketime")
    env = {"FFREPRO_KILLS": "50"}
    session.run("pytest", "-s", "-m", "chaos", *session.posargs, env=env)


@nox.session
def browser(session: nox.Session) -> None:
    """Open the report's page in Chromium, which is installed where this may; arguments go to pytest."""
    install(session, "browser")
    if "FFREPRO_CHROMIUM" not in os.environ:
        debian(session, "chromium", "chromium", "chromium-browser", "google-chrome")
    session.run("pytest", "-m", "browser", *session.posargs)


@nox.session
def latex(session: nox.Session) -> None:
    """Compile the tables with pdflatex, which is installed where this may; arguments go to pytest."""
    install(session, "dev")
    debian(session, "texlive-latex-recommended", "pdflatex")
    session.run("pytest", "-m", "latex", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Run the tests that need a CUDA GPU; where there is none they are skipped. Arguments go to pytest."""
    install(session, "dev")
    session.run("pytest", "-m", "cuda", *session.posargs)


@nox.session
def slurm(session: nox.Session) -> None:
    """Start a Slurm on this machine, submit to it, break it; it is installed where this may. Arguments go to pytest."""
    install(session, "dev")
    debian(session, "slurm-wlm", "slurmctld")
    debian(session, "munge", "munged")
    session.run("pytest", "-s", "-m", "slurm", *session.posargs)


@nox.session
def image(session: nox.Session) -> None:
    """Build the container image and try it; `-- -m image` builds it twice and compares.

    CONTAINER_ENGINE: docker (default) or podman. FFREPRO_BASE_IMAGE: another base than the pinned one, for where that
    cannot be pulled.
    """
    engine = os.environ.get("CONTAINER_ENGINE", "docker")
    if not shutil.which(engine) or subprocess.run([engine, "info"], capture_output=True).returncode:
        session.error(
            f"no container engine answers to `{engine} info`; install Docker (Debian: docker.io, docker-cli and "
            "docker-buildx) and start dockerd, or install podman and set CONTAINER_ENGINE=podman"
        )
    install(session, "dev")
    # two processes, as two of its tests train; -rP: what tests printed of the image is shown in the end
    two = ["-n", "auto", "--maxprocesses", "2", "-rP"]
    session.run("pytest", "-m", "image and not slow", *two, *session.posargs)


CORE = [
    "config",
    "claims",
    "engine",
    "evaluation",
    "goodness",
    "negatives",
    "network",
    "record",
    "step",
    "training",
    "verdict",
]


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the code of the core and the proof in more than 6,000 ways, one at a time; list what no test notices.

    Takes hours on two cores and goes on where it was stopped; arguments are names of mutants, such
    as "ffrepro.verdict*".
    """
    install(session, "mutation")
    session.run("mutmut", "run", "--max-children", "2", *session.posargs, env={"FFREPRO_THREADS": "1"})
    session.run("mutmut", "results")
    listed = session.run("mutmut", "results", "--all", "true", silent=True)
    outcomes = Counter(re.findall(r"^ *ffrepro\.(\w+)\..*: (.+)$", str(listed), re.MULTILINE))
    for (module, outcome), number in sorted(outcomes.items()):
        session.log(f"{module}: {number} {outcome}")


@nox.session
def coverage(session: nox.Session) -> None:
    """What the tests leave out of the package, line by line and branch by branch; fails below 95 % of its core."""
    install(session, "mutation")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")
    modules = ",".join(f"ffrepro/{name}.py" for name in CORE)
    session.run("coverage", "report", "--show-missing", "--fail-under=95", f"--include={modules}")


LICENCES = """# Licences

Of the packages in `requirements/run.txt` that Linux installs, by their own metadata; written by `nox -s audit`.

"""


@nox.session
def audit(session: nox.Session) -> None:
    """List the locked packages' licences, then ask PyPI's database of vulnerabilities about every locked one."""
    install(session, "audit")
    locked = re.findall(r"^([\w.-]+)==", Path("requirements/run.txt").read_text(), re.MULTILINE)
    columns = ["--from=mixed", "--with-system", "--format=markdown", "--packages", *locked]
    table = session.run("pip-licenses", *columns, silent=True)
    Path("docs/licences.md").write_text(f"{LICENCES}{table}", encoding="utf-8")
    for lock in sorted(LOCKS):
        session.log(f"requirements/{lock}.txt")
        # strict: what the database does not know, or cannot be asked about, is no success
        session.run("pip-audit", "--strict", "--disable-pip", "--require-hashes", "-r", f"requirements/{lock}.txt")


@nox.session
def reproduce(session: nox.Session) -> None:
    """Reproduce a row: nox -s reproduce -- digits. It fails unless reproduced; nox prints the verdict's exit code."""
    install(session, "run")
    session.run("ffrepro", "reproduce", *(session.posargs or ["digits"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Measure plain loop and engine side by side; arguments go to `ffrepro bench`."""
    install(session, "run")
    session.run("ffrepro", "bench", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, "dev")
    session.run("mypy")


@nox.session(venv_backend="none")
def dev(session: nox.Session) -> None:
    """Make .venv with everything: source .venv/bin/activate, and `ffrepro`, `dvc`, `pytest` are there."""
    here(session)
    python = ["--python", ".venv"]
    session.run("uv", "venv", "--allow-existing", ".venv")
    session.run("uv", "pip", "sync", "--require-hashes", *python, "requirements/dev.txt", env=BYTECODE)
    session.run("uv", "pip", "install", "--no-deps", "--no-build-isolation", *python, "-e", ".")


@nox.session(venv_backend="none")
def lock(session: nox.Session) -> None:
    """Renew requirements/*.txt: universal, hashed, without index addresses. `-- --upgrade` takes newer versions.

    The first is of everything that tests run with; the others take its versions of what they share with it.
    """
    for name, sources in {"dev": LOCKS["dev"], **LOCKS}.items():
        shared = [] if name == "dev" else ["--constraint", "requirements/dev.txt"]
        command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--quiet", *sources, *shared, "-o", f"requirements/{name}.txt"]
        session.run(*command, *session.posargs, external=True)
