"""The clock of a run: samples per second, and the share of time spent waiting for data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Measure samples per second and the share of time spent waiting for data, between two readings.

    Args:
        elapsed_seconds: Time that earlier parts of a resumed run have taken; the run's clock continues from it.
        clock: Returns seconds since an arbitrary start; tests pass their own.
    """

    def __init__(self, *, elapsed_seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started_at = clock() - elapsed_seconds
        self._read_at = clock()
        self._num_samples = 0
        self._waited_seconds = 0.0
        self._paused_seconds = 0.0

    @property
    def elapsed_seconds(self) -> float:
        """Seconds that the whole run has taken, including earlier parts and pauses; saved in the checkpoint."""
        return self._clock() - self._started_at

    def count(self, num_samples: int) -> None:
        """Add the samples of a step, summed over all ranks."""
        self._num_samples += num_samples

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time the wait for the next batch: `with throughput.data_wait(): batch = next(batches)`."""
        entered_at = self._clock()
        try:
            yield
        finally:
            self._waited_seconds += self._clock() - entered_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude an evaluation or a checkpoint from both numbers; the run's clock continues."""
        entered_at = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - entered_at

    def read(self) -> dict[str, float]:
        """Return the numbers since the last reading, and start the next interval.

        Returns:
            `seconds` of the whole run, `samples_per_second` and `data_wait_percent` of the interval.
        """
        now = self._clock()
        interval_seconds = now - self._read_at - self._paused_seconds
        reading = {
            "seconds": now - self._started_at,
            "samples_per_second": self._num_samples / interval_seconds if interval_seconds > 0 else 0.0,
            "data_wait_percent": 100 * self._waited_seconds / interval_seconds if interval_seconds > 0 else 0.0,
        }
        self._read_at = now
        self._num_samples = 0
        self._waited_seconds = self._paused_seconds = 0.0
        return reading
