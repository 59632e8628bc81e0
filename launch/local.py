"""Start the processes of one run on this machine, through `accelerate launch`, and say how they ended."""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ACCELERATE_CONFIG = Path(__file__).parent / "accelerate" / "cpu.yaml"


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m trainer.train *arguments` in `processes` processes. Returns the exit code of the first to fail.

    Where a process dies without a word, one line says which and how.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its report of a rank that ended is said below in one line; the rank itself has said why.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    options = ["--config_file", str(ACCELERATE_CONFIG), "--num_processes", str(processes)]
    try:
        launch_command(launch_command_parser().parse_args([*options, "-m", "trainer.train", *arguments]))
    except SignalException as stopped:
        name = signal.Signals(stopped.sigval).name
        print(f"paretrain: stopped by {name}. The last checkpoint stands: type the same command again", file=sys.stderr)
        return 128 + stopped.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(
                f"paretrain: error: rank {rank} (process {failure.pid}) was ended by {name}; the other processes were "
                "stopped. The last checkpoint stands: type the same command again to go on",
                file=sys.stderr,
            )
            return 128 - failure.exitcode
        return failure.exitcode
    return 0
