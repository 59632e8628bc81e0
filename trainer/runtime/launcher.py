"""The launcher that started this process: end when it dies, and report the run's exit code to it.

Only processes of a launcher end with it. A process that a user's shell started outlives the shell, as with `nohup`.
"""

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

from trainer.errors import RankError

LAUNCHER = "PARETRAIN_LAUNCHER"
"""Environment variable: the process id of the launcher, if it is ours."""
OUTCOME = "PARETRAIN_OUTCOME"
"""Environment variable: the file where our launcher expects the exit code of a run that ended without a fault."""
OF_TORCH = "TORCHELASTIC_RUN_ID"
"""Environment variable that torchrun and `accelerate launch` set for each process that they start."""
LAUNCHER_DIED = signal.SIGRTMIN
"""The signal that a process gets when its launcher dies; nothing else sends it. By default it ends the process."""
PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl."""


def end_with_launcher() -> None:
    """Make the kernel send `LAUNCHER_DIED` to this process when its launcher dies, in whatever way.

    Raises:
        RankError: the launcher has died already.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None and OF_TORCH not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, LAUNCHER_DIED)
    if launcher not in (None, str(os.getppid())):  # It died before the line above.
        raise RankError(f"the launcher (process {launcher}) is gone. Type the same command again")


def tell_launcher(exit_code: int) -> None:
    """Report the exit code of a run that ended without a fault; after a signal, torch does not tell it our launcher."""
    path = os.environ.get(OUTCOME)
    if path is not None and os.environ.get("LOCAL_RANK") == "0":
        with suppress(FileNotFoundError):  # The launcher is gone.
            Path(path).write_text(str(exit_code))
