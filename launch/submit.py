"""`paretrain submit`: fill in launch/slurm/train.sbatch, keep it in the run's folder, and submit it with sbatch."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.before_submit import check_runs, gpu_note
from launch.cluster import has_gpus, max_array_size
from launch.frozen_code import FrozenCode, frozen_code
from launch.grid import Point
from trainer.config.file import is_printable
from trainer.config.machine import try_to_write
from trainer.errors import UserError
from trainer.files import replace
from trainer.runtime.stopping import refuse_stopped

LAUNCH = Path(__file__).parent
TEMPLATE = LAUNCH / "slurm" / "train.sbatch"
BODY = "set -euo pipefail\n"
"""First line of the template's body; the lines before it are options."""
SCRIPT = "submit.sbatch"
OF_GPUS = ("gres", "gpus", "gpus-per-task", "gpus-per-node", "gpus-per-socket")
"""Options of sbatch that ask for GPUs: with one of them, the user's words count."""
UNLIMITED = ("UNLIMITED", "INFINITE", "-1", "0")
"""What sbatch takes for no time limit."""
MIN_TRAINING_SECONDS = 300
"""Shortest training time of a job before it is asked to save. With less, it would be requeued again and again."""


@dataclass(frozen=True)
class Job:
    """The resources and options of a Slurm job.

    Attributes:
        nodes: number of machines.
        processes_per_node: processes on each machine.
        parallel: number of runs of an array at a time; None: all.
        preflight: "yes": test the nodes before training; "only": test them and end; "no".
        prologue: a shell script that each node reads before it starts Python; None: none.
        live_code: run the code as it is at each start; else a copy that the submission makes.
        container: image to run in, in pyxis's format; None: this Python's environment.
        mounts: folders that the container sees besides this one and the run's, such as `/shared/data:/shared/data`.
        options: further options of sbatch, such as `--partition=gpu`. They override the template's.
    """

    nodes: int
    processes_per_node: int
    parallel: int | None = None
    preflight: str = "no"
    prologue: Path | None = None
    live_code: bool = False
    container: str | None = None
    mounts: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in {"--container": self.container, "--container-mounts": self.mounts}.items():
            if value == "":
                raise UserError(f"{name} is empty: give a value, or leave the option out")
        if min(self.nodes, self.processes_per_node, self.parallel or 1) < 1:
            raise UserError(
                f"--nodes {self.nodes} --processes-per-node {self.processes_per_node} --parallel {self.parallel}: "
                "expected 1 or more of each"
            )
        if self.mounts is not None and self.container is None:
            raise UserError(f"--container-mounts {self.mounts} needs --container IMAGE")

    @property
    def overrides(self) -> list[str]:
        """Return the configuration overrides that the job implies."""
        return [f"parallel.processes={self.nodes * self.processes_per_node}"]


def submit(config: Path, points: Sequence[Point], job: Job, *, dry_run: bool) -> None:
    """Submit a job for one run, or an array of jobs for several; or only print the script.

    Args:
        config: the YAML file, as typed.
        points: the runs, from `launch.grid.points` with `job.overrides`.
        job: the resources to ask for.
        dry_run: print exactly what would be submitted, write nothing, and refuse the same mistakes; without Slurm, too.

    Raises:
        UserError: there is no Slurm here, it refuses the job, a run was stopped or could not start, or the time limit
            is too short.
    """
    is_live = job.live_code or job.container is not None  # An image is a copy already.
    code = None if is_live else frozen_code(_folder(points), config, [p.experiment for p in points])
    script = render(config, points, job, code)
    if note := gpu_note(points[0].experiment.parallel.device, job.processes_per_node):
        print(f"paretrain: {note}", file=sys.stderr)
    if dry_run:
        print(script, end="", flush=True)
    elif shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on this machine. Submit from a login node of the cluster.\n"
            "  to see the script: add --dry-run\n"
            f"  to train here: paretrain train {config} --processes {job.processes_per_node}\n"
            "  on several machines without Slurm: see launch/README.md"
        )
    for point in points:
        refuse_stopped(point.experiment.run_dir)
    _refuse_what_the_cluster_lacks(points, job)
    if job.container is None:  # A container may see other folders, and have other packages.
        check_runs([point.experiment for point in points], so="nothing was submitted")
    if dry_run:
        return
    folder = _folder(points)
    path = folder / SCRIPT
    try_to_write(folder / "logs")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    if code is not None:
        code.write()
    replace(path, script.encode())
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"sbatch refused the job:\n{done.stderr.strip()}\nThe script is {path}")
    number = done.stdout.strip().partition(";")[0]
    what = points[0].experiment.name if len(points) == 1 else f"{len(points)} runs of {config}"
    where = [point.experiment.run_dir for point in points]
    print(
        f"job {number}: {what}, each on {job.nodes} x {job.processes_per_node} processes\n"
        f"output: {folder / 'logs'}/slurm-{number}{'_*' if len(points) > 1 else ''}.out\n"
        f"to save and end it for good: touch {shlex.join(str(run_dir / 'stop') for run_dir in where[:3])}"
        f"{' ...' if len(where) > 3 else ''}"
    )


