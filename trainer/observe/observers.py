"""Everybody who is told a run's numbers, on rank 0: metrics.jsonl, the progress line, the tracker."""

from collections.abc import Mapping
from typing import Any, Protocol

from trainer.errors import RankError
from trainer.observe.metrics import MetricsLog
from trainer.observe.progress import Progress, fault_line
from trainer.observe.tracker import Tracker


class Observers(Protocol):
    """Where the loop publishes its records."""

    def publish(self, record: Mapping[str, Any]) -> None:
        """Tell everybody."""
        ...

    def note(self, step: int, text: str) -> None:
        """Tell everybody something in words."""
        ...


class Nobody:
    """The observers of every rank but 0."""

    def publish(self, record: Mapping[str, Any]) -> None:
        """Rank 0 tells."""

    def note(self, step: int, text: str) -> None:
        """Rank 0 tells."""


class Everybody:
    """The observers of rank 0. The metrics file comes first: it is the source of truth."""

    def __init__(self, metrics: MetricsLog, progress: Progress, tracker: Tracker) -> None:
        self._metrics = metrics
        self._progress = progress
        self._tracker = tracker

    def publish(self, record: Mapping[str, Any]) -> None:
        """Write, show and track a record.

        Raises:
            RankError: the disk is full, say; the others cannot know.
        """
        try:
            self._publish(record)
        except OSError as error:
            raise RankError(f"the run's records cannot be written: {error}. The last checkpoint stands") from error

    def note(self, step: int, text: str) -> None:
        """Write, show and track a remark."""
        self.publish({"kind": "note", "step": step, "text": text})

    def _publish(self, record: Mapping[str, Any]) -> None:
        self._metrics.write(record)
        if record["kind"] == "train":
            self._progress.train(record)
        elif record["kind"] == "eval":
            self._progress.eval(record)
        elif record["kind"] == "note":
            self._progress.note(f"step {record['step']}: {record['text']}")
        elif record["kind"] == "fault":
            self._progress.note(fault_line(record))
        self._tracker.log(record)
