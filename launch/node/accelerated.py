"""Start the processes of a run on this host by `accelerate launch`, with one line in place of tracebacks."""

import argparse
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil

from launch.node.meeting import Meeting
from paretrain_command import safe_path
from trainer.errors import LostPeerError, UserError
from trainer.runtime.checkpoints.folder import CHECKPOINTS, last_saved
from trainer.runtime.faults.roll_call import answer_seconds
from trainer.runtime.launcher import LAUNCHER, OUTCOME
from trainer.runtime.stopping import say_interrupted

LOG = "launcher.log"
"""The file beside the logs of the ranks that repeats the line that is printed."""
SPARE_SECONDS = 3.0
"""Time that a rank gets, beyond its roll call, to end after another rank has failed."""
HOST = "host"
"""The file beside the logs of the ranks that holds the name of their host."""
EXIT_CODE = "exit_code"
"""The file beside the logs of the ranks that holds the exit code of their launcher."""
KEPT_STARTS = 20
"""How many starts keep their logs on each node."""


def accelerate_launch(
    arguments: Sequence[str], restart: int = 0, run_dir: Path | None = None, meeting: Meeting | None = None
) -> int:
    """Start processes on this host and wait for them. Returns 0, or the exit code of the first one that failed.

    If a process dies without a message, print one line that says which process, and how it died. The processes of a run
    on one machine use the loopback interface and listen on no other.

    Args:
        arguments: options of accelerate, the module, and the module's arguments. With --log_dir, each start writes its
            logs to a new folder in there, named by the time.
        restart: how often the run was started before. Each start uses another port to meet the other hosts, because
            they do not all end the last start at the same moment.
        run_dir: folder of the run, to say what was saved when it ends; None: the processes do not train.
        meeting: with the launchers of other hosts; None: there are none.

    Raises:
        UserError: the logs cannot be written.
    """
    from accelerate.commands.launch import launch_command_parser

    options = launch_command_parser().parse_args(arguments)
    log_dir = None if options.log_dir is None else _own_folder(Path(options.log_dir))
    options.log_dir = str(log_dir or os.devnull)  # Otherwise torch leaves a temporary folder.
    exit_code = _launched(options, restart, run_dir, meeting, log_dir)
    if log_dir is not None:
        with suppress(OSError):  # The disk may be what has ended the run.
            (log_dir / EXIT_CODE).write_text(f"{exit_code}\n")
    return exit_code


def _launched(
    options: argparse.Namespace, restart: int, run_dir: Path | None, meeting: Meeting | None, log_dir: Path | None
) -> int:
    from accelerate.commands.launch import launch_command
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import logger as launcher_log

    # Torch's report of a failed rank is replaced by one line below; the rank itself has printed why.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # It warns of an option that accelerate passes in every start.
    launcher_log.setLevel(logging.ERROR)
    # It tells of the second Ctrl-C, which is told below.
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
    # After a rank has failed, torch waits 30 seconds before it kills the others, too long if one is stopped, and offers
    # no setting. These are the defaults of `death_sig` and `timeout`.
    PContext.close.__defaults__ = None, answer_seconds(int(options.num_processes)) + SPARE_SECONDS
    if options.main_process_port:
        options.main_process_port += restart
    if not options.main_process_ip:
        from launch.node import loopback

        loopback.use_loopback()
        options.rdzv_backend = loopback.BACKEND
    host = socket.gethostname()
    # A file in memory, which ends with this process.
    with open(os.memfd_create("outcome")) as outcome:
        own = {LAUNCHER: str(os.getpid()), OUTCOME: f"/proc/{os.getpid()}/fd/{outcome.fileno()}"}
        os.environ |= safe_path() | own
        try:
            if meeting and options.main_process_ip:
                where = options.main_process_ip, options.main_process_port
                options.main_process_port = meeting.port(options.machine_rank, *where, _start_seconds(options))
            with _passing_on_interrupts() if run_dir else nullcontext():
                launch_command(options)
        except SignalException as stopped:
            if exit_code := outcome.read():
                return int(exit_code)
            name = signal.Signals(stopped.sigval).name
            _say(f"stopped by {name} on {host}{_saved(run_dir)}", log_dir)
            return 128 + stopped.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                _say(
                    f"error: rank {rank} (process {failure.pid}) was ended by {name} on {host}; the other processes "
                    f"were stopped{_saved(run_dir)}",
                    log_dir,
                )
                return 128 - failure.exitcode
            if failure.exitcode == 1:  # Python's exit code after an uncaught exception.
                _say(
                    f"error: rank {rank} (process {failure.pid}) failed on {host}, with the traceback above; the other "
                    f"processes were stopped{_saved(run_dir)}",
                    log_dir,
                )
            return failure.exitcode
        except (ConnectionError, DistError) as error:
            _say(_no_meeting(options, host, error), log_dir)
            return LostPeerError.exit_code
    return 0


def _saved(run_dir: Path | None) -> str:
    """Return what was saved and what to type; nothing where nothing is trained."""
    return "" if run_dir is None else f"; {last_saved(run_dir / CHECKPOINTS)}. Type the same command again to go on"


@contextmanager
def _passing_on_interrupts() -> Iterator[None]:
    """Ask the ranks to save and end at the first Ctrl-C, and end them at the second.

    Torch's launcher would give them a time limit at the first one. They have sessions of their own, so the terminal
    signals this process alone.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    this, interrupts = psutil.Process(), 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            say_interrupted()
        for rank in this.children():
            rank.send_signal(number if interrupts == 1 else signal.SIGKILL)
        if interrupts > 1:
            raise SignalException("Ctrl-C twice", signal.Signals(number))

    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGHUP,SIGQUIT")
    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _own_folder(logs: Path) -> Path:
    """Make a folder for the logs of this start, with the host's name in it, and remove those of old starts."""
    folder = logs / f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    try:
        folder.mkdir(parents=True)
        (folder / HOST).write_text(f"{socket.gethostname()}\n")
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} cannot write to {folder}: {error}. The run's folder must be on a file system "
            "that all nodes share"
        ) from None
    os.environ["TORCH_FR_DUMP_TEMP_FILE"] = str(folder / "flight_")
    _prune(logs)
    return folder


def _prune(logs: Path) -> None:
    """Remove the logs of this node's starts but for the last KEPT_STARTS, of all jobs of the run.

    Args:
        logs: RUN/logs/JOB/MODULE/nodeN, which holds a folder for each start, named by the time.
    """
    hosts = logs.parents[2].glob(f"*/{logs.parent.name}/{logs.name}/*/{HOST}")
    starts = sorted((host.parent for host in hosts), key=lambda start: start.name)
    for old in starts[:-KEPT_STARTS]:
        shutil.rmtree(old, ignore_errors=True)
        with suppress(OSError):  # Not empty.
            for folder in old.parents[:3]:
                folder.rmdir()


def _start_seconds(options: argparse.Namespace) -> float:
    """Return how long the hosts wait for one another, from accelerate's option --rdzv_conf."""
    pairs = dict(pair.split("=", 1) for pair in options.rdzv_conf.split(",") if pair)
    return float(pairs["timeout"])


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
