"""Everybody who is told a run's numbers, on rank 0: metrics.jsonl, the progress line, the tracker."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import RankError, UserError
from trainer.observe.metrics import MetricsLog
from trainer.observe.predictions import Seen, keep_predictions
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

    def look(self, step: int, seen: Seen) -> None:
        """Show a batch of the test split."""
        ...


class Nobody:
    """The observers of every rank but 0."""

    def publish(self, record: Mapping[str, Any]) -> None:
        """Rank 0 tells."""

    def note(self, step: int, text: str) -> None:
        """Rank 0 tells."""

    def look(self, step: int, seen: Seen) -> None:
        """Rank 0 shows its own."""


class Everybody:
    """The observers of rank 0. The metrics file comes first: it is the source of truth."""

    def __init__(self, metrics: MetricsLog, progress: Progress, tracker: Tracker, predictions: Path) -> None:
        self._metrics = metrics
        self._progress = progress
        self._tracker = tracker
        self._predictions = predictions

    def publish(self, record: Mapping[str, Any]) -> None:
        """Write, show and track a record.

        Raises:
            RankError: the disk is full, say; the others cannot know.
        """
        with writing_records():
            self._publish(record)

    def note(self, step: int, text: str) -> None:
        """Write, show and track a remark."""
        self.publish({"kind": "note", "step": step, "text": text})

    def look(self, step: int, seen: Seen) -> None:
        """Keep some of its samples, where a task has a target a pixel.

        Raises:
            RankError: as `publish`.
        """
        if seen.maps:
            with writing_records():
                keep_predictions(self._predictions, step, seen)

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


@contextmanager
def writing_records() -> Iterator[None]:
    """Turn a fault of the disk inside the block into a RankError."""
    try:
        yield
    except (OSError, UserError) as error:
        raise RankError(f"the run's records cannot be written: {error}. The last checkpoint stands") from error
