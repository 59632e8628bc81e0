"""The errors that a user is meant to read, and how a command ends on them."""

import os
import sys
from collections.abc import Callable

EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake in what the user gave us, or a fault in the world that the user can mend.

    Its message says what was found, what was expected and what to type. The command line prints the message alone,
    without a traceback. Every rank of a run raises the same one; rank 0 prints it.
    """

    exit_code = 2


class RankError(UserError):
    """A fault that this rank alone may know of, such as its disk's: the rank that has it prints it."""


class LostPeerError(RankError):
    """Another process of this run is gone or stuck."""

    exit_code = 3


def run_command(command: Callable[[], None]) -> int:
    """Run a command to its exit code, with one clear message in place of a traceback for what users can mend."""
    try:
        command()
    except UserError as error:
        if isinstance(error, RankError) or os.environ.get("RANK", "0") == "0":
            print(f"paretrain: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
