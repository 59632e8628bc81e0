"""One start of a run's processes on this host by `accelerate launch`, with one line in place of tracebacks."""

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from trainer.errors import LostPeerError, UserError
from trainer.runtime.faults.roll_call import answer_seconds
from trainer.runtime.launcher import LAUNCHER, OUTCOME

LOG = "launcher.log"
"""Beside the ranks' logs: the line that is also printed."""
SPARE_SECONDS = 3.0
"""How much longer than its roll call a rank may take to end when another one has failed."""
HOST = "host"
"""Beside the ranks' logs: the name of their host."""


def accelerate_launch(arguments: Sequence[str], restart: int = 0) -> int:
    """Start processes here and wait for them. Returns 0, or the exit code of the first that ended with another one.

    Where a process dies without a word, one line says which and how. The processes of a run on one machine meet over
    the loopback interface, and nothing of them listens on another one.

    Args:
        arguments: accelerate's options, the module and what it is given. With --log_dir, each start keeps its logs
            there in a folder of its own, named by the time.
        restart: how often it was started before. Each start meets the other hosts at a port of its own, since they do
            not end the last one at the same moment.

    Raises:
        UserError: the logs cannot be written.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its report of a rank that ended is said below in one line; the rank itself has said why.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    options = launch_command_parser().parse_args(arguments)
    # When a rank has failed, torch kills the others 30 seconds later, which is long for one that is stopped, and has no
    # setting for it. These are the defaults of `death_sig` and `timeout`.
    PContext.close.__defaults__ = None, answer_seconds(int(options.num_processes)) + SPARE_SECONDS
    if options.main_process_port:
        options.main_process_port += restart
    log_dir = None if options.log_dir is None else _own_folder(Path(options.log_dir))
    options.log_dir = str(log_dir or os.devnull)  # Without one, torch would make a temporary folder and leave it.
    if not options.main_process_ip:
        from launch.node import loopback

        loopback.use_loopback()
        options.rdzv_backend = loopback.BACKEND
    host = socket.gethostname()
    # A file that is gone when this process is.
    with open(os.memfd_create("outcome")) as outcome:
        os.environ |= {LAUNCHER: str(os.getpid()), OUTCOME: f"/proc/{os.getpid()}/fd/{outcome.fileno()}"}
        try:
            launch_command(options)
        except SignalException as stopped:
            if exit_code := outcome.read():
                return int(exit_code)
            name = signal.Signals(stopped.sigval).name
            _say(f"stopped by {name}. The last checkpoint stands: type the same command again ({host})", log_dir)
            return 128 + stopped.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                _say(
                    f"error: rank {rank} (process {failure.pid}) was ended by {name} on {host}; the other processes "
                    "were stopped. The last checkpoint stands: type the same command again to go on",
                    log_dir,
                )
                return 128 - failure.exitcode
            if failure.exitcode == 1:  # Python's own, for an exception that nobody caught.
                _say(
                    f"error: rank {rank} (process {failure.pid}) failed on {host}, with the traceback above; the other "
                    "processes were stopped. The last checkpoint stands",
                    log_dir,
                )
            return failure.exitcode
        except (ConnectionError, DistError) as error:
            _say(_no_meeting(options, host, error), log_dir)
            return LostPeerError.exit_code
    return 0


def _own_folder(logs: Path) -> Path:
    """This start's own, with the host's name in it."""
    folder = logs / f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    try:
        folder.mkdir(parents=True)
        (folder / HOST).write_text(f"{socket.gethostname()}\n")
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} cannot write to {folder}: {error}. The run's folder has to be on a file system "
            "that all nodes share"
        ) from None
    os.environ["TORCH_FR_DUMP_TEMP_FILE"] = str(folder / "flight_")
    return folder


def _no_meeting(options: argparse.Namespace, host: str, error: Exception) -> str:
    last_line = str(error).strip().splitlines()[-1].strip()
    return (
        f"error: node {options.machine_rank} on {host} did not meet the other nodes at {options.main_process_ip} port "
        f"{options.main_process_port}: {last_line}\n"
        f"  expected: entry.sh on {options.num_machines} hosts at the same time, with the same HEAD_HOST, "
        "HEAD_PORT and NUM_NODES and a NODE_RANK each; the port free on node 0 and open between the hosts\n"
        "  to try the hosts: MODULE=launch.node.preflight before the same command"
    )


def _say(line: str, log_dir: Path | None) -> None:
    print(f"paretrain: {line}", file=sys.stderr, flush=True)
    if log_dir is not None:
        with (log_dir / LOG).open("a") as stream:
            stream.write(line + "\n")
