"""Requests to save or stop: files, signals and the clock, on any rank, become one request that all ranks agree on.

Which process gets a signal differs from cluster to cluster (often only the launcher does), so the scripts in
launch/slurm touch files. A signal handler only notes the signal; `Runtime.all_reduce_max` makes it the request of all
ranks at the same step.
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

from trainer.errors import STDERR, StoppedError, UserError
from trainer.runtime.checkpoints.folder import CHECKPOINTS, last_saved
from trainer.runtime.launcher import LAUNCHER, LAUNCHER_DIED

SAVE = "save"
STOP = "stop"
REQUEUE = "requeue"
JOB_ID = "PARETRAIN_JOB_ID"
"""Environment variable: the batch job of this process."""


class Request(IntEnum):
    """The next action of all ranks; the greatest value of any rank wins.

    It combines what users ask for (SAVE, and TIME_IS_UP to STOP) with what the data of a rank allows (WAIT and FAULT),
    so that one reduction a step decides both.
    """

    GO_ON = 0
    SAVE = 1
    """Save after this step, and go on."""
    WAIT = 2
    """A rank has no batch yet: no step now, agree again."""
    TIME_IS_UP = 3
    """Save and end, to be resumed: train.max_hours have passed."""
    YIELD = 4
    """Save and end, to be resumed: the machine is needed."""
    LEAVE = 5
    """Save and end, to be resumed: the launcher is gone."""
    STOP = 6
    """Save and end, and do not start again: a user asked for it."""
    FAULT = 7
    """The data of a rank failed: it cannot make the step."""

    @property
    def ends(self) -> bool:
        """Whether the run ends after this step."""
        return self >= Request.TIME_IS_UP

    @property
    def words(self) -> str:
        """The message once the request is fulfilled."""
        way_on = "; type the same command to resume" if self.ends else ""
        reason = {
            Request.SAVE: "asked to save",
            Request.TIME_IS_UP: "train.max_hours have passed",
            Request.YIELD: "asked to make room",
            Request.LEAVE: "the launcher is gone",
            Request.STOP: "asked to stop",
        }[self]
        return f"{reason}: saved{way_on}"


class StopRequests:
    """Collect the requests to this process from files in the run's folder, signals and the clock.

    | found                          | request    |
    |--------------------------------|------------|
    | RUN/save                       | SAVE       |
    | `max_hours` have passed        | TIME_IS_UP |
    | RUN/stop.JOB, SIGUSR1, SIGTERM | YIELD      |
    | LAUNCHER_DIED                  | LEAVE      |
    | RUN/stop, SIGINT               | STOP       |

    A second SIGINT, which is Ctrl-C, ends the process at once.

    Args:
        run_dir: the run's folder.
        reads_files: whether this process looks for the files; one rank does.
        max_hours: how long it may train from now on; None: until it is done.
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
        self._at_once = self._is_interrupted = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Note signals inside the block instead of dying."""

        requests = {
            signal.SIGUSR1: Request.YIELD,
            signal.SIGTERM: Request.YIELD,
            signal.SIGINT: Request.STOP,
            LAUNCHER_DIED: Request.LEAVE,
        }

        def note(number: int, _frame: FrameType | None) -> None:
            if self._at_once:
                raise StoppedError(number)
            if number == signal.SIGINT:
                if self._is_interrupted:
                    raise KeyboardInterrupt(f"stopped at once; {last_saved(self._run_dir / CHECKPOINTS)}")
                self._is_interrupted = True
                if LAUNCHER not in os.environ:  # Else the launcher has said it.
                    say_interrupted()
            self._signalled = max(self._signalled, requests[signal.Signals(number)])

        before = {number: signal.signal(number, note) for number in requests}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Make these signals end the block: before the first step there is nothing to save, and the start may be long.

        Raises:
            StoppedError: a signal came inside the block.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def read(self) -> Request:
        """Return the greatest request so far."""
        on_time = Request.TIME_IS_UP if time.monotonic() >= self._ends_at else Request.GO_ON
        files = (request for path, request in self._files.items() if path.exists())
        return max([self._signalled, on_time, *files])

    def fulfilled(self, request: Request, step: int, started_at_step: int) -> None:
        """Remove the files of a request that was fulfilled, and of lesser ones; ask batch scripts to requeue the job.

        The process that reads files leaves RUN/requeue if the run is to be resumed. Batch scripts look for that file;
        it holds the current step and the one that this start began with.

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
            raise UserError(f"{self._run_dir} cannot be written: {error}. The checkpoint is kept") from None


def say_interrupted() -> None:
    """Say what Ctrl-C does. Called by handlers of signals, which may interrupt any other output."""
    what = "saves after this step or evaluation, and ends. Ctrl-C again ends it at once, without saving"
    os.write(STDERR, f"\nparetrain: {what}\n".encode())


def refuse_stopped(run_dir: Path) -> None:
    """Refuse to start a run whose stop file exists.

    Raises:
        UserError: it exists.
    """
    path = run_dir / STOP
    if path.exists():
        raise UserError(f"{path} exists: a user asked this run to stop. To go on, remove it: rm {path}")
