"""Start a run again by itself when a fault has ended it, from its last checkpoint.

What entry.sh runs, with its RUN_DIR and MAX_RESTARTS: python -m launch.node.restarts OPTIONS -m MODULE ARGUMENTS; the
options are those of `accelerate launch`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from launch.node.accelerated import accelerate_launch
from trainer.errors import EXIT_UNFINISHED, UserError, run_command
from trainer.run_folder import CHECKPOINTS
from trainer.runtime.checkpoints.folder import latest

HANDS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
STAYS_ENDED = {0, EXIT_UNFINISHED, UserError.exit_code, *(128 + number for number in HANDS)}
"""Exit codes of what is no fault: a run that is complete or was asked to end, a mistake for the user to mend, a signal
to the launcher before the first step."""


def kept_running(start: Callable[[int], int], run_dir: Path, max_restarts: int) -> int:
    """Start a run, and again each time that a fault ends it. Returns the last exit code.

    Several hosts decide this each for itself, from what they all see: a fault of one ends the processes of all.

    Args:
        start: runs it once, given how often it was started before; returns its exit code.
        run_dir: the run's folder.
        max_restarts: how often at most. A start that has published no checkpoint is the last one in any case.

    Raises:
        UserError: it is negative.
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
            _say("not started again: it has saved nothing since it started, and would only end in the same way")
            return exit_code
        _say(f"starts again from {saved.name}, {restart} of {max_restarts} times")
    return start(max_restarts)


def _say(line: str) -> None:
    print(f"paretrain: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Read the command line."""

    def start(restart: int) -> int:
        return accelerate_launch(sys.argv[1:], restart)

    return kept_running(start, Path(os.environ["RUN_DIR"]), int(os.environ["MAX_RESTARTS"]))


if __name__ == "__main__":
    sys.exit(run_command(main))
