"""`accelerate launch`, with one line in place of tracebacks on how the processes ended.

What node_entry.sh runs: python -m launch.accelerated OPTIONS -m MODULE ARGUMENTS; the options are accelerate's.
"""

import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

LOG = "launcher.log"
"""In --log_dir: the line that is also printed."""


def accelerate_launch(arguments: Sequence[str]) -> int:
    """Start processes here and wait for them. Returns 0, or the exit code of the first to fail.

    Where a process dies without a word, one line says which and how.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its report of a rank that ended is said below in one line; the rank itself has said why.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    options = launch_command_parser().parse_args(arguments)
    host = socket.gethostname()
    try:
        launch_command(options)
    except SignalException as stopped:
        name = signal.Signals(stopped.sigval).name
        _say(f"stopped by {name}. The last checkpoint stands: type the same command again ({host})", options.log_dir)
        return 128 + stopped.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            _say(
                f"error: rank {rank} (process {failure.pid}) was ended by {name} on {host}; the other processes were "
                "stopped. The last checkpoint stands: type the same command again to go on",
                options.log_dir,
            )
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


def _say(line: str, log_dir: str | None) -> None:
    print(f"paretrain: {line}", file=sys.stderr)
    if log_dir is not None:
        with (Path(log_dir) / LOG).open("a") as stream:
            stream.write(line + "\n")


if __name__ == "__main__":
    sys.exit(accelerate_launch(sys.argv[1:]))