def render(config: Path, points: Sequence[Point], job: Job, code: FrozenCode | None = None) -> str:
    """Return the batch script: the options of sbatch, the variables of the template, and its body.

    Args:
        config: the YAML file, as typed.
        points: the runs.
        job: the resources to ask for.
        code: the copy of the code that the job runs; None: the code of now and later, or that of a container.

    Raises:
        UserError: an option is malformed, or the time limit is too short.
    """
    head, _, body = TEMPLATE.read_text().partition(BODY)
    options = dict(_option(line.removeprefix("#SBATCH ")) for line in head.splitlines() if line.startswith("#SBATCH "))
    given = dict(map(_option, job.options))
    options |= _own_options(points, job, own_gpus=not given.keys() & set(OF_GPUS)) | given
    _check_time(options)
    _check_memory(options)
    header = [f"#SBATCH --{key}{'=' + _quoted(value) if value else ''}" for key, value in options.items()]
    values = {
        "PROCESSES_PER_NODE": str(job.processes_per_node),
        "PREFLIGHT": job.preflight,
        "PYTHON": sys.executable,
        "PARETRAIN_LAUNCH": str(LAUNCH),
        **(code.variables if code else {}),
    }
    if job.prologue is not None:
        values["PROLOGUE"] = str(job.prologue.absolute())
    if job.container is not None:
        values["CONTAINER_IMAGE"] = job.container
    if job.mounts is not None:
        values["CONTAINER_MOUNTS"] = job.mounts
    lines = [
        "#!/usr/bin/env bash",
        *header,
        "",
        *(f"export {key}={_quoted(value)}" for key, value in values.items()),
        *_choice(code.config if code else config, points),
        "",
    ]
    return "\n".join(lines) + "\n" + BODY + body


def _refuse_what_the_cluster_lacks(points: Sequence[Point], job: Job) -> None:
    """Refuse a job that would wait for ever, or would leave the GPUs of its nodes idle."""
    given = dict(map(_option, job.options))
    if points[0].experiment.parallel.device == "cpu" and not given.keys() & set(OF_GPUS):
        partition = given.get("partition")
        if has_gpus(partition):
            raise UserError(
                f"every node of {f'partition {partition}' if partition else 'the default partition'} has GPUs, and the "
                "job would use none of them: add parallel.device=cuda\n"
                "  to train on their cores all the same: --sbatch=--gres=none"
            )
    if len(points) > 1 and (largest := max_array_size()) is not None and len(points) > largest:
        raise UserError(
            f"--grid asks for {len(points):,} runs, and an array of this cluster has {largest:,} at most "
            "(MaxArraySize): submit parts of the grid"
        )
    if job.prologue is not None and not job.prologue.is_file():
        raise UserError(f"--prologue {job.prologue}: there is no such file here. Expected a shell script")


def _own_options(points: Sequence[Point], job: Job, own_gpus: bool) -> dict[str, str]:
    first = points[0].experiment
    cores = job.processes_per_node * (first.parallel.threads + first.data.workers)
    many = len(points) > 1
    options = {
        "job-name": str(first.wandb.group) if many else first.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cores),
        "chdir": os.getcwd(),
        "output": f"{str(_folder(points).absolute()).replace('%', '%%')}/logs/slurm-{'%A_%a' if many else '%j'}.out",
    }
    if first.parallel.device == "cuda" and own_gpus:
        options["gpus-per-node"] = str(job.processes_per_node)
    if many:
        options["array"] = f"0-{len(points) - 1}" + (f"%{job.parallel}" if job.parallel else "")
    return options


def _folder(points: Sequence[Point]) -> Path:
    """Return the folder of the script and of Slurm's output."""
    first = points[0].experiment
    return first.run_dir if len(points) == 1 else first.output / f"{first.wandb.group}.array"


def _choice(config: Path, points: Sequence[Point]) -> list[str]:
    """Return the lines that set the run's folder and arguments."""

    def line(point: Point) -> str:
        run_dir = _quoted(str(point.experiment.run_dir.absolute()))
        return f"RUN_DIR={run_dir}; set -- {' '.join(map(_quoted, [str(config), *point.overrides]))}"

    if len(points) == 1:
        return [line(points[0])]
    cases = [f"  {number}) {line(point)} ;;" for number, point in enumerate(points)]
    return ["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"]


def _option(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.+))?", text.strip(" "), re.DOTALL)
    if not found:
        raise UserError(f"found --sbatch {text!r}, expected a long option of sbatch: --sbatch=--constraint=h100")
    return found[1], found[2] or ""


def _quoted(value: str) -> str:
    """Quote a value for one line of the script. A line break would start a command, or an option of sbatch."""
    if not is_printable(value):
        raise UserError(f"found {value!r}, expected text without line breaks and control characters")
    return shlex.quote(value)


def _check_time(options: dict[str, str]) -> None:
    """Refuse a time limit that leaves too little training time before the signal to save."""
    found = re.search(r"@([0-9]{1,6})$", options.get("signal", ""))
    if "time" not in options or not found or options["time"].upper() in UNLIMITED:
        return
    warning = int(found[1])
    seconds = _seconds(options["time"])
    if seconds < warning + MIN_TRAINING_SECONDS:
        raise UserError(
            f"--time {options['time']} is {seconds} s, but the job is asked to save {warning} s before its end, which "
            f"leaves little to train: expected at least --time {-(-(warning + MIN_TRAINING_SECONDS) // 60)} (minutes)"
        )


def _check_memory(options: dict[str, str]) -> None:
    """Refuse what sbatch would not take for a size."""
    if "mem" in options and not re.fullmatch(r"[0-9]{1,12}[KMGTkmgt]?", options["mem"]):
        raise UserError(
            f"found --memory {options['mem'][:40]!r}, expected a whole number of MiB, or one with K, M, G or T: 480G"
        )


def _seconds(text: str) -> int:
    """Parse Slurm's time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    found = re.fullmatch(r"(?:(N)-)?(N)(?::(N))?(?::(N))?".replace("N", "[0-9]{1,6}"), text)
    if not found:
        raise UserError(
            f"found --time {text[:40]!r}, expected minutes, hours:minutes:seconds, days-hours, or UNLIMITED"
        )
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) > 1 else 0)
