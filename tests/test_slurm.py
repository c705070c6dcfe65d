"""`ffrepro submit --slurm` on a real Slurm: a controller and two node daemons on this machine (nox -s slurm)."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time

import pytest

pytestmark = pytest.mark.slurm

CONFIG = """\
ClusterName=ffrepro
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmctldPort=16817
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=5
MessageTimeout=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=patient Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2
"""


class Slurm:
    def __init__(self, folder):
        self.folder, self.daemons = folder, {}
        host = subprocess.check_output(["hostname", "-s"], text=True).strip()
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=user))
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munge += [f"--{what}-file={folder}/munge.{what}" for what in ("key", "seed", "log", "pid")]
        self.start("munged", *munge)
        self.wait(lambda: (folder / "munge.socket").exists())
        self.start("slurmctld", "slurmctld", "-D")
        self.node("n1")
        self.node("n2")
        self.wait(lambda: self("sinfo", "--noheader", "--format=%T %D").strip() == "idle 2")

    def __call__(self, *command):
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        return done.stdout + done.stderr

    def start(self, name, *command):
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)

    def node(self, name):
        self.start(name, "slurmd", "-D", "-N", name)

    def wait(self, what, seconds=240):
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, self.said()
            time.sleep(0.2)

    def said(self):
        logs = (path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.out")))
        return "\n".join([*logs, self("sinfo"), self("squeue", "--long", "--all")])

    def end(self):
        self("scancel", "--me")
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    assert not missing, f"{', '.join(missing)}: not installed; as root, nox -s slurm does (Debian: slurm-wlm, munge)"
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents):
        if path.owner() == folder.owner() and path != path.parent:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o055)  # munge's socket is everybody's
        else:
            break
    slurm = Slurm(folder)
    yield slurm
    slurm.end()


class Submitted:
    """A project whose jobs go to that Slurm."""

    def __init__(self, project, slurm):
        self.project, self.slurm = project, slurm
        project.shrink("4 8P 8", epochs=40, seeds=[0, 1], rows=())
        self.cluster()

    def cluster(self, **given):
        settings = {"cpus": 1, "memory": 2, **given}
        (self.project.root / "cluster.yaml").write_text("".join(f"{key}: {its}\n" for key, its in settings.items()))

    def run(self, *command, code=0):
        environment = {"SLURM_CONF": self.slurm.env["SLURM_CONF"], "PYTHONPATH": str(self.project.root)}
        done = self.project.run("ffrepro", *command, **environment)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.slurm.said()}"
        assert "Traceback" not in done.stderr
        return done

    def states(self, *names):
        return {
            one["run"]: (one["state"], one["of"]) for one in json.loads(self.run("status", *names, "--json").stdout)
        }

    def job(self, run):
        return json.loads((self.project.root / "jobs" / f"{run}.json").read_text())["job"]

    def log(self, run):
        path = self.project.root / "jobs" / f"{run}.log"
        return path.read_text() if path.exists() else ""

    def training(self, node=None, but=()):
        """A run that has a checkpoint and is not evaluated yet."""
        where = dict(
            line.split() for line in self.slurm("squeue", "--array", "-h", "-t", "R", "-o", "%i %N").splitlines()
        )
        for path in (self.project.root / "jobs").glob("*.json"):
            on, run = where.get(self.job(path.stem)), path.stem
            begun = (self.project.root / "checkpoints" / f"{run}.pt").exists()
            if begun and on and node in (None, on) and run not in but:
                return run
        return None

    def signal(self, run, what):
        """To the process that trains it, whatever Slurm thinks of its node."""
        name, _, seed = run.rpartition("-")
        pids = subprocess.check_output(["pgrep", "--full", f"pipelines.run {name} {seed}$"], text=True).split()
        assert pids
        for pid in pids:
            os.kill(int(pid), what)

    def caught(self, **which):
        found = []
        self.slurm.wait(lambda: found.append(self.training(**which)) or found[-1])
        return found[-1]

    def warn(self, run):
        """As Slurm does before a time limit and at preemption, until the run is queued again.

        Slurm 22.05 may pass the signal on and say "try again later" all the same: scancel would do so for minutes.
        """
        command = ["scancel", "--signal=USR2", self.job(run)]
        asking = subprocess.Popen(command, env=self.slurm.env, stderr=subprocess.DEVNULL)
        self.requeued(run)
        asking.kill()
        asking.wait()

    def requeued(self, run):
        self.slurm.wait(lambda: "Restarts=1" in self.slurm("scontrol", "show", "job", self.job(run)))

    def wait(self):
        self.slurm.wait(lambda: self.slurm("squeue", "--noheader", "--all").strip() == "", 1800)


def table(project):
    """The table's numbers, whatever it cost."""
    rows = [line.split(",") for line in (project.root / "report/tables/ablation-digits.csv").read_text().splitlines()]
    cost = rows[0].index("seconds a seed")
    return [row[:cost] + row[cost + 1 :] for row in rows]


