"""The next batch of every rank: no rank begins a step before all ranks have their batch, and a late one is not lost."""

from collections.abc import Callable

from trainer.data.reading.batch import Batch
from trainer.data.reading.loader import TrainLoader
from trainer.errors import UserError
from trainer.observe.throughput import Throughput
from trainer.runtime.collectives import Runtime
from trainer.runtime.polling import poll
from trainer.runtime.stopping import Request, StopRequests

REPORT_EVERY_TURNS = 30
"""A turn of polling takes about a second."""


def next_batch(
    batches: TrainLoader,
    runtime: Runtime,
    stop_requests: StopRequests,
    throughput: Throughput,
    report: Callable[[str], None],
) -> tuple[Batch | None, Request]:
    """Take the next batch, and agree on what to do after its step. Collective.

    A rank whose data is late reports so every turn, and the others wait for it as long as it does.

    Args:
        batches: this rank's.
        runtime: the processes.
        stop_requests: what this rank was asked for.
        throughput: measures the time spent here as waiting for data.
        report: is told from time to time which shards are late.

    Returns:
        The batch and the request, which is the same on every rank. No batch where all ranks are to end, and one of
        them has no batch yet.

    Raises:
        UserError: the data of a rank cannot be read; the same on every rank.
    """
    own = _OwnBatch(batches, stop_requests)
    with throughput.data_wait():
        wish = own.look()
    request = Request(runtime.all_reduce_max(wish))
    if request is Request.WAIT:
        with throughput.data_wait():
            request = _poll(own, batches, runtime, report)
    if request is Request.FAULT:
        with runtime.raise_together():
            if own.fault:
                raise own.fault
    if request.ends and runtime.all_reduce_max(not own.ready):
        return None, request
    return next(batches), request


class _OwnBatch:
    """Whether this rank's next batch is there."""

    def __init__(self, batches: TrainLoader, stop_requests: StopRequests) -> None:
        self._batches, self._stop_requests = batches, stop_requests
        self.ready = False
        self.fault: UserError | None = None

    def look(self) -> Request:
        """Wait a turn for the batch. Returns what this rank asks for."""
        if not self.ready:
            try:
                self.ready = self._batches.ready()
            except UserError as error:
                self.fault = error
        request = Request.FAULT if self.fault else self._stop_requests.read()
        return request if self.ready else max(request, Request.WAIT)


def _poll(own: _OwnBatch, batches: TrainLoader, runtime: Runtime, report: Callable[[str], None]) -> Request:
    turn, before = 0, batches.arriving()

    def look() -> Request:
        nonlocal turn, before
        wish = own.look()
        turn += 1
        if turn % REPORT_EVERY_TURNS == 0:
            now = batches.arriving()
            texts = runtime.gather("" if own.ready else _progress(before, now, REPORT_EVERY_TURNS))
            late = [f"{text} (rank {rank})" for rank, text in enumerate(texts) if text]
            if late:
                report(f"waiting for data for {turn} s: {late[0]}")
            before = now
        return wish

    return Request(poll(runtime, look, busy=Request.WAIT))


def _progress(before: dict[str, int], now: dict[str, int], seconds: float) -> str:
    """Say which shards have grown, and how fast."""
    grown = {name: size - before.get(name, 0) for name, size in now.items() if size > before.get(name, 0)}
    if not grown:
        return f"nothing has arrived for {seconds:g} s"
    return f"{', '.join(sorted(grown))}, {sum(grown.values()) / seconds / 1e6:.2g} MB/s"
