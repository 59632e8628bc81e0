"""Restart a run from its last checkpoint after a fault has ended it.

entry.sh runs it with RUN_DIR and MAX_RESTARTS in the environment: python -m launch.node.restarts OPTIONS -m MODULE
ARGUMENTS. The options are those of `accelerate launch`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from launch.node.accelerated import accelerate_launch
from launch.node.meeting import Meeting
from trainer.errors import EXIT_UNFINISHED, UserError, run_command
from trainer.runtime.checkpoints.folder import CHECKPOINTS, latest

SENT_BY_USERS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
STAYS_ENDED = {0, EXIT_UNFINISHED, UserError.exit_code, *(128 + number for number in SENT_BY_USERS)}
"""Exit codes without a restart: the run is complete or was asked to end, the user has to correct a mistake, or the
launcher received a signal before the first step."""


def run_with_restarts(start: Callable[[int], int], run_dir: Path, max_restarts: int) -> int:
    """Start a run, and restart it each time a fault ends it. Returns the last exit code.

    Each host decides for itself. All come to the same decision, since a fault on one host ends the processes on all.

    Args:
        start: takes the number of earlier starts, runs the processes once, and returns their exit code.
        run_dir: the run's folder.
        max_restarts: the maximum number of restarts. There is none after a start that published no checkpoint.

    Raises:
        UserError: `max_restarts` is negative.
    """
    if max_restarts < 0:
        raise UserError(f"--max-restarts {max_restarts}: expected 0 or more")
    for restart in range(1, max_restarts + 1):
        saved_before = latest(run_dir / CHECKPOINTS)
        exit_code = start(restart - 1)
        if exit_code in STAYS_ENDED:
            return exit_code
        saved = latest(run_dir / CHECKPOINTS)
        if saved is None or saved == saved_before:
            _say("not started again: this start has saved no checkpoint, so another one would end in the same way")
            return exit_code
        _say(f"starts again from {saved.name}, {restart} of {max_restarts} times")
    return start(max_restarts)


def _say(line: str) -> None:
    print(f"paretrain: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line."""

    run_dir = Path(os.environ["RUN_DIR"])
    meeting = Meeting(run_dir)

    def start(restart: int) -> int:
        return accelerate_launch(sys.argv[1:], restart, run_dir, meeting)

    return run_with_restarts(start, run_dir, int(os.environ["MAX_RESTARTS"]))


if __name__ == "__main__":
    sys.exit(run_command(main))
