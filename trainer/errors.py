"""The errors whose messages users read, and the exit codes of commands."""

import difflib
import faulthandler
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable

from paretrain_command import say, say_by_one_rank
from trainer.plain import printable

EXIT_INTERRUPTED = 130
EXIT_UNFINISHED = 75
"""The run was saved before its last step, and the same command continues it. EX_TEMPFAIL of sysexits.h."""
STDERR = 2
"""The file descriptor; sys.stderr may be an object without one."""


class PublicError(Exception):
    """An error whose message is all that a user needs: what was found, what was expected and what to type.

    The command line prints the message without a traceback. The concrete errors are siblings: catching one never
    catches another.
    """

    exit_code: int


class SharedError(PublicError):
    """An error that every rank of a run raises at the same place. Rank 0 prints it; ranks may still communicate."""


class UserError(SharedError):
    """A mistake in the user's configuration, data, code or folders."""

    exit_code = 2


class FaultError(SharedError):
    """A fault of the machine, such as a full disk, that the next start may not meet."""

    exit_code = 3


class UnfinishedError(SharedError):
    """A run was asked to stop when there was nothing to save yet."""

    exit_code = EXIT_UNFINISHED


class StoppedError(PublicError):
    """A signal ended the start of a run."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} before the first step. The same command starts or resumes the run")
        self.exit_code = 128 + number


class RankError(PublicError):
    """A fault of the machine that perhaps only this rank knows of. The rank that raises it prints it."""

    exit_code = 3


class LostPeerError(PublicError):
    """Another process of this run is gone or stuck. Every rank that notices prints what it found."""

    exit_code = 3


def say_error(message: str) -> None:
    """Print an error message for the user."""
    say(printable(message))


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code. Print a `PublicError` as one message, without a traceback.

    A crash prints the stacks of all threads; `kill -USR2 PID` prints those of a running process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: a name that the terminal cannot show must not fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    faulthandler.enable(STDERR)
    faulthandler.register(signal.SIGUSR2, STDERR)
    try:
        return command() or 0
    except PublicError as error:
        if isinstance(error, RankError | LostPeerError):
            say_error(str(error))
        else:
            say_by_one_rank(printable(str(error)))
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        if str(interrupt) or "RANK" not in os.environ:  # Else the launcher says it, once for all ranks.
            say_error(str(interrupt) or "stopped by Ctrl-C")
        return EXIT_INTERRUPTED


OTHER_WORDS = {
    "mgda": "min_norm",
    "mgda_ub": "min_norm",
    "equal": "uniform",
    "ew": "uniform",
    "mean": "uniform",
    "rlw": "random",
    "kendall": "uncertainty",
    "uw": "uncertainty",
    "grad_norm": "gradnorm",
    "cdtt": "tension",
    "imtl_l": "uncertainty",
    "nash_mtl": "nash",
    "aligned_mtl": "aligned",
    "geometric_mean": "gls",
    "log": "si",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "normalize": "normalise",
    "normalization": "normalise",
    "normalisation": "normalise",
    "max_steps": "steps",
    "batch_size": "global_batch",
    "early_stopping": "patience",
    "num_workers": "workers",
}
"""What people type -> the name of the same thing here."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: `; did you mean 'left'?`, or a full stop."""
    names = list(known)
    other = OTHER_WORDS.get(name.lower().replace("-", "_"))
    if other in names:
        return f"; did you mean {other!r}?"
    lowered = {known.lower(): known for known in reversed(names)}
    if close := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(name.lower(), lowered, n=1):
        return f"; did you mean {lowered[close[0]]!r}?"
    return "."
