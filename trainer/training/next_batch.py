"""The next batch of every rank: none goes on before all have theirs, and none takes a late one for lost."""

from trainer.data.reading.loader import Batch, TrainLoader
from trainer.errors import UserError
from trainer.observe.observers import Observers
from trainer.runtime.collectives import Runtime
from trainer.runtime.stopping import Request, StopRequests
from trainer.training.run import Run

TELL_EVERY_TURNS = 30
"""A turn is a second."""


def next_batch(run: Run, stop_requests: StopRequests, observers: Observers) -> tuple[Batch | None, Request]:
    """The next batch, and what is to be done after its step, the same on every rank. Collective.

    A rank whose data is late says so every second: the others wait for it, however long its data keeps coming.

    Returns:
        No batch where all are to end, and one of them lacks its batch still.

    Raises:
        UserError: the data of a rank has failed; the same on every rank.
    """
    mine = _Mine(run.train_batches)
    with run.throughput.data_wait():
        mine.look()
    request = mine.agree(run.runtime, stop_requests)
    if request is Request.WAIT:
        with run.throughput.data_wait():
            request = _wait(mine, run, stop_requests, observers)
    if request is Request.FAULT:
        with run.runtime.raise_together():
            if mine.fault:
                raise UserError(
                    f"stopped at step {run.step + 1}: {mine.fault}\nThe last checkpoint stands"
                ) from mine.fault
    if request.ends and run.runtime.all_reduce_max(not mine.ready):
        return None, request
    return run.augmented(next(run.train_batches)), request


class _Mine:
    """What this rank knows of its next batch."""

    def __init__(self, batches: TrainLoader) -> None:
        self._batches = batches
        self.ready = False
        self.fault: UserError | None = None

    def look(self) -> None:
        """Wait for the batch for one turn."""
        try:
            self.ready = self._batches.ready()
        except UserError as error:
            self.fault = error

    def agree(self, runtime: Runtime, stop_requests: StopRequests) -> Request:
        """What all ranks together can do."""
        wish = Request.FAULT if self.fault else stop_requests.read()
        return Request(runtime.all_reduce_max(wish if self.ready else max(wish, Request.WAIT)))


def _wait(mine: _Mine, run: Run, stop_requests: StopRequests, observers: Observers) -> Request:
    request, turn, before = Request.WAIT, 0, run.train_batches.arriving()
    while request is Request.WAIT:
        mine.look()
        turn += 1
        if turn % TELL_EVERY_TURNS == 0:
            now = run.train_batches.arriving()
            told = run.runtime.gather("" if mine.ready else _progress(before, now, TELL_EVERY_TURNS))
            late = [f"{text} (rank {rank})" for rank, text in enumerate(told) if text]
            if late:
                observers.note(run.step, f"waiting for data for {turn} s: {late[0]}")
            before = now
        request = mine.agree(run.runtime, stop_requests)
    return request


def _progress(before: dict[str, int], now: dict[str, int], seconds: float) -> str:
    """Which shards have grown, and how fast."""
    grown = {name: size - before.get(name, 0) for name, size in now.items() if size > before.get(name, 0)}
    if not grown:
        return f"nothing has come for {seconds:g} s"
    return f"{', '.join(sorted(grown))}, {sum(grown.values()) / seconds / 1e6:.2g} MB/s"
