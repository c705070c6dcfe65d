"""The container image, built and run by a real engine, as the README says: `nox -s image`.

CONTAINER_ENGINE names the engine (docker), FFREPRO_BASE_IMAGE another base than the pinned one.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_commands import ELSEWHERE

from ffrepro import __version__, lock

ROOT = Path(__file__).parent.parent
ENGINE = os.environ.get("CONTAINER_ENGINE", "docker")
BASE = os.environ.get("FFREPRO_BASE_IMAGE")
MIRROR = os.environ.get("FFREPRO_MIRROR")
HARDENED = "--read-only --tmpfs /tmp --network none --cap-drop ALL --security-opt no-new-privileges"
USER = "12345:12345" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"
BUILDING, RUNNING = (command for command, where in ELSEWHERE.items() if where == "tests/test_image.py")
pytestmark = pytest.mark.image


def shell(command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command as README and docs show it, in the project, with the engine that is to be tested."""
    command = re.sub(r"(?<![\w./-])docker(?= )", ENGINE, command)
    env = os.environ | settings
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def build(tag: str, *options: str) -> float:
    """Build the image; returns the seconds it took."""
    base = f"--build-arg BASE_IMAGE={BASE} " if BASE else ""
    begun = time.monotonic()
    command = BUILDING.replace("build ", f"build {base}{' '.join(options)} ", 1).replace("-t ffrepro", f"-t {tag}")
    done = shell(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - begun


@pytest.fixture(scope="session")
def revision() -> str:
    return shell("git describe --always --dirty --abbrev=40").stdout.strip()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> str:
    """The image's digest; built by the first of pytest's processes that asks for it."""
    built = tmp_path_factory.getbasetemp().parent / f"image-{testrun_uid}"
    with lock.alone(built.with_suffix(".lock"), "another process of pytest's"):
        if not built.exists():
            base = f"a stand-in, {BASE}, not the pinned digest" if BASE else "the pinned digest"
            print(f"base: {base}; built in {build('ffrepro'):.0f} s")
            print(shell("docker history --format '{{.Size}} {{.CreatedBy}}' ffrepro").stdout)
            built.write_text(shell("docker image inspect --format '{{.Id}}' ffrepro").stdout.strip())
    return built.read_text()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    os.chown(folder, *map(int, USER.split(":")))
    return folder


def run(arguments: str, out: Path | None = None, options: str = "") -> subprocess.CompletedProcess[str]:
    """A container with all that can be taken from it taken away."""
    folder = f"--user {USER} -v {out}:/out" if out else ""
    return shell(f"docker run --rm {HARDENED} -e FFREPRO_PORTABLE=1 {folder} {options} ffrepro {arguments}")


def inside(python: str, tag: str = "ffrepro", options: str = "") -> str:
    done = shell(f"docker run --rm --network none {options} --entrypoint python {tag} -c '{python}'")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_only_reads_needs_no_folder(image):
    assert run("--version").stdout == f"ffrepro {__version__}\n"
    assert "Usage: ffrepro" in run("").stdout
    assert "| cifar10-quick |" in run("list").stdout
    assert run("params check").stdout.endswith(" runs: sound\n")
    assert shell("docker run --rm ffrepro --version").stdout == f"ffrepro {__version__}\n"  # writable, not mounted


def test_doctor(image):
    done = run("doctor", options=f"-e FFREPRO_IMAGE_ID={image}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"-- image: {image}; revision " in done.stdout
    assert "ok 4 steps, twice: weights" in done.stdout


def test_a_row_that_needs_a_gpu_says_so_in_one_line(image, out):
    done = run("reproduce cifar10", out)
    assert done.returncode == 5
    assert re.fullmatch(r"ffrepro: cifar10 needs a CUDA GPU .*\n", done.stderr)


@pytest.mark.parametrize(
    ("mounted", "why"),
    [
        ("", "nothing is mounted there"),
        ("-v {}:/out", "not writable for this user"),
        ("-v {}:/out:ro", "mounted read-only"),
    ],
)
def test_without_a_folder_to_write_to_it_says_which_to_give(image, tmp_path, mounted, why):
    done = run("reproduce digits", options=mounted.format(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f'ffrepro: /out: {why}; give a folder of yours: docker run --user "$(id -u):$(id -g)" -v "$PWD/out:/out" ...\n'
    )
    assert not [*tmp_path.iterdir()]


def test_a_folder_with_other_things_is_left_alone(image, out):
    (out / "thesis.tex").write_text("mine")
    done = run("reproduce digits", out)
    assert done.returncode == 2
    assert done.stderr == (
        "ffrepro: /out: holds other things than what this image has put there; give an empty folder\n"
    )
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_digest_that_is_none(image, out):
    done = run("reproduce digits", out, "-e FFREPRO_IMAGE_ID=latest")
    assert done.returncode == 2
    assert re.fullmatch(r"ffrepro: FFREPRO_IMAGE_ID: given 'latest'; allowed: .*\n", done.stderr)


def test_stopped_killed_and_run_again_it_reproduces_the_committed_bits(image, revision, out):
    """Stopped, in DVC by itself too, killed, and the fourth container ends with the records' very weights."""
    name = f"ffrepro-test-{os.getpid()}"
    checkpoints, newest = out / "checkpoints", 0

    def wait_for_a_checkpoint() -> int:
        deadline = time.monotonic() + 600
        while True:
            times = [path.stat().st_mtime_ns for path in checkpoints.glob("*.pt")] if checkpoints.exists() else []
            if max(times, default=0) > newest:
                return max(times)
            assert time.monotonic() < deadline
            time.sleep(0.1)

    reproduce = "reproduce digits"
    for how, code, command in (
        ("stop -t 60", 143, reproduce),
        ("stop -t 60", 143, "dvc repro verdict@digits"),
        ("kill", 137, reproduce),
    ):
        options = f"--name {name} -d --user {USER} -v {out}:/out -e FFREPRO_PORTABLE=1"
        assert shell(f"docker run {HARDENED} {options} ffrepro {command}").returncode == 0
        newest = wait_for_a_checkpoint()
        beside = run(reproduce, out)
        assert beside.returncode == 2
        assert beside.stderr.startswith("ffrepro: /out: another container works in this folder; ")
        assert shell(f"docker {how} {name}").returncode == 0
        assert shell(f"docker wait {name}").stdout.strip() == str(code)
        lines = shell(f"docker logs {name}").stderr
        assert "Traceback" not in lines
        assert how == "kill" or lines.endswith(
            "interrupted; a training goes on from its last checkpoint with the same command\n"
        )
        assert shell(f"docker rm {name}").returncode == 0
    done = run("reproduce digits --json", out, f"-e FFREPRO_IMAGE_ID={image}")
    assert "going on after epoch" in done.stderr
    assert "had been killed" not in done.stderr
    result = json.loads(done.stdout)
    assert done.returncode == {"reproduced": 0, "not reproduced": 3, "inconclusive": 4}[result["verdict"]]
    for seed in range(3):
        facts = json.loads((out / "runs" / "digits" / str(seed) / "record.json").read_text())
        committed = json.loads((ROOT / "results" / "records" / f"digits-{seed}.json").read_text())
        assert facts["weights"] == committed["weights"]
        identity = facts["image"]
        assert identity["config"] == image
        assert identity["revision"] == revision
        assert identity["packages"]["torch"]["version"].startswith("2.11.0")
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in out.rglob("*")}
    assert owners == {tuple(map(int, USER.split(":")))}
    checked = run("verify runs/digits", out)
    assert checked.returncode == done.returncode, checked.stdout + checked.stderr
    assert run("report", out).returncode == 0
    assert (out / "report" / "index.html").exists()
    assert run("dvc status", out).returncode == 0  # DVC by itself, without git


def test_edited_parameters_stay_and_a_mistake_in_them_is_one_line(image, out):
    assert run("params check", out).returncode == 0
    path = out / "params.yaml"
    path.write_text(path.read_text().replace("epochs: 20\n", "epochs: many\n", 1))
    done = run("reproduce digits", out)
    assert done.returncode == 2
    mine, mistake = done.stderr.splitlines()
    assert mine == "ffrepro: params.yaml: yours, not the image's"
    assert mistake.startswith("ffrepro: params.yaml: experiments.digits.training.epochs: given 'many'; allowed: ")
    assert not (out / "runs").exists()


@pytest.mark.skipif(not MIRROR or "://" in MIRROR, reason="FFREPRO_MIRROR names no folder")
def test_data_from_a_mirror_stay_in_a_volume(image, out):
    volume = f"ffrepro-test-{os.getpid()}"
    try:
        mirror = f"-v {volume}:/data -v {MIRROR}:/mirror:ro -e FFREPRO_MIRROR=/mirror"
        assert run("fetch cifar10", out, mirror).stdout.startswith("cifar10: 7 files verified")
        again = run("fetch cifar10 --offline", out, f"-v {volume}:/data")
        assert again.returncode == 0, again.stderr
        assert not (out / "data").exists()
    finally:
        shell(f"docker volume rm {volume}")


def test_what_is_in_it_and_what_is_not(image, revision):
    labels = json.loads(shell("docker image inspect --format '{{json .Config.Labels}}' ffrepro").stdout)
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == revision
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    identity = json.loads(inside('print(open("/opt/ffrepro/image/identity.json").read())'))
    locked = dict(re.findall(r"^([\w.-]+)==([^ ]+)", (ROOT / "requirements" / "image.txt").read_text(), re.MULTILINE))
    plain = {re.sub(r"[-_.]+", "-", name).lower(): one["version"] for name, one in identity["packages"].items()}
    assert plain.items() <= {re.sub(r"[-_.]+", "-", name).lower(): v for name, v in locked.items()}.items()
    sbom = json.loads(inside('print(open("/opt/ffrepro/image/sbom.cdx.json").read())'))
    components = {component["name"] for component in sbom["components"]}
    assert {"torch", "dvc", "tini", "libc6"} <= components
    assert identity["packages"].keys() <= components
    unwanted = "gcc cc make git uv hatchling cyclonedx-py curl"
    found = inside(f'import shutil; print([p for p in "{unwanted}".split() if shutil.which(p)])')
    assert found == "[]\n"
    caches = 'os.path.expanduser("~root/.cache"), "/var/cache/pip"'
    found = inside(f"import os; print(os.getuid(), any(map(os.path.exists, [{caches}])))")
    assert found == "10001 False\n"


def test_torch_asks_for_nvidia_s_libraries_without_a_gpu_too(image, tmp_path):
    """Why there is no small image for the CPU: docs/container.md."""
    libraries = "/opt/venv/lib/python3.12/site-packages/nvidia"
    assert inside(f'import os; print(os.path.isdir("{libraries}"))') == "True\n"
    nothing = f"-v {tmp_path}:{libraries}:ro"  # podman fills a tmpfs with what it lies over
    done = shell(f"docker run --rm {nothing} --entrypoint python ffrepro -c 'import torch'")
    assert done.returncode == 1
    assert "libcublasLt.so" in done.stderr


def test_compose(image, tmp_path, out):
    if shell("docker compose version").returncode:
        pytest.skip(f"{ENGINE} has no compose here")
    services = json.loads(shell("docker compose config --format json", FFREPRO_USER=USER).stdout)["services"]
    assert services.keys() == {"cpu", "gpu", "offline"}
    assert services["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    for name in ("compose.yaml", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path)
    project = f"ffrepro-test-{os.getpid()}"
    compose = f"cd {tmp_path} && docker compose -p {project}"
    try:
        for service in ("cpu", "offline"):
            done = shell(f"{compose} run --rm {service} list", FFREPRO_USER=USER)
            assert "| cifar10-quick |" in done.stdout, done.stderr
    finally:
        shell(f"{compose} down --volumes", FFREPRO_USER=USER)


def test_the_readme_s_commands(image, tmp_path):
    (tmp_path / "out").mkdir()
    done = shell(f"cd {tmp_path} && {RUNNING}")
    assert done.returncode in (0, 4), done.stderr
    assert "verdict: " in done.stdout
    assert {path.lstat().st_uid for path in (tmp_path / "out").rglob("*")} == {os.getuid()}


@pytest.mark.slow
def test_the_same_source_and_lock_give_the_same_files_twice(image):
    print(f"built anew, with downloaded packages at hand, in {build('ffrepro-twin', '--no-cache'):.0f} s")
    program = (
        "import hashlib, json, os; "
        'skip = ("/proc", "/sys", "/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"); '
        "print(json.dumps({p: [oct(os.lstat(p).st_mode), os.readlink(p) if os.path.islink(p) else "
        'hashlib.file_digest(open(p, "rb"), "sha256").hexdigest()] '
        'for d, ds, fs in os.walk("/") for f in fs for p in [os.path.join(d, f)] if not p.startswith(skip)}))'
    )
    try:
        one, other = (json.loads(inside(program, tag, "--user 0:0")) for tag in ("ffrepro", "ffrepro-twin"))
    finally:
        shell("docker image rm ffrepro-twin")
    assert len(one) > 10_000
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()
