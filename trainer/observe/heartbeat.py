"""The state of a run for monitors: heartbeat.json for programs, and heartbeat.prom for Prometheus, in the run's folder.

Rank 0 replaces both files whole, in the thread that trains: a run that hangs stops writing them. docs/observability.md
describes them.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from trainer.clock import utc
from trainer.errors import EXIT_UNFINISHED, PublicError, UserError
from trainer.files import replace

SCHEMA = 1
"""The version of heartbeat.json."""
JSON = "heartbeat.json"
PROMETHEUS = "heartbeat.prom"
INTERVAL_SECONDS = 5.0
"""How often the files are replaced while the state is the same."""
MAX_TASKS = 100
"""With more tasks than this, Prometheus gets their mean loss alone."""


class State(StrEnum):
    """The state of a run."""

    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    COMPLETE = "complete"
    STOPPED = "stopped"
    """Saved before its last step; the same command continues it."""
    FAILED = "failed"
    """An error has ended it."""


@dataclass(frozen=True)
class Saved:
    """The last published checkpoint.

    Attributes:
        step: its step.
        time: when it was published, in seconds since 1970.
    """

    step: int
    time: float


class Heartbeat:
    """Write the files. Leaving the context by an error writes the state FAILED.

    Args:
        run_dir: the run's folder.
        name: of the run.
        steps: optimizer steps of the whole run.
        step: optimizer steps done.
        last_saved: returns the last published checkpoint; None: there is none.
        clock: returns seconds since 1970; tests pass their own.

    Raises:
        UserError: a file cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        name: str,
        steps: int,
        step: int,
        last_saved: Callable[[], Saved | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run_dir, self._last_saved, self._clock = run_dir, last_saved, clock
        self._about = {
            "run": name,
            "host": platform.node(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        self._steps, self._step, self._state = steps, step, State.STARTING
        self._train: Mapping[str, Any] = {}
        self._written_at = float("-inf")
        self._write()

    def observe(self, record: Mapping[str, Any]) -> None:
        """Take the numbers of a record that the run publishes."""
        if record["kind"] == "train":
            self._train = record
        self.beat(record["step"], self._state)

    def beat(self, step: int, state: State) -> None:
        """Say that the run is alive. Writes if the state is another one, or the last time is INTERVAL_SECONDS ago.

        Args:
            step: optimizer steps done.
            state: from now on.

        Raises:
            UserError: a file cannot be written.
        """
        changed, self._step, self._state = state is not self._state, step, state
        if changed or not 0 <= self._clock() - self._written_at < INTERVAL_SECONDS:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        was_asked = isinstance(error, PublicError) and error.exit_code == EXIT_UNFINISHED
        with suppress(OSError, UserError):  # Perhaps the disk is the fault, which `error` tells.
            self.beat(self._step, State.STOPPED if was_asked else State.FAILED)

    def _write(self) -> None:
        self._written_at = now = self._clock()
        saved, losses = self._last_saved(), self._train.get("losses", {})
        known = {task: loss for task, loss in losses.items() if loss is not None}
        values = {
            "schema": SCHEMA,
            "time": utc(now),
            "state": str(self._state),
            "step": self._step,
            "steps": self._steps,
            "mean_loss": fmean(known.values()) if known else None,
            "samples_per_second": self._train.get("samples_per_second"),
            "data_wait_percent": self._train.get("data_wait_percent"),
            "checkpoint_step": saved.step if saved else None,
            "checkpoint_time": utc(saved.time) if saved else None,
            **self._about,
        }
        replace(self._run_dir / JSON, f"{json.dumps(values, indent=1)}\n".encode(), durable=False)
        numbers = values | {"heartbeat_time": now, "checkpoint_time": saved.time if saved else None}
        text = prometheus(numbers, known if len(losses) <= MAX_TASKS else {})
        replace(self._run_dir / PROMETHEUS, text.encode(), durable=False)


GAUGES = {
    "heartbeat_time": ("heartbeat_timestamp_seconds", "When this file was written, in seconds since 1970."),
    "step": ("step", "Optimizer steps done."),
    "steps": ("steps", "Optimizer steps of the whole run."),
    "mean_loss": ("mean_loss", "Mean of the tasks' losses at the last logged step."),
    "samples_per_second": ("samples_per_second", "Samples of all processes per second, since the last logged step."),
    "data_wait_percent": ("data_wait_percent", "Share of that time that rank 0 has waited for data."),
    "checkpoint_step": ("checkpoint_step", "Step of the last published checkpoint."),
    "checkpoint_time": ("checkpoint_timestamp_seconds", "When it was published, in seconds since 1970."),
}
"""Name of a number -> its name in Prometheus, and what it is."""


def prometheus(values: Mapping[str, Any], losses: Mapping[str, float]) -> str:
    """Return numbers in Prometheus's text format, version 0.0.4; those that are not known are left out.

    Args:
        values: the run's name, its state, and the numbers of GAUGES.
        losses: of each task.
    """
    run = f'run="{_escaped(values["run"])}"'
    lines = []
    for key, (name, what) in GAUGES.items():
        if values[key] is not None:
            lines += _gauge(name, what, {run: values[key]})
    if losses:
        labelled = {f'{run},task="{_escaped(task)}"': loss for task, loss in losses.items()}
        lines += _gauge("task_loss", "Loss of a task at the last logged step.", labelled)
    states = {f'{run},state="{state}"': int(state == values["state"]) for state in State}
    lines += _gauge("state", "1 for the state of the run, 0 for the others.", states)
    return "\n".join(lines) + "\n"


def _gauge(name: str, what: str, values: Mapping[str, float]) -> list[str]:
    name = f"paretrain_{name}"
    samples = (f"{name}{{{labels}}} {value}" for labels, value in values.items())
    return [f"# HELP {name} {what}", f"# TYPE {name} gauge", *samples]


def _escaped(text: str) -> str:
    """Escape the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
