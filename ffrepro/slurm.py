"""A job array of Slurm's, a seed a job, by submitit; what the cluster is like stands in cluster.yaml."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from ffrepro import config, errors, jobs, pipeline
from ffrepro.config import Params, Section, impossible
from ffrepro.errors import MachineError, UserError
from ffrepro.jobs import Run
from ffrepro.layout import Layout
from ffrepro.progress import say

if TYPE_CHECKING:
    import submitit

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:,=@/+-]{0,199}$")]
EARLY = 60  # seconds by which Slurm may warn a job too early; one that has only just begun would not understand
TOLD_TO_END = (-signal.SIGTERM, 128 + signal.SIGTERM)
PATIENCE = 3600  # seconds a job that was told to end waits for Slurm to end it; longer than any grace time
NOTE_MEMORY = 4  # GiB at the most; a data set is read
OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")


class Cluster(Section):
    """The whole of cluster.yaml."""

    partition: Word | None = Field(None, description="Slurm's partition; none: its default.")
    account: Word | None = Field(None, description="The account that pays.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Word | None = Field(None, description="Features that a node must have.")
    minutes: int = Field(240, ge=1, le=43_200, description="Time limit of a job. A run that takes longer goes on.")
    cpus: int = Field(4, ge=1, le=1024, description="CPU cores of a job.")
    memory: int = Field(16, ge=1, le=4096, description="Memory of a job in GiB.")
    gpu: Word = Field("gpu:1", description="What a row that needs a GPU asks for, as --gres.")
    parallel: int = Field(100, ge=1, le=10_000, description="Jobs at once at the most.")
    timeouts: int = Field(20, ge=0, le=1000, description="How often a run may reach its time limit and go on.")
    warning: int = Field(60, ge=1, le=3600, description="Seconds before the time limit at which a job is told of it.")
    container: str | None = Field(
        None, min_length=1, max_length=1000, description="An Apptainer image that the trainings run in."
    )

    @model_validator(mode="after")
    def _warned_while_it_runs(self) -> "Cluster":
        least = self.warning + EARLY
        if 60 * self.minutes <= least:
            raise impossible([("minutes", self.minutes, f"more than warning and {EARLY} s, together {least} s")])
        return self


def read(path: Path) -> Cluster:
    """cluster.yaml, or the defaults where there is none. Raises UserError, a line a mistake."""
    if not path.exists():
        return Cluster()
    return config.checked(Cluster, config.read_yaml(path) or {}, path.name)


def _not_warned() -> None:
    """Slurm's warning reaches all processes of a job: the training is told to end by its parent, and in order."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class Training:
    """A job: one run's stages as a process, told to end when Slurm says that the time is up, then queued again."""

    def __init__(self, root: Path, run: Run, start: list[str], settings: dict[str, str]) -> None:
        self.root, self.run, self.start, self.settings = root, run, start, settings

    def __call__(self) -> None:
        project = Layout(self.root)
        environment = pipeline.environment(self.settings)
        command = [*self.start, *jobs.command(self.run, "python" if self.start else sys.executable)]
        with project.log(*self.run).open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=log, preexec_fn=_not_warned
            )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code in TOLD_TO_END:  # scancel, or the grace time of a job that gives way, which is queued again only if
            time.sleep(PATIENCE)  # Slurm has to end it
        if code:
            sys.exit(code % 256)  # Slurm shall call the job failed

    def checkpoint(self) -> object:
        """What submitit queues again: the same, which goes on from the last epoch's checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Note:
    """The last job: lets DVC know of the runs that are done."""

    def __init__(self, root: Path, runs: list[Run]) -> None:
        self.root, self.runs = root, runs

    def __call__(self) -> None:
        project = Layout(self.root)
        params = config.load(project.params)
        with pipeline.alone(project):
            jobs.note(project, params, self.runs)


def submit(project: Layout, params: Params, runs: list[Run], cluster: Cluster, settings: dict[str, str]) -> list[Run]:
    """Submit what is neither done nor submitted already, an array for the runs that need a GPU and one for the others.

    settings: their FFREPRO_DEVICE, unless it is auto, says which all of them are. Returns what was submitted. Raises
    UserError, also without submitit and where Slurm takes only one of the arrays, MachineError where there is no Slurm.
    """
    start = _start(project, cluster)
    try:
        import submitit
    except ImportError:
        raise UserError("submit --slurm needs submitit, the extra `slurm`: `nox -s dev` installs it") from None
    if not shutil.which("sbatch"):
        raise MachineError("submit: there is no sbatch here; go to a login node of the cluster, or use --local N")
    with pipeline.alone(project):
        jobs.prepare(project, params, runs, settings)
        busy = {s.run: s.word for s in jobs.states(project, params, runs) if s.word in ("queued", "running")}
        for run, word in busy.items():
            say(f"{run}: {word} already, left alone")
        fresh = [run for run in runs if run not in busy and jobs.lacking(project, params, run)]
        jobs.note(project, params, [run for run in runs if run not in fresh and run not in busy])
        taken: list[Run] = []
        refused: list[UserError] = []
        ids, asked = [], settings["FFREPRO_DEVICE"]
        needs = {run: config.experiment(params, run.name).requires if asked == "auto" else asked for run in fresh}
        for kind in ("cuda", "cpu"):
            chosen = [run for run in fresh if needs[run] == kind]
            if not chosen:
                continue
            # all jobs in one folder: one of its own would be made after the job may have begun, and Slurm fails without
            executor = submitit.SlurmExecutor(project.slurm, max_num_timeout=cluster.timeouts)
            executor.update_parameters(
                job_name="ffrepro",
                array_parallelism=cluster.parallel,
                signal_delay_s=cluster.warning,
                gres=cluster.gpu if kind == "cuda" else None,
                **_common(cluster, cluster.cpus, cluster.memory),
            )
            for run in chosen:
                project.log(*run).unlink(missing_ok=True)
            # a node's GPUs and other cores are not a run's that has not asked for them
            threads = os.environ.get("FFREPRO_THREADS") or str(cluster.cpus)
            its = settings | ({"FFREPRO_DEVICE": "cpu", "FFREPRO_THREADS": threads} if kind == "cpu" else {})
            trainings = [Training(project.root, run, start, its) for run in chosen]
            try:
                with errors.later():  # or Slurm has jobs that nobody here knows of
                    made = submitted(executor, trainings)
                    for run, job in zip(chosen, made, strict=True):
                        jobs.write_down(project, run, job)
            except UserError as error:
                refused.append(error)
                continue
            taken += chosen
            ids.append(made[0].partition("_")[0])
        if ids:
            executor = submitit.SlurmExecutor(project.slurm)
            executor.update_parameters(
                job_name="ffrepro-note",
                signal_delay_s=1,
                dependency=f"afterany:{':'.join(ids)}",
                **_common(cluster, 1, min(NOTE_MEMORY, cluster.memory)),
            )
            try:
                submitted(executor, [Note(project.root, runs)])
            except UserError as error:
                say(f"{error}: the last one, which enters what is done into dvc.lock; `ffrepro reproduce` does it too")
    if refused:
        raise UserError(f"{refused[0]}; submitted all the same: {len(taken)} of {len(fresh)}" if taken else refused[0])
    return fresh


def _start(project: Layout, cluster: Cluster) -> list[str]:
    """What a training's command begins with: the container's, if there is one. Raises UserError for a missing image."""
    image, root = cluster.container, str(project.root)
    if not image:
        return []
    if "://" not in image:
        image = str(project.root / image)
        if not Path(image).exists():
            raise UserError(f"cluster.yaml: container: given {cluster.container!r}; allowed: an image that is there")
    return ["apptainer", "exec", "--nv", "--bind", root, "--pwd", root, image]


def _common(cluster: Cluster, cpus: int, memory: int) -> dict[str, object]:
    """What every job is submitted with. What `srun` is told says what Slurm's versions, and a cluster's settings, would
    otherwise decide in different ways: how many copies of a job there are, how many cores and which environment."""
    return {
        "cpus_per_task": cpus,
        "mem": f"{memory}G",
        "ntasks_per_node": 1,
        "srun_args": ["--ntasks=1", f"--cpus-per-task={cpus}", "--export=ALL"],
        "wckey": None,  # submitit's own is none of a cluster's
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.minutes,
        "additional_parameters": {"requeue": True},  # also after a node's failure
    }


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job in which this may run, as in `srun --pty bash`: sbatch would hand on what `srun` was told of it."""
    mine = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SRUN_")) and name not in OF_THE_CLUSTER
    }
    try:
        yield
    finally:
        os.environ.update(mine)


def submitted(executor: "submitit.SlurmExecutor", functions: "list[Training] | list[Note]") -> list[str]:
    """The jobs' ids. Raises UserError with what Slurm says against them."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with _outside_of_jobs(), executor.batch():  # themselves, since submitit asks them for a checkpoint
            made = [executor.submit(function) for function in functions]
        return [job.job_id for job in made]
    except (FailedJobError, FailedSubmissionError) as error:
        said = [line for line in str(error).splitlines() if "error" in line] or str(error).splitlines()[-1:]
        raise UserError(f"Slurm refused the jobs: {config.plain(said[0])}; see cluster.yaml") from None
