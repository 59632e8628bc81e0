"""When to save and when to end: files and signals, on any rank, become one request that all ranks agree on.

Who hears a signal differs from cluster to cluster (often the launcher alone), so the scripts in launch/slurm touch
files; a handler only notes what came. `Runtime.all_reduce_max` makes it everybody's request, at the same step.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

from trainer.errors import StoppedError, UserError
from trainer.runtime.launcher import LAUNCHER_DIED

SAVE = "save"
STOP = "stop"
REQUEUE = "requeue"
JOB_ID = "PARETRAIN_JOB_ID"
"""Environment variable: the batch job that this process belongs to."""


class Request(IntEnum):
    """What to do after a step. Of two, the greater wins."""

    GO_ON = 0
    SAVE = 1
    """Save, and go on."""
    WAIT = 2
    """A rank lacks its batch still: ask again. No step."""
    TIME_IS_UP = 3
    """Save, and end: train.max_hours have passed, and the run is to come back."""
    YIELD = 4
    """Save, and end: the machine is wanted, and the run is to come back."""
    LEAVE = 5
    """Save, and end: the launcher is gone, and the run is to come back."""
    STOP = 6
    """Save, and end: somebody wants it so, and the run is to stay away."""
    FAULT = 7
    """A rank cannot make the step."""

    @property
    def ends(self) -> bool:
        """Whether the step is the last one."""
        return self >= Request.TIME_IS_UP

    @property
    def words(self) -> str:
        """What is said once it is done."""
        way_on = "; the same command goes on" if self.ends else ""
        reason = {
            Request.SAVE: "asked to save",
            Request.TIME_IS_UP: "train.max_hours have passed",
            Request.YIELD: "asked to make room",
            Request.LEAVE: "the launcher is gone",
            Request.STOP: "asked to stop",
        }[self]
        return f"{reason}: saved{way_on}"


class StopRequests:
    """What this process has been asked for, by files in the run's folder, by signals and by the clock.

    | found                          | request    |
    |--------------------------------|------------|
    | RUN/save                       | SAVE       |
    | `max_hours` have passed        | TIME_IS_UP |
    | RUN/stop.JOB, SIGUSR1, SIGTERM | YIELD      |
    | LAUNCHER_DIED                  | LEAVE      |
    | RUN/stop                       | STOP       |

    Args:
        run_dir: the run's folder.
        reads_files: whether this process is the one that looks for files.
        max_hours: how long it may train, from now on; None: until it is done.
    """

    def __init__(self, run_dir: Path, *, reads_files: bool, max_hours: float | None = None) -> None:
        self._run_dir = run_dir
        self._ends_at = float("inf") if max_hours is None else time.monotonic() + max_hours * 3600
        self._files = {}
        if reads_files:
            self._files = {run_dir / STOP: Request.STOP, run_dir / SAVE: Request.SAVE}
            if job := os.environ.get(JOB_ID):
                self._files[run_dir / f"{STOP}.{job}"] = Request.YIELD
        self._signalled = Request.GO_ON
        self._at_once = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Note the signals inside the block, in place of dying of them."""

        requests = {signal.SIGUSR1: Request.YIELD, signal.SIGTERM: Request.YIELD, LAUNCHER_DIED: Request.LEAVE}

        def note(number: int, _frame: FrameType | None) -> None:
            self._signalled = max(self._signalled, requests[signal.Signals(number)])
            if self._at_once:
                raise StoppedError(number)

        before = {number: signal.signal(number, note) for number in requests}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let these signals end the block: before the first step there is nothing to save, and the start may be long.

        Raises:
            StoppedError: inside the block, one came.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def read(self) -> Request:
        """The greatest request that stands now."""
        on_time = Request.TIME_IS_UP if time.monotonic() >= self._ends_at else Request.GO_ON
        files = (request for path, request in self._files.items() if path.exists())
        return max([self._signalled, on_time, *files])

    def fulfilled(self, request: Request, step: int, started_at_step: int) -> None:
        """Forget what has been done; who reads files leaves RUN/requeue where a batch script is to bring the job back.

        Raises:
            UserError: the run's folder cannot be written.
        """
        try:
            for path, asked in self._files.items():
                if asked <= request:
                    path.unlink(missing_ok=True)
            if request in (Request.TIME_IS_UP, Request.YIELD, Request.LEAVE) and self._files:
                progress = {"step": step, "started_at_step": started_at_step}
                (self._run_dir / REQUEUE).write_text(json.dumps(progress) + "\n")
        except OSError as error:
            raise UserError(f"{self._run_dir} cannot be written: {error}. The checkpoint stands") from None


def refuse_stopped(run_dir: Path) -> None:
    """Do not start a run that was stopped while it was not running.

    Raises:
        UserError: the stop file stands.
    """
    path = run_dir / STOP
    if path.exists():
        raise UserError(f"{path} stands: somebody wants this run to stand still. To go on, remove it: rm {path}")
