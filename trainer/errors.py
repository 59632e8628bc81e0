"""The errors that a user is meant to read, and how a command ends on them."""

import faulthandler
import io
import os
import signal
import sys
from collections.abc import Callable

from trainer.plain import printable

EXIT_INTERRUPTED = 130
STDERR = 2
"""The file descriptor: sys.stderr may be something without one."""


class UserError(Exception):
    """A mistake in what the user gave us, or a fault in the world that the user can mend.

    Its message says what was found, what was expected and what to type. The command line prints the message alone,
    without a traceback. Every rank of a run raises the same one; rank 0 prints it.
    """

    exit_code = 2


class StoppedError(UserError):
    """A signal has ended the start of a run."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} before the first step. The same command starts the run again, or goes on")
        self.exit_code = 128 + number


class FaultError(UserError):
    """A fault of the machine, such as its disk's, that the same command may not meet again. Every rank raises it."""

    exit_code = 3


class RankError(UserError):
    """A fault that this rank alone may know of, such as its disk's: the rank that has it prints it."""


class LostPeerError(RankError):
    """Another process of this run is gone or stuck."""

    exit_code = 3


def say_error(message: str) -> None:
    """Print what a user is meant to read."""
    print(f"paretrain: error: {printable(message)}", file=sys.stderr, flush=True)


def run_command(command: Callable[[], None]) -> int:
    """Run a command to its exit code, with one clear message in place of a traceback for what users can mend.

    A crash shows its stacks; those of a process that runs are asked for by `kill -USR2 PID`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name that the terminal cannot show is no fault
    faulthandler.enable(STDERR)
    faulthandler.register(signal.SIGUSR2, STDERR)
    try:
        command()
    except UserError as error:
        if isinstance(error, RankError) or os.environ.get("RANK", "0") == "0":
            say_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
