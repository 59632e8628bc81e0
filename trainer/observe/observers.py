"""Where the loop publishes its records: to metrics.jsonl, the progress line and the tracker, on rank 0 alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import RankError, UserError
from trainer.observe.heartbeat import Heartbeat, State
from trainer.observe.metrics import MetricsLog, stamped
from trainer.observe.predictions import Seen, keep_predictions
from trainer.observe.progress import Progress, fault_line
from trainer.observe.tracker import Tracker


class Observers(Protocol):
    """The interface that the loop publishes its records to."""

    def publish(self, record: Mapping[str, Any]) -> None:
        """Publish a record."""
        ...

    def note(self, step: int, text: str) -> None:
        """Publish a remark in words."""
        ...

    def keep_predictions(self, step: int, seen: Seen) -> None:
        """Keep some predictions of a batch of the test split."""
        ...

    def say(self, text: str) -> None:
        """Show a sentence to the person who watches; it is not recorded in the metrics."""
        ...

    def beat(self, step: int, state: State) -> None:
        """Tell monitors that the run is alive, and in which state."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand the run's summary to the tracker, which ends there, and its last state to monitors."""
        ...


class Nobody:
    """The observers of every rank but 0: they do nothing."""

    def publish(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def note(self, step: int, text: str) -> None:
        """Do nothing."""

    def keep_predictions(self, step: int, seen: Seen) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def beat(self, step: int, state: State) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class Everybody:
    """The observers of rank 0. The metrics file is written first, as it is the source of truth.

    Args:
        metrics: of the run.
        progress: shows records to the person who watches.
        tracker: shows them elsewhere.
        heartbeat: shows the run's state to monitors.
        predictions: the file of the predictions that the report shows.
        elapsed_seconds: returns the time that the run has taken so far.
    """

    def __init__(
        self,
        metrics: MetricsLog,
        progress: Progress,
        tracker: Tracker,
        heartbeat: Heartbeat,
        predictions: Path,
        elapsed_seconds: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._elapsed_seconds = elapsed_seconds
        self._progress = progress
        self._tracker = tracker
        self._predictions = predictions

    def publish(self, record: Mapping[str, Any]) -> None:
        """Write, show and track a record.

        Raises:
            RankError: the record cannot be written, for example because the disk is full.
        """
        with writing_records():
            self._publish(record)

    def note(self, step: int, text: str) -> None:
        """Write, show and track a remark."""
        self.publish({"kind": "note", "step": step, "text": text})

    def keep_predictions(self, step: int, seen: Seen) -> None:
        """Keep some samples with their predictions, if a task has one output per pixel.

        Raises:
            RankError: the file cannot be written.
        """
        if seen.maps:
            with writing_records():
                keep_predictions(self._predictions, step, seen)

    def say(self, text: str) -> None:
        """Show a sentence, and write it to the log."""
        self._progress.note(text)

    def beat(self, step: int, state: State) -> None:
        """Write the state of the run for monitors, if it is time.

        Raises:
            RankError: the file cannot be written.
        """
        with writing_records():
            self._heartbeat.beat(step, state)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the last state, and close the tracker."""
        self.beat(summary["steps"], State.COMPLETE if summary["complete"] else State.STOPPED)
        self._tracker.close(summary)

    def _publish(self, record: Mapping[str, Any]) -> None:
        self._metrics.write(stamped(record, self._elapsed_seconds()))
        if record["kind"] == "train":
            self._progress.train(record)
        elif record["kind"] in ("eval", "test"):
            self._progress.eval(record)
        elif record["kind"] == "note":
            self._progress.note(f"step {record['step']}: {record['text']}")
        elif record["kind"] == "fault":
            self._progress.note(fault_line(record))
        self._tracker.log(record)
        self._heartbeat.observe(record)


@contextmanager
def writing_records() -> Iterator[None]:
    """Raise a RankError for any failure to write inside the block."""
    try:
        yield
    except (OSError, UserError) as error:
        raise RankError(f"the run's records cannot be written: {error}. The last checkpoint is intact") from error
