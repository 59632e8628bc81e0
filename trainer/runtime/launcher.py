"""The process that has started this one: to end with it, and to tell it how the run has ended.

A process that a user's shell has started outlives the shell, as `nohup` wants it. Only those of a launcher end with it.
"""

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

from trainer.errors import RankError

LAUNCHER = "PARETRAIN_LAUNCHER"
"""Environment variable: the process id of the launcher, where it is one of ours."""
OUTCOME = "PARETRAIN_OUTCOME"
"""Environment variable: the file in which our launcher looks for the exit code of a run that has ended well."""
OF_TORCH = "TORCHELASTIC_RUN_ID"
"""Environment variable: torchrun and `accelerate launch` set it for each process that they start."""
LAUNCHER_DIED = signal.SIGRTMIN
"""What a process gets when its launcher dies; by default it ends it. Nothing else sends it."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""


def end_with_launcher() -> None:
    """Let the kernel send `LAUNCHER_DIED` to this process when its launcher dies, however it dies.

    Raises:
        RankError: it has died already.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None and OF_TORCH not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, LAUNCHER_DIED)
    if launcher not in (None, str(os.getppid())):  # It died before the line above.
        raise RankError(f"the launcher (process {launcher}) is gone. Type the same command again")


def tell_launcher(exit_code: int) -> None:
    """Leave the exit code of a run that has ended well for our launcher, which torch does not tell after a signal."""
    path = os.environ.get(OUTCOME)
    if path is not None and os.environ.get("LOCAL_RANK") == "0":
        with suppress(FileNotFoundError):  # The launcher is gone.
            Path(path).write_text(str(exit_code))
