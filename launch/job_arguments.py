"""The arguments of a command that submits a job to Slurm."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.commands.arguments import whole

if TYPE_CHECKING:
    from launch.submit import Job


def add_job(parser: argparse._ActionsContainer, *, required: bool) -> None:
    """Add the resources of a job; `required`: whether the command always submits one."""
    parser.add_argument("--nodes", type=whole(1), required=required, metavar="N", help="number of machines")
    parser.add_argument(
        "--processes-per-node",
        type=whole(1),
        required=required,
        metavar="G",
        help="processes on each machine: one per GPU",
    )
    parser.add_argument(
        "--time", metavar="T", help="time limit of each start, in sbatch's format; the job is requeued after it"
    )
    parser.add_argument("--partition", metavar="NAME", help="partition of the cluster")
    parser.add_argument("--account", metavar="NAME", help="account to charge")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory of each node, such as 480G; 0: all of it (default: what the cluster gives for the cores)",
    )
    parser.add_argument(
        "--prologue",
        type=Path,
        metavar="FILE",
        help="a shell script that each node reads first, such as one that loads modules",
    )
    parser.add_argument(
        "--preflight",
        choices=("no", "yes", "only"),
        default="no",
        help="test every node before training, or only test them (default: no)",
    )
    parser.add_argument(
        "--live-code", action="store_true", help="run the code as it is at each start, not the copy of it in RUN/code"
    )
    parser.add_argument("--container", metavar="IMAGE", help="run in this image, on clusters with pyxis")
    parser.add_argument(
        "--container-mounts", metavar="HOST:CONTAINER,...", help="folders that it sees besides this one"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other option of sbatch, such as --sbatch=--constraint=h100",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script and make all checks; submit nothing")


def job_options_of(options: argparse.Namespace) -> list[str]:
    """Return the options of a job that were typed, those of its size left out."""
    given = {
        "--time": options.time,
        "--partition": options.partition,
        "--account": options.account,
        "--memory": options.memory,
        "--prologue": options.prologue,
        "--preflight": options.preflight != "no",
        "--live-code": options.live_code,
        "--container": options.container,
        "--container-mounts": options.container_mounts,
        "--sbatch": options.sbatch,
        "--dry-run": options.dry_run,
    }
    return [name for name, value in given.items() if value]


def job_of(options: argparse.Namespace) -> "Job":
    """Return the job that was asked for."""
    from launch.submit import Job

    short = {"time": options.time, "partition": options.partition, "account": options.account, "mem": options.memory}
    given = [f"--{name}={value}" for name, value in short.items() if value is not None]
    return Job(
        nodes=options.nodes,
        processes_per_node=options.processes_per_node,
        parallel=options.parallel,
        preflight=options.preflight,
        prologue=options.prologue,
        live_code=options.live_code,
        container=options.container,
        mounts=options.container_mounts,
        options=(*given, *options.sbatch),
    )
