"""The errors that a user is meant to read, and the exit codes on which a command ends."""

import difflib
import faulthandler
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable

from trainer.plain import printable

EXIT_INTERRUPTED = 130
EXIT_UNFINISHED = 75
"""A run was saved before its last step, and the same command goes on: EX_TEMPFAIL of sysexits.h."""
STDERR = 2
"""The file descriptor: sys.stderr may be something without one."""


class PublicError(Exception):
    """An error whose message is all that a user needs: it says what was found, what was expected and what to type.

    The command line prints the message alone, without a traceback. Its subclasses are siblings: to catch one is never
    to catch another.
    """

    exit_code: int


class SharedError(PublicError):
    """One that every rank of a run raises at the same place; rank 0 prints it. They may still communicate."""


class UserError(SharedError):
    """A mistake in what the user gave us."""

    exit_code = 2


class FaultError(SharedError):
    """A fault of the machine, such as a full disk, which another start may not meet."""

    exit_code = 3


class UnfinishedError(SharedError):
    """A run was asked to end while there was nothing to save yet."""

    exit_code = EXIT_UNFINISHED


class StoppedError(PublicError):
    """A signal has ended the start of a run."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} before the first step. The same command starts the run again, or goes on")
        self.exit_code = 128 + number


class RankError(PublicError):
    """A fault of the machine that this rank alone may know of: the rank that has it prints it."""

    exit_code = 3


class LostPeerError(PublicError):
    """Another process of this run is gone or stuck. Each rank that finds it so prints what it has found."""

    exit_code = 3


def say_error(message: str) -> None:
    """Print what a user is meant to read."""
    print(f"paretrain: error: {printable(message)}", file=sys.stderr, flush=True)


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command. Returns its exit code, with one message in place of a traceback for a `PublicError`.

    A crash shows its stacks; those of a process that runs are asked for by `kill -USR2 PID`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name that the terminal cannot show is no fault
    faulthandler.enable(STDERR)
    faulthandler.register(signal.SIGUSR2, STDERR)
    try:
        return command() or 0
    except PublicError as error:
        if isinstance(error, RankError | LostPeerError) or os.environ.get("RANK", "0") == "0":
            say_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: `; did you mean 'left'?` or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