def files(project):
    names = ("weights.safetensors", "goodness.safetensors", "metrics.json")
    return {
        str(path.relative_to(project.root)): path.read_bytes()
        for name in names
        for path in (project.root / "runs").glob(f"*/*/{name}")
    }


def test_the_ablation_by_slurm_is_the_one_without_byte_for_byte(slurm, project_in, tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    one = Submitted(project_in(tmp_path / "with"), slurm)
    assert one.run("submit", "ablation-digits", "--slurm").stdout.startswith("20 of 20 runs submitted")
    again = one.run("submit", "ablation-digits", "--slurm")  # at once: nothing twice
    assert again.stdout.startswith("0 of 20 runs submitted")
    assert again.stderr.count("already, left alone") == 20
    assert {word for word, _ in one.states().values()} <= {"queued", "running", "done"}

    warned = one.caught()
    one.warn(warned)
    requeued = one.caught(but=[warned])
    slurm("scontrol", "requeue", one.job(requeued))
    waiting = [run for run, (word, _) in one.states().items() if word == "queued"]
    cancelled = next(run for run in reversed(waiting) if run not in (warned, requeued))
    slurm("scancel", one.job(cancelled))
    lost = one.caught(node="n2", but=[warned, requeued])
    one.signal(lost, signal.SIGSTOP)  # or a quick machine is done before the controller misses the node
    slurm.daemons["n2"].send_signal(signal.SIGKILL)
    slurm.daemons["n2"].wait()
    slurm.wait(lambda: "down" in slurm("sinfo", "--noheader", "--nodes=n2", "--format=%T"))
    one.signal(lost, signal.SIGCONT)
    slurm.node("n2")
    one.wait()

    states = one.states("ablation-digits")
    assert {run for run, (word, _) in states.items() if word != "done"} == {cancelled}, (states, slurm.said())
    assert states[cancelled][0] == "failed"
    for run in (warned, requeued):
        assert re.search(r"going on after epoch \d+", one.log(run)), one.log(run)
    assert re.search(r"going on after epoch|waiting until|done already", one.log(lost)), one.log(lost)
    assert one.run("submit", "ablation-digits", "--slurm").stdout.startswith("1 of 20 runs submitted")
    one.wait()
    assert {word for word, _ in one.states("ablation-digits").values()} == {"done"}

    without = project_in(tmp_path / "without")
    Submitted(without, slurm)
    assert without.run("ffrepro", "reproduce", "ablation-digits").returncode in (0, 3, 4)
    assert one.project.shell("git init -q").returncode == 0  # dvc by itself asks for git
    for stage in ("train", "evaluate"):  # the last job of either submission has let DVC know
        for run in (warned, lost, cancelled):
            said = one.project.run("dvc", "repro", "--single-item", f"{stage}@{run}").stdout
            assert f"Stage '{stage}@{run}' didn't change, skipping" in said
    reported = one.project.run("ffrepro", "reproduce", "ablation-digits")
    assert reported.returncode in (0, 3, 4)
    assert "Running stage 'report" in reported.stderr
    assert "Running stage 'train" not in reported.stderr
    assert "Running stage 'evaluate" not in reported.stderr
    assert table(one.project) == table(without)
    assert files(one.project) == files(without)
    assert len(files(without)) == 60


def test_a_run_that_takes_longer_than_its_job_may_goes_on(slurm, project):
    one = Submitted(project, slurm)
    project.edit("params.yaml", "seeds: [0, 1]", "seeds: [0]")
    project.edit("params.yaml", "blocks: 4 8P 8", "blocks: 32 64P 64 64")
    assert project.run("ffrepro", "params", "graph").returncode == 0
    project.edit("params.yaml", "epochs: 40\n", "epochs: 160\n")
    one.cluster(minutes=2, warning=30)
    assert one.run("submit", "digits", "--slurm").stdout.startswith("1 of 1 runs submitted")
    held = one.caught()
    one.signal(held, signal.SIGSTOP)  # or a quick machine is done before the limit; Slurm lets it go on, to end it
    one.requeued(held)
    one.wait()
    assert one.states()["digits-0"][0] == "done", one.log("digits-0")
    assert "going on after epoch" in one.log("digits-0")
    script = (project.root / "jobs" / "slurm" / f"{one.job('digits-0')}_submission.sh").read_text()
    assert "--mem=2G" in script
    assert re.search(r"^srun .* --ntasks=1 --cpus-per-task=1 --export=ALL ", script, re.M)
    assert "wckey" not in script


@pytest.mark.parametrize("partition", ["all", "patient"])  # the latter tells it to end, a minute before it ends it
def test_a_run_that_gives_way_to_an_urgent_job_goes_on_to_the_same_bits(slurm, project_in, tmp_path, partition):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    one = Submitted(project_in(tmp_path / "with"), slurm)
    one.cluster(partition=partition)
    assert one.run("submit", "digits", "--slurm").stdout.startswith("2 of 2 runs submitted")
    preempted = one.caught()
    node = slurm("squeue", "--noheader", f"--job={one.job(preempted)}", "--format=%N").strip()
    urgent = slurm(
        "sbatch", "--parsable", "--output=/dev/null", "-p", "urgent", f"--nodelist={node}", "--wrap=sleep 5"
    ).split()[-1]
    one.requeued(preempted)
    slurm.wait(lambda: "PENDING" not in slurm("squeue", "--noheader", f"--job={urgent}", "--format=%T"))
    one.wait()
    assert {word for word, _ in one.states("digits").values()} == {"done"}
    assert re.search(r"going on after epoch \d+", one.log(preempted)), one.log(preempted)
    without = project_in(tmp_path / "without")
    Submitted(without, slurm)
    assert without.run("ffrepro", "reproduce", "digits").returncode in (0, 3, 4)
    assert files(one.project) == files(without)


def test_what_slurm_refuses_is_a_line(slurm, project):
    one = Submitted(project, slurm)
    one.cluster(partition="nowhere")
    done = one.run("submit", "digits", "--slurm", code=2)
    assert re.fullmatch(
        r"(.*\n)*ffrepro: Slurm refused the jobs: .*invalid partition.*; see cluster.yaml\n", done.stderr
    )
    assert one.states() == {}


def test_ctrl_c_while_slurm_takes_the_jobs_leaves_none_that_is_not_known(slurm, project, tmp_path):
    one = Submitted(project, slurm)
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" && kill -INT $PPID && sleep 5\n')
    sbatch.chmod(0o755)
    path = {"PATH": f"{sbatch.parent}:{os.environ['PATH']}", "SLURM_CONF": slurm.env["SLURM_CONF"]}
    inside = {"SLURM_MEM_PER_CPU": "10", "SLURM_NTASKS": "2", "SQUEUE_STATES": "PENDING"}  # as in another job
    done = project.run("ffrepro", "submit", "digits", "--slurm", PYTHONPATH=str(project.root), **path, **inside)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    assert one.run("submit", "digits", "--slurm").stdout.startswith("0 of 2 runs submitted")
    one.wait()
    assert {word for word, _ in one.states("digits").values()} == {"done"}  # they had begun before sbatch ended


def test_slurm_may_take_one_array_and_refuse_the_other(slurm, project):
    one = Submitted(project, slurm)
    project.edit("params.yaml", "  ablation-digits-backprop:\n", "  ablation-digits-backprop:\n    requires: cuda\n")
    names = ("digits", "ablation-digits-backprop")
    environment = {"SLURM_CONF": slurm.env["SLURM_CONF"], "PYTHONPATH": str(project.root), "FFREPRO_DEVICE": "auto"}
    done = project.run("ffrepro", "submit", *names, "--slurm", **environment)
    assert done.returncode == 2, done.stderr
    line = r"ffrepro: Slurm refused the jobs: .*generic resource.*; see cluster.yaml; submitted all the same: 2 of 4"
    assert re.fullmatch(line, done.stderr.splitlines()[-1])
    one.wait()
    states = one.states(*names)
    assert {run for run, (word, _) in states.items() if word == "done"} == {"digits-0", "digits-1"}
    assert {run for run, (word, _) in states.items() if word == "not submitted"} == {
        f"{names[1]}-{seed}" for seed in (0, 1)
    }


def test_status_tells_who_ended_a_run_that_cannot_say_so_itself(slurm, project):
    one = Submitted(project, slurm)
    project.edit("params.yaml", "seeds: [0, 1]", "seeds: [0]")
    project.edit("params.yaml", "epochs: 40\n", "epochs: 4000\n")
    assert project.run("ffrepro", "params", "graph").returncode == 0
    assert one.run("submit", "digits", "--slurm").stdout.startswith("1 of 1 runs submitted")
    slurm("scancel", one.job(one.caught()))
    one.wait()
    word, of = one.states("digits")["digits-0"]
    assert (word, "CANCELLED" in of) == ("failed", True)
    assert "interrupted; a training goes on from its last checkpoint" in one.log("digits-0")
